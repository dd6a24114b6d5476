package vectors_test

import (
	"crypto/ecdh"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/proof"
)

const (
	start     = 1764000000 // when clients sign
	lease     = 900
	authority = "app.example.com"
	token     = "limpet-test-session-token"
	challenge = "s1gYmM0cHBsZTIw"
)

// maker makes httpsig.json.
type maker struct {
	*signer
	f *httpsigFile
}

func makeHTTPSig(t testing.TB, stored *httpsigFile, b []byte) *httpsigFile {
	m := &maker{newSigner(t, stored.Keys, b), &httpsigFile{
		Comment: []string{
			"Test vectors of Limpet's own wire. The documentation of the Go package limpettest/vectors explains every member.",
			"The private keys are public: never use them for anything but tests.",
		},
		Window: 60, Skew: 30,
		Session: session{Token: token, ID: hex.EncodeToString(sum(token)), Field: ":" + b64(sum(token)) + ":"},
	}}
	for _, k := range [][2]string{
		{"server", "hmac-sha256"},
		{"other server", "hmac-sha256"},
		{"device p256", "ecdsa-p256-sha256"},
		{"device ed25519", "ed25519"},
		{"device rsa-pss-sha512", "rsa-pss-sha512"},
		{"device rsa-v1_5", "rsa-v1_5-sha256"},
		{"device rsa-pss-sha256", "rsa-pss-sha256"},
		{"device p384", "ecdsa-p384-sha384"},
		{"device rsa-1024", "rsa-v1_5-sha256"},
		{"ephemeral agreement", "hmac-sha256"},
		{"ephemeral p256", "ecdsa-p256-sha256"},
		{"ephemeral ed25519", "ed25519"},
		{"ephemeral rsa-pss-sha512", "rsa-pss-sha512"},
		{"ephemeral rsa-v1_5", "rsa-v1_5-sha256"},
		{"thief", "ecdsa-p256-sha256"},
	} {
		m.f.Keys = append(m.f.Keys, m.key(k[0], k[1]))
	}
	m.server()
	for _, d := range [][3]string{
		{"agreement", "device p256", "ephemeral agreement"},
		{"agreement by ed25519", "device ed25519", "ephemeral agreement"},
		{"agreement by rsa-pss-sha512", "device rsa-pss-sha512", "ephemeral agreement"},
		{"agreement by rsa-v1_5", "device rsa-v1_5", "ephemeral agreement"},
		{"agreement by rsa-pss-sha256", "device rsa-pss-sha256", "ephemeral agreement"},
		{"p256", "device p256", "ephemeral p256"},
		{"ed25519", "device p256", "ephemeral ed25519"},
		{"rsa-pss-sha512", "device p256", "ephemeral rsa-pss-sha512"},
		{"rsa-v1_5", "device p256", "ephemeral rsa-v1_5"},
	} {
		m.f.Delegations = append(m.f.Delegations, m.delegate(d[0], d[1], d[2], nil, nil))
	}
	m.logins()
	m.requests()
	m.refuse()
	return m.f
}

func (m *maker) named(name string) *key { m.Helper(); return keyNamed(m, m.f.Keys, name) }

func (m *maker) server() {
	k := m.named("server")
	s := &m.f.Server
	*s = server{Key: k.Name, Expires: 1764115200, Lease: lease, Label: "EXPORTER-limpet-request-key"}
	s.ID = hex.EncodeToString(sum(string(unhex(m, k.Public)))[:16])
	s.Text = fmt.Sprintf(":%s:;exp=%d;lease=%d", b64(unhex(m, k.Public)), s.Expires, s.Lease)
	s.LoginText = s.Text + ";session=" + m.f.Session.Field
}

// delegate makes a delegation to a key. edit changes what it says, bytes what is
// signed of it.
func (m *maker) delegate(name, device, ephemeral string, edit func(*delegation), bytes func([]byte) []byte) *delegation {
	m.Helper()
	k := m.named(ephemeral)
	d := &delegation{
		Name: name, Device: device, Key: ephemeral, Algorithm: k.Algorithm,
		NotBefore: start - 5, Expires: start - 5 + lease, Session: m.f.Session.ID, Audience: authority,
	}
	d.Code = map[string]byte{"ed25519": 1, "ecdsa-p256-sha256": 2, "rsa-pss-sha512": 3, "rsa-v1_5-sha256": 4, "hmac-sha256": 5}[k.Algorithm]
	serverKey := m.f.Server.Key
	if k.Algorithm == "hmac-sha256" {
		d.Agreement = &agreement{Server: serverKey}
	}
	if edit != nil {
		edit(d)
	}
	statement := append([]byte("limpet delegation 1\x00"), d.Code)
	statement = binary.BigEndian.AppendUint64(statement, uint64(d.NotBefore))
	statement = binary.BigEndian.AppendUint64(statement, uint64(d.Expires))
	statement = append(statement, unhex(m, d.Session)...)
	statement = binary.BigEndian.AppendUint16(statement, uint16(len(d.Audience)))
	statement = append(append(statement, d.Audience...), unhex(m, k.Public)...)
	if bytes != nil {
		statement = bytes(statement)
	}
	by := m.named(d.Device)
	sig := m.sign(by, by.Algorithm, statement)
	d.Statement, d.Signature = hex.EncodeToString(statement), hex.EncodeToString(sig)
	d.Text = ":" + b64(statement) + ":;sig=:" + b64(sig) + ":"
	if a := d.Agreement; a != nil {
		m.agree(d, k, m.named(a.Server))
		d.Text += ";server=:" + b64(unhex(m, a.ID)) + ":"
	}
	return d
}

