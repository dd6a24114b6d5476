// Package vectors holds test vectors for those who write clients and servers of
// Limpet's in other languages. [Files] has them; outside of Go, take the JSON
// files from the package's folder. docs/wire.md says what the wires are, and
// shows one login and one request of httpsig.json in full.
//
// The private keys are published here. Never use them for anything but tests.
//
// # How to use them
//
// A client reproduces every entry of logins, requests and proofs: from the keys,
// the request and the nonce to each intermediate value and the signature. HMAC,
// Ed25519 and PKCS #1 v1.5 signatures come out the same; those of ECDSA do if
// they are made as RFC 6979 says; those of PSS never do, and are to be verified.
//
// A server admits every one of these entries and refuses every entry of refused
// for the reason that is given. Members with the name "server" say what it knows
// and wants when the request comes.
//
// # What httpsig.json and dpop.json have
//
// Values are hex in lower case unless a member is the text of a field, which is
// as it is sent. Times are Unix seconds.
//
//	comment     for readers
//	window      how many seconds old a proof may be
//	skew        how many seconds it may be ahead of the server's clock
//	keys        key pairs
//	  name        other members refer to it
//	  algorithm   what it is used with, as the parameter alg names it; hmac-sha256
//	              is a P-256 key that agrees, rsa-pss-sha256 has no name there, and
//	              ecdsa-p384-sha384 is not admitted
//	  private     of P-256 and P-384 the scalar, of Ed25519 the seed, of RSA PKCS #8
//	              DER. All but RSA keys are SHA-256 of "limpet test key: " and name,
//	              that of P-384 behind 16 zeros
//	  public      of P-256 and P-384 the uncompressed point, of Ed25519 the 32
//	              bytes, of RSA the SPKI DER; a statement has a key in this form
//	  spki        SubjectPublicKeyInfo, DER
//	  jwk         the text whose hash the thumbprint is (RFC 7638)
//	  keyid       the thumbprint: SHA-256 of jwk in base64url
//	session     the session of all requests but logins
//	  token       the session token
//	  id          its SHA-256: the session's ID
//	  field       the value of Limpet-Session (httpsig.json)
//	  ath         the claim ath (dpop.json)
//
// A request, in logins, requests and proofs:
//
//	name        refused entries refer to it
//	key         whose signature it has, in keys
//	method, scheme, authority, path, query
//	            as in its URL; query is without "?", and "" where there is none
//	fields      names and values of the header fields that matter, in order; a name
//	            may occur twice. Host and Content-Length are to be added
//	body        as text, "" where there is none
//	server      what the server knows and wants
//	  now         its time
//	  device      the device key that the session is bound to, in keys
//	  known       whether it knows the ephemeral key of the delegation, because an
//	              earlier request brought that (httpsig.json, requests)
//	  challenge   the challenge, or of DPoP the nonce, that the route wants; none if
//	              absent
//	  channel     whether the route wants the channel
//	  exported    the 32 bytes exported from the TLS connection; absent where TLS
//	              ends elsewhere
//
// # httpsig.json
//
// Limpet's own wire, package proof/httpsig.
//
//	server           what the server says of itself
//	  key              its agreement key, in keys
//	  id               what names that: the first 16 bytes of SHA-256 of the point
//	  exp, lease       as in Limpet-Key
//	  limpet_key       the text of the well-known document and of refusals
//	  limpet_key_login the field in the answer to the login, with the session's ID
//	  exporter_label   of the TLS exporter for the channel
//	delegations
//	  name             requests refer to it
//	  device, key      the device key and the ephemeral key, in keys
//	  algorithm, code  what the ephemeral key is used with, and its byte in the
//	                   statement
//	  not_before, expires, session, audience
//	                   what the statement says; session is the ID
//	  statement        the bytes that are signed
//	  signature        by the device key; of ECDSA r‖s
//	  agreement        of hmac-sha256:
//	    server, id       the server's key, in keys, and what names it
//	    z                ECDH of both keys, the x-coordinate
//	    statement_sha256 SHA-256 of the statement
//	    info             of HKDF-SHA256, without salt
//	    secret           its 32 bytes: the HMAC key of requests
//	  limpet_delegation the value of Limpet-Delegation
//	logins, requests   requests as above, and
//	  limpet_device    of a login, the value of Limpet-Device
//	  level            of a login, what that says keeps the key; absent if nothing
//	  delegation       of a request, the delegation of its key
//	  algorithm        what the signature is made with
//	  created, nonce   its parameters
//	  base             the signature base: lines, with a line feed between them
//	  channel_key      the HMAC key on this TLS connection, where it is used
//	  signature_input, signature
//	                   the values of both fields, which fields has too
//
// # dpop.json
//
// RFC 9449 as Limpet's servers admit it, package proof/dpop.
//
//	proofs           requests as above, and
//	  login            whether it is one: its proof brings the device key
//	  jwt_header       JOSE header and
//	  jwt_claims       claims, the JSON that is signed
//	  signing_input    both in base64url
//	  signature        in the form of RFC 7518 and RFC 8037
//
// The field DPoP, in fields, is signing_input, a dot and the signature in
// base64url. An entry whose Authorization has another session's token is for a
// session that is bound to the same key.
//
// # channel.json
//
// Tokens that live for one TLS connection, package channel. No connection is in
// the file: exported stands for what both ends export from theirs. Comment, keys
// and the parts of a request are as above.
//
//	tokens           in the profile of Limpet
//	  name
//	  client         its name, as the server's keyring has it
//	  secret         shared with the server; absent of a key pair
//	  key            the key pair, in keys; absent of a secret
//	  algorithm, authority, form
//	                 what the token is for
//	  exporter_label, exporter_context
//	                 what is given to the TLS exporter, for 32 bytes
//	  exported       those
//	  root           HMAC-SHA256 under secret of "limpet channel secret 1", a zero
//	                 byte and exported
//	  derived        HMAC-SHA256 under root of "limpet channel ", the member's name,
//	                 " 1" and a zero byte: token is the tag of a token, jwt and jwe
//	                 are keys, request is the key of the MACs of requests
//	  statement      of a token of a key pair, what it signs
//	  claim          of a JWT of a key pair, its claim limpet_exporter
//	  now            the server's time
//	  jwt_header, jwt_claims
//	                 the JSON that is signed
//	  jwt            the JWT, which of form jwe is encrypted under jwe
//	  jwe_header, iv what it is encrypted with
//	  token          behind Bearer and a blank in Authorization
//	request          a request that is covered by a MAC of its own
//	  token          what it carries, in tokens
//	  now, method, scheme, authority, path, query, fields, body
//	                 the request
//	  keyid, nonce   of the signature
//	  base           the signature base: lines, with a line feed between them
//	  signature_input, signature
//	                 the values of both fields, which fields has too
//	sample           in the sample profile, whose label and contexts are not ours
//	  client, secret as above
//	  exported       what is exported for the token, and here for the keys too
//	  tag, token     the token, and as it is sent in apikey
//	  jwt_key        the key that signs, and here encrypts too
//	  jwt, iv, jwe   what is sent behind Bearer, without and with encryption
//
// # refused
//
//	name        what is wrong
//	of          the login, request or proof that it is made of
//	changes     made to that one after another, and nothing else; none if absent
//	  set, to     the value of a part or field becomes to; a field that is not there
//	              is added. Parts are @method, @scheme, @authority, @path, @query
//	              and @body
//	  add, to     a field gets one line more
//	  remove      a field is taken away with all its lines
//	server      in place of the server of that one, if present
//	stage       which check of ours refuses it
//	  read        that of form, and of what the proof says about the request: it needs
//	              neither key, clock nor memory
//	  verify      that of time, challenge, channel, delegation and signature
//	  body        that of the digest, which is covered, against the body
//	  spend       that of the nonce or jti: the server has admitted the login, request
//	              or proof named in "of" just before, and all other checks pass
//	reason      the word in the refusal. proof_required is for requests that bring no
//	            proof, as far as a server of ours can see
//
// Where the change is to something signed and the entry is about another rule
// than the signature, the signature is made anew and fits: the changes then set
// the field Signature, or DPoP, too. So the order in which a server makes its
// checks does not matter, but where a key cannot be used at all.
//
// # handshake.json
//
// Limpet's handshake, package handshake. A server with the secret or the keys that
// has sent the greeting answers the hello with the answer, up to the random parts
// of its signature, and refuses each hello of refused.
//
//	handshakes
//	  name        refused entries refer to it
//	  suite, flags, client, server, version
//	              what the hello says; version is that of the secret
//	  secret      of suites 1 and 2, or
//	  keys        of suite 3
//	    …_algorithm, …_private, …_public
//	              the ends' own keys, in the forms of keys above
//	    …_ephemeral
//	              the private keys of the agreement, on X25519
//	  exported    the 32 bytes exported from the TLS connection, if the flags say so
//	  greeting, hello, answer
//	              the messages; ECDSA signatures are made as RFC 6979 says
//	  transcript  what the key is derived from
//	  z           of suite 3 what X25519 gives
//	  key         the secret of the handshake
//	  session     the session's ID
//	  records     if the flags say so, the first records of each end
//	    from        client or server
//	    data        as text; the last record, which ends the direction, has none
//	    record      header, data and tag
//	refused
//	  name        what is wrong
//	  of          the handshake whose greeting and server it is for
//	  hello       in place of that one's. Its proof fits, but where the name says
//	              otherwise
package vectors

import "embed"

// Files holds channel.json, dpop.json, handshake.json and httpsig.json.
//
//go:embed *.json
var Files embed.FS