func (m *maker) agree(d *delegation, own, peer *key) {
	m.Helper()
	private, err := ecdh.P256().NewPrivateKey(unhex(m, own.Private))
	m.must(err)
	z, err := proof.Agree(private, peer.publicKey(m))
	m.must(err)
	statement, ephemeral := unhex(m, d.Statement), own.publicKey(m)
	id := peer.publicKey(m).ID()
	a := d.Agreement
	a.ID = hex.EncodeToString(id[:])
	a.Z = hex.EncodeToString(z)
	a.Statement = hex.EncodeToString(sum(string(statement)))
	a.Info = hex.EncodeToString([]byte("limpet request key 1\x00")) + a.Statement + own.Public + peer.Public
	a.Secret = hex.EncodeToString(proof.RequestSecret(z, statement, ephemeral, peer.publicKey(m)))
}

// signing is what a request's signature is made of.
type signing struct {
	label      string
	components []string // identifiers
	parameters []string
	sign       func(base []byte) []byte
}

// complete adds the signature that a client makes, after edit changed it.
func (m *maker) complete(r *request, edit func(*signing)) {
	m.Helper()
	k := m.named(r.Key)
	s := &signing{label: "limpet", sign: m.by(r, k)}
	for _, name := range []string{"@method", "@authority", "@path", "@query", "content-digest", "authorization", "limpet-device", "limpet-session", "limpet-challenge", "limpet-channel"} {
		if name[0] == '@' || len(r.lines(canonical(name))) > 0 {
			s.components = append(s.components, `"`+name+`"`)
		}
	}
	s.parameters = []string{fmt.Sprintf("created=%d", r.Created), quoted("nonce", r.Nonce), quoted("keyid", k.KeyID)}
	if r.Algorithm != "rsa-pss-sha256" {
		s.parameters = append(s.parameters, quoted("alg", r.Algorithm))
	}
	s.parameters = append(s.parameters, `tag="limpet"`)
	if edit != nil {
		edit(s)
	}
	own := "(" + strings.Join(s.components, " ") + ")"
	for _, p := range s.parameters {
		own += ";" + p
	}
	r.Base = nil
	for _, id := range s.components {
		r.Base = append(r.Base, id+": "+r.component(id))
	}
	r.Base = append(r.Base, `"@signature-params": `+own)
	r.Input = s.label + "=" + own
	r.Signature = s.label + "=:" + b64(s.sign([]byte(strings.Join(r.Base, "\n")))) + ":"
	if before := r.lines("Signature-Input"); len(before) > 0 {
		r.Input, r.Signature = before[0]+", "+r.Input, r.lines("Signature")[0]+", "+r.Signature
	}
	r.set("Signature-Input", r.Input)
	r.set("Signature", r.Signature)
}

// by returns what signs a request.
func (m *maker) by(r *request, k *key) func([]byte) []byte {
	m.Helper()
	if k.Algorithm != "hmac-sha256" {
		return func(base []byte) []byte { return m.sign(k, r.Algorithm, base) }
	}
	d := named(m, m.f.Delegations, func(d *delegation) string { return d.Name }, r.Delegation)
	return m.mac(r, d)
}

func (m *maker) mac(r *request, d *delegation) func([]byte) []byte {
	m.Helper()
	mac := proof.NewMACKey(unhex(m, d.Agreement.Secret))
	if len(r.lines("Limpet-Channel")) > 0 {
		input := append([]byte("limpet channel key 1\x00"), unhex(m, r.At.Exported)...)
		r.ChannelKey = hex.EncodeToString(mac.Append(nil, input))
		mac = mac.OnChannel(unhex(m, r.At.Exported))
	}
	return func(base []byte) []byte { return mac.Append(nil, base) }
}

// component returns the value of a component.
func (m *message) component(id string) string {
	name, parameter, _ := strings.Cut(id[1:], `"`)
	switch name {
	case "@method":
		return m.Method
	case "@authority":
		host := strings.ToLower(m.Authority)
		if m.Scheme == "https" {
			return strings.TrimSuffix(host, ":443")
		}
		return strings.TrimSuffix(host, ":80")
	case "@path":
		return m.Path
	case "@query":
		return "?" + m.Query
	case "@target-uri":
		return m.Scheme + "://" + m.component(`"@authority"`) + m.Path + strings.TrimSuffix("?"+m.Query, "?")
	case "@query-param":
		_, value, _ := strings.Cut(m.Query, strings.Split(parameter, `"`)[1]+"=")
		value, _, _ = strings.Cut(value, "&")
		return value
	}
	var lines []string
	for _, line := range m.lines(canonical(name)) {
		lines = append(lines, strings.Trim(line, " \t"))
	}
	return strings.Join(lines, ", ")
}

func canonical(name string) string {
	parts := strings.Split(name, "-")
	for i, p := range parts {
		if p != "" {
			parts[i] = strings.ToUpper(p[:1]) + p[1:]
		}
	}
	return strings.Join(parts, "-")
}

func digestOf(body string) string { return "sha-256=:" + b64(sum(body)) + ":" }

func (m *maker) logins() {
	const body = "user=alice&password=correct+horse"
	for _, l := range []struct{ name, key, level string }{
		{"login, ECDSA P-256", "device p256", "software"},
		{"login, Ed25519", "device ed25519", "hardware"},
		{"login, RSA-PSS with SHA-512", "device rsa-pss-sha512", "software"},
		{"login, RSA PKCS #1 v1.5", "device rsa-v1_5", "software"},
		{"login, RSA-PSS with SHA-256, which has no alg", "device rsa-pss-sha256", "hardware"},
	} {
		m.f.Logins = append(m.f.Logins, m.login(l.name, l.key, l.level, body, ""))
	}
	m.f.Logins = append(m.f.Logins, m.login("login without a body", "device p256", "", "", ""))
	upgrade := m.login("login with an older token", "device p256", "software", body, token)
	m.f.Logins = append(m.f.Logins, upgrade)
}

func (m *maker) login(name, device, level, body, bearer string) *request {
	m.Helper()
	k := m.named(device)
	r := &request{
		Name: name, Key: device, Level: level, Algorithm: k.Algorithm, Created: start, Nonce: nonce(name),
		message: message{Method: "POST", Scheme: "https", Authority: authority, Path: "/login", Body: body},
		At:      at{Now: start + 2},
	}
	r.Device = ":" + b64(unhex(m, k.SPKI)) + ":"
	if strings.HasPrefix(k.Algorithm, "rsa-") {
		r.Device += ";alg=" + k.Algorithm
	}
	if level != "" {
		r.Device += ";level=" + level
	}
	if bearer != "" {
		r.add("Authorization", "Bearer "+bearer)
	}
	if body != "" {
		r.add("Content-Type", "application/x-www-form-urlencoded")
		r.add("Content-Digest", digestOf(body))
	}
	r.add("Limpet-Device", r.Device)
	m.complete(r, nil)
	return r
}

// kind is what tells one request from the others.
type kind struct {
	name, delegation    string
	method, path, query string
	authority           string
	body                string
	cookie, first       bool
	challenge           string
	channel             bool
	before              func(*request)
	signing             func(*signing)
}

const exported = "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf"

func (m *maker) requests() {
	const order = `{"item":7,"count":1}`
	for _, k := range []kind{
		{name: "GET"},
		{name: "first request", first: true},
		{name: "POST with a body", method: "POST", path: "/orders", body: order},
		{name: "POST without a body", method: "POST", path: "/orders/7/cancel"},
		{name: "DELETE", method: "DELETE", path: "/orders/7"},
		{name: "session in a cookie", cookie: true},
		{name: "first request, session in a cookie, with a body", method: "PUT", path: "/orders/7", body: order, cookie: true, first: true},
		{name: "query", path: "/orders", query: "page=2&q=fish%20%26%20chips&tag="},
		{name: "empty query", path: "/orders"},
		{name: "path with percent-encoding", path: "/files/%C3%BCber%2Fall"},
		{name: "authority in capitals and with its port", authority: "App.Example.com:443"},
		{name: "challenge", path: "/transfer", challenge: challenge},
		{name: "channel", path: "/transfer", channel: true},
		{name: "challenge and channel", method: "POST", path: "/transfer", body: order, challenge: challenge, channel: true, first: true},
		{name: "digests of two algorithms", method: "POST", path: "/orders", body: order, before: func(r *request) {
			r.set("Content-Digest", "sha-512=:"+b64(sum512(order))+":, "+digestOf(order))
		}},
		{name: "digest of no body", before: func(r *request) { r.add("Content-Digest", digestOf("")) }},
		{name: "components in another order", method: "POST", path: "/orders", body: order, signing: func(s *signing) { slices.Reverse(s.components) }},
		{name: "parameters in another order", signing: func(s *signing) { slices.Reverse(s.parameters) }},
		{name: "another label", signing: func(s *signing) { s.label = "sig1" }},
		{name: "more covered than must be", query: "page=2", before: func(r *request) { r.add("Accept", "application/json") }, signing: func(s *signing) {
			s.components = append(s.components, `"accept"`, `"@target-uri"`, `"@query-param";name="page"`)
		}},
		{name: "beside the signature of another", before: func(r *request) {
			r.add("Signature-Input", `proxy=("@method" "@path");created=1763999999;keyid="proxy"`)
			r.add("Signature", "proxy=:"+b64(sum("proxy"))+":")
		}},
		{name: "white space around a field's value", before: func(r *request) { r.set("Authorization", " Bearer "+token+"\t ") }},
		{name: "first request, delegated by Ed25519", delegation: "agreement by ed25519", first: true},
		{name: "first request, delegated by RSA-PSS with SHA-512", delegation: "agreement by rsa-pss-sha512", first: true},
		{name: "first request, delegated by RSA PKCS #1 v1.5", delegation: "agreement by rsa-v1_5", first: true},
		{name: "first request, delegated by RSA-PSS with SHA-256", delegation: "agreement by rsa-pss-sha256", first: true},
		{name: "first request, ECDSA P-256", delegation: "p256", first: true},
		{name: "first request, Ed25519", delegation: "ed25519", first: true},
		{name: "first request, RSA-PSS with SHA-512", delegation: "rsa-pss-sha512", first: true},
		{name: "first request, RSA PKCS #1 v1.5", delegation: "rsa-v1_5", first: true},
		{name: "POST, ECDSA P-256", delegation: "p256", method: "POST", path: "/orders", body: order},
		{name: "POST, Ed25519", delegation: "ed25519", method: "POST", path: "/orders", body: order},
		{name: "POST, RSA-PSS with SHA-512", delegation: "rsa-pss-sha512", method: "POST", path: "/orders", body: order},
		{name: "POST, RSA PKCS #1 v1.5", delegation: "rsa-v1_5", method: "POST", path: "/orders", body: order},
	} {
		m.f.Requests = append(m.f.Requests, m.request(k))
	}
}

func (m *maker) request(k kind) *request {
	m.Helper()
	or := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	or(&k.delegation, "agreement")
	or(&k.method, "GET")
	or(&k.path, "/me")
	or(&k.authority, authority)
	d := named(m, m.f.Delegations, func(d *delegation) string { return d.Name }, k.delegation)
	r := &request{
		Name: k.name, Key: d.Key, Delegation: d.Name, Algorithm: d.Algorithm, Created: start, Nonce: nonce(k.name),
		message: message{Method: k.method, Scheme: "https", Authority: k.authority, Path: k.path, Query: k.query, Body: k.body},
		At:      at{Now: start + 2, Device: d.Device, Known: !k.first, Challenge: k.challenge, Channel: k.channel},
	}
	if k.cookie {
		r.add("Cookie", "theme=dark; sid="+token)
		r.add("Limpet-Session", m.f.Session.Field)
	} else {
		r.add("Authorization", "Bearer "+token)
	}
	if k.body != "" {
		r.add("Content-Type", "application/json")
		r.add("Content-Digest", digestOf(k.body))
	}
	if k.challenge != "" {
		r.add("Limpet-Challenge", k.challenge)
	}
	if k.channel {
		r.At.Exported = exported
		r.add("Limpet-Channel", "tls-exporter")
	}
	if k.first {
		r.add("Limpet-Delegation", d.Text)
	}
	if k.before != nil {
		k.before(r)
	}
	m.complete(r, k.signing)
	return r
}

// scopeOf returns what a delegation says as package proof has it.
func (m *maker) scopeOf(d *delegation) *proof.Scope {
	m.Helper()
	s := &proof.Scope{NotBefore: time.Unix(d.NotBefore, 0), Expires: time.Unix(d.Expires, 0), Session: [32]byte(unhex(m, d.Session)), Audience: d.Audience}
	if d.Agreement != nil {
		s.Server = proof.KeyID(unhex(m, d.Agreement.ID))
	}
	return s
}
