package vectors_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/limpet-auth/limpet/proof"
)

// tamper is what makes a refused request of a good one. Where edit or signing is
// there it is signed anew after them, so that it has this one flaw.
type tamper struct {
	name, of, stage string
	reason          proof.Reason
	edit            func(*request)
	signing         func(*signing)
	after           func(*request)
	server          func(*at)
}

// replace changes one of the texts that are signed.
func replace(old, with string) func(*signing) {
	return func(s *signing) {
		found := false
		for _, list := range [][]string{s.components, s.parameters} {
			for i, text := range list {
				if strings.HasPrefix(text, old) {
					list[i], found = with, true
				}
			}
		}
		if !found {
			panic(old + " is not signed")
		}
	}
}

func drop(prefix string) func(*signing) {
	return func(s *signing) {
		is := func(text string) bool { return strings.HasPrefix(text, prefix) }
		before := len(s.components) + len(s.parameters)
		s.components = slices.DeleteFunc(s.components, is)
		s.parameters = slices.DeleteFunc(s.parameters, is)
		if len(s.components)+len(s.parameters) == before {
			panic(prefix + " is not signed")
		}
	}
}

func component(id string) func(*signing) {
	return func(s *signing) { s.components = append(s.components, id) }
}

func parameter(text string) func(*signing) {
	return func(s *signing) { s.parameters = append(s.parameters, text) }
}

func set(name, value string) func(*request) {
	return func(r *request) {
		if part := r.part(name); part != nil {
			*part = value
		} else {
			r.set(name, value)
		}
	}
}

func add(name, value string) func(*request) { return func(r *request) { r.add(name, value) } }

func remove(names ...string) func(*request) {
	return func(r *request) {
		for _, name := range names {
			r.remove(name)
		}
	}
}

// rewrite changes a part of a field's text.
func rewrite(name, old, with string) func(*request) {
	return func(r *request) {
		text := r.lines(name)[0]
		if !strings.Contains(text, old) {
			panic(old + " is not in " + text)
		}
		r.set(name, strings.Replace(text, old, with, 1))
	}
}

func (m *maker) refuse() {
	m.refuseRequests()
	m.refuseDelegations()
	m.refuseLogins()
}

func (m *maker) tamper(all []tamper) {
	m.Helper()
	for _, tt := range all {
		before := named(m, slices.Concat(m.f.Logins, m.f.Requests), func(r *request) string { return r.Name }, tt.of)
		r := *before
		r.message = before.message.clone()
		if tt.edit != nil || tt.signing != nil {
			r.remove("Signature-Input")
			r.remove("Signature")
			if tt.edit != nil {
				tt.edit(&r)
			}
			m.complete(&r, tt.signing)
		}
		if tt.after != nil {
			tt.after(&r)
		}
		row := &refused{Name: tt.name, Of: tt.of, Stage: tt.stage, Reason: string(tt.reason), Changes: r.diff(before.message)}
		if tt.server != nil {
			tt.server(&r.At)
			row.At = &r.At
		}
		m.f.Refused = append(m.f.Refused, row)
	}
}

func (m *maker) refuseRequests() {
	const (
		get, post, cookie = "GET", "POST with a body", "session in a cookie"
		bad, invalid      = proof.Malformed, proof.Invalid
	)
	id := m.named("ephemeral agreement").KeyID
	thief := m.named("thief")
	otherSession := ":" + b64(sum("another-session-token")) + ":"
	text := named(m, m.f.Delegations, func(d *delegation) string { return d.Name }, "agreement").Text
	base := func(edit func(base []byte) []byte) func(*signing) {
		return func(s *signing) {
			sign := s.sign
			s.sign = func(b []byte) []byte { return sign(edit(b)) }
		}
	}
	secret := func(key []byte) func(*signing) {
		return func(s *signing) {
			s.sign = func(b []byte) []byte { return proof.NewMACKey(key).Append(nil, b) }
		}
	}
	agreed := named(m, m.f.Delegations, func(d *delegation) string { return d.Name }, "agreement").Agreement
	by := func(k *key, algorithm string) func(*signing) {
		return func(s *signing) { s.sign = func(b []byte) []byte { return m.sign(k, algorithm, b) } }
	}
	both := func(edits ...func(*signing)) func(*signing) {
		return func(s *signing) {
			for _, edit := range edits {
				edit(s)
			}
		}
	}

	m.tamper([]tamper{
		// The fields as such.
		{name: "no signature", of: get, stage: atRead, reason: proof.Required, after: remove("Signature-Input", "Signature")},
		{name: "Signature alone", of: get, stage: atRead, reason: proof.Required, after: remove("Signature-Input")},
		{name: "Signature-Input alone", of: get, stage: atRead, reason: bad, after: remove("Signature")},
		{name: "another tag", of: get, stage: atRead, reason: proof.Required, signing: replace("tag=", `tag="app"`)},
		{name: "no tag", of: get, stage: atRead, reason: proof.Required, signing: drop("tag=")},
		{name: "Signature-Input on two lines", of: get, stage: atRead, reason: bad, after: add("Signature-Input", `other=("@method")`)},
		{name: "Signature on two lines", of: get, stage: atRead, reason: bad, after: add("Signature", "other=:AAAA:")},
		{name: "Signature-Input that is no dictionary", of: get, stage: atRead, reason: bad, after: rewrite("Signature-Input", "(", "((")},
		{name: "garbage behind our member", of: get, stage: atRead, reason: bad, after: func(r *request) { r.set("Signature-Input", r.Input+", ?") }},
		{name: "two members tagged limpet", of: get, stage: atRead, reason: bad, after: func(r *request) {
			r.set("Signature-Input", r.Input+", other"+strings.TrimPrefix(r.Input, "limpet"))
			r.set("Signature", r.Signature+", other"+strings.TrimPrefix(r.Signature, "limpet"))
		}},
		{name: "two members with our label", of: get, stage: atRead, reason: bad, after: func(r *request) { r.set("Signature-Input", "limpet=(), "+r.Input) }},
		{name: "no signature under the label", of: get, stage: atRead, reason: bad, after: rewrite("Signature", "limpet=", "other=")},
		{name: "two signatures under the label", of: get, stage: atRead, reason: bad, after: func(r *request) { r.set("Signature", r.Signature+", "+r.Signature) }},
		{name: "the signature is a string", of: get, stage: atRead, reason: bad, after: func(r *request) { r.set("Signature", strings.ReplaceAll(r.Signature, ":", `"`)) }},
		{name: "the signature has a parameter", of: get, stage: atRead, reason: bad, after: func(r *request) { r.set("Signature", r.Signature+";a") }},
		{name: "the signature has no padding", of: get, stage: atRead, reason: bad, after: rewrite("Signature", "=:", ":")},
		{name: "a field over 8 KiB", of: get, stage: atRead, reason: proof.TooLarge, after: func(r *request) {
			r.set("Signature-Input", r.Input+`, other=("@method");keyid="`+strings.Repeat("a", 8<<10)+`"`)
		}},

		// Parameters.
		{name: "no created", of: get, stage: atRead, reason: bad, signing: drop("created=")},
		{name: "created is a string", of: get, stage: atRead, reason: bad, signing: replace("created=", `created="1764000000"`)},
		{name: "created is a decimal", of: get, stage: atRead, reason: bad, signing: replace("created=", "created=1764000000.0")},
		{name: "created is zero", of: get, stage: atRead, reason: bad, signing: replace("created=", "created=0")},
		{name: "created after the year 9999", of: get, stage: atRead, reason: bad, signing: replace("created=", "created=253402300800")},
		{name: "created twice", of: get, stage: atRead, reason: bad, signing: parameter("created=1764000000")},
		{name: "expires", of: get, stage: atRead, reason: bad, signing: parameter("expires=1764000300")},
		{name: "a parameter that is not known", of: get, stage: atRead, reason: bad, signing: parameter("version=1")},
		{name: "no nonce", of: get, stage: atRead, reason: bad, signing: drop("nonce=")},
		{name: "nonce of 15 characters", of: get, stage: atRead, reason: bad, signing: replace("nonce=", `nonce="0123456789abcde"`)},
		{name: "nonce of 65 characters", of: get, stage: atRead, reason: bad, signing: replace("nonce=", quoted("nonce", strings.Repeat("0123456789abc", 5)))},
		{name: "a space in the nonce", of: get, stage: atRead, reason: bad, signing: replace("nonce=", `nonce="0123456789 abcdef"`)},
		{name: "no keyid", of: get, stage: atRead, reason: bad, signing: drop("keyid=")},
		{name: "keyid of 42 characters", of: get, stage: atRead, reason: bad, signing: replace("keyid=", quoted("keyid", id[:42]))},
		{name: "keyid in the other base64", of: get, stage: atRead, reason: bad, signing: replace("keyid=", quoted("keyid", "+"+id[1:]))},
		{name: "no alg", of: get, stage: atRead, reason: bad, signing: drop("alg=")},
		{name: "an alg that is not admitted", of: get, stage: atRead, reason: bad, signing: replace("alg=", `alg="hmac-sha512"`)},

		// Components.
		{name: "@method not covered", of: get, stage: atRead, reason: bad, signing: drop(`"@method"`)},
		{name: "@authority not covered", of: get, stage: atRead, reason: bad, signing: drop(`"@authority"`)},
		{name: "@path not covered", of: get, stage: atRead, reason: bad, signing: drop(`"@path"`)},
		{name: "@query not covered", of: get, stage: atRead, reason: bad, signing: drop(`"@query"`)},
		{name: "@target-uri in place of @query", of: get, stage: atRead, reason: bad, signing: replace(`"@query"`, `"@target-uri"`)},
		{name: "authorization not covered", of: get, stage: atRead, reason: bad, signing: drop(`"authorization"`)},
		{name: "a component twice", of: get, stage: atRead, reason: bad, signing: component(`"@method"`)},
		{name: "a field covered that is not there", of: get, stage: atRead, reason: bad, signing: component(`"x-none"`)},
		{name: "a component of responses", of: get, stage: atRead, reason: bad, signing: component(`"@status"`)},
		{name: "a component with the parameter sf", of: get, stage: atRead, reason: bad, signing: component(`"authorization";sf`)},
		{name: "a component with the parameter req", of: get, stage: atRead, reason: bad, signing: component(`"@method";req`)},
		{name: "33 components", of: get, stage: atRead, reason: bad, edit: func(r *request) {
			for i := range 28 {
				r.add(fmt.Sprintf("X-%d", i), "1")
			}
		}, signing: func(s *signing) {
			for i := range 28 {
				s.components = append(s.components, fmt.Sprintf(`"x-%d"`, i))
			}
		}},
		{name: "Authorization on two lines", of: get, stage: atRead, reason: bad, edit: add("Authorization", "Bearer "+token)},

		// Body and digest.
		{name: "a body without a digest", of: post, stage: atRead, reason: bad, edit: remove("Content-Digest")},
		{name: "content-digest not covered", of: post, stage: atRead, reason: bad, signing: drop(`"content-digest"`)},
		{name: "a digest of no body, not covered", of: get, stage: atRead, reason: bad, after: add("Content-Digest", digestOf(""))},
		{name: "Content-Digest on two lines", of: post, stage: atRead, reason: bad, edit: add("Content-Digest", digestOf("another body"))},
		{name: "two digests of one algorithm", of: post, stage: atRead, reason: bad, edit: func(r *request) { r.set("Content-Digest", digestOf(r.Body)+", "+digestOf(r.Body)) }},
		{name: "no sha-256 in Content-Digest", of: post, stage: atRead, reason: bad, edit: func(r *request) { r.set("Content-Digest", "sha-512=:"+b64(sum512(r.Body))+":") }},
		{name: "a digest that is too short", of: post, stage: atRead, reason: bad, edit: func(r *request) { r.set("Content-Digest", "sha-256=:"+b64(sum(r.Body)[:31])+":") }},
		{name: "a digest in hex", of: post, stage: atRead, reason: bad, edit: func(r *request) { r.set("Content-Digest", `sha-256="`+hex.EncodeToString(sum(r.Body))+`"`) }},
		{name: "another body", of: post, stage: atBody, reason: proof.BodyDiffer, after: set("@body", `{"item":7,"count":9}`)},
		{name: "the body taken away", of: post, stage: atBody, reason: proof.BodyDiffer, after: set("@body", "")},
		{name: "the digest of another body, with that body", of: post, stage: atVerify, reason: invalid, after: func(r *request) {
			r.Body = `{"item":7,"count":9}`
			r.set("Content-Digest", digestOf(r.Body))
		}},
		{name: "a body put in", of: get, stage: atRead, reason: bad, after: set("@body", "x")},

		// Session, challenge, channel.
		{name: "no Limpet-Session beside a cookie", of: cookie, stage: atRead, reason: bad, edit: remove("Limpet-Session")},
		{name: "limpet-session not covered", of: cookie, stage: atRead, reason: bad, signing: drop(`"limpet-session"`)},
		{name: "Limpet-Session of another session", of: cookie, stage: atRead, reason: invalid, edit: set("Limpet-Session", otherSession)},
		{name: "another session's cookie", of: cookie, stage: atRead, reason: invalid, after: set("Cookie", "sid=another-session-token")},
		{name: "Limpet-Session not covered, beside a bearer token", of: get, stage: atRead, reason: bad, after: add("Limpet-Session", m.f.Session.Field)},
		{name: "limpet-challenge not covered", of: "challenge", stage: atRead, reason: bad, signing: drop(`"limpet-challenge"`)},
		{name: "another challenge", of: "challenge", stage: atVerify, reason: proof.Stale, edit: set("Limpet-Challenge", "AAAAAAAAAAAAAAAA")},
		{name: "no challenge where the route wants one", of: get, stage: atVerify, reason: proof.Stale, server: func(at *at) { at.Challenge = challenge }},
		{name: "a challenge put in", of: get, stage: atRead, reason: bad, after: add("Limpet-Challenge", challenge)},
		{name: "limpet-channel not covered", of: "channel", stage: atRead, reason: bad, signing: drop(`"limpet-channel"`)},
		{name: "a channel of another kind", of: "channel", stage: atRead, reason: bad, edit: set("Limpet-Channel", "tls-unique")},
		{name: "no channel where the route wants one", of: get, stage: atVerify, reason: proof.NoChannel, server: func(at *at) { at.Channel, at.Exported = true, exported }},
		{name: "made on another TLS connection", of: "channel", stage: atVerify, reason: invalid, server: func(at *at) { at.Exported = strings.Repeat("c0", 32) }},
		{name: "made for a TLS connection, and TLS ends elsewhere", of: "channel", stage: atVerify, reason: invalid, server: func(at *at) { at.Exported = "" }},
		{name: "the channel named, the request key used", of: "channel", stage: atVerify, reason: invalid, signing: secret(unhex(m, agreed.Secret))},
		{name: "the channel by a key that signs", of: "first request, Ed25519", stage: atVerify, reason: proof.NoChannel, edit: add("Limpet-Channel", "tls-exporter"),
			signing: func(s *signing) { by(m.named("ephemeral ed25519"), "ed25519")(s) }, server: func(at *at) { at.Channel, at.Exported = true, exported }},

		// Time and use.
		{name: "made 61 seconds before the server's time", of: get, stage: atVerify, reason: proof.ClockSkew, server: func(at *at) { at.Now = start + 61 }},
		{name: "made 31 seconds after the server's time", of: get, stage: atVerify, reason: proof.ClockSkew, server: func(at *at) { at.Now = start - 31 }},
		{name: "sent again", of: get, stage: atSpend, reason: proof.NonceSpent},
		{name: "another request with the same nonce and key", of: get, stage: atSpend, reason: proof.NonceSpent, edit: set("@path", "/other")},

		// What is covered, changed.
		{name: "another method", of: post, stage: atVerify, reason: invalid, after: set("@method", "PUT")},
		{name: "another authority", of: get, stage: atVerify, reason: invalid, after: set("@authority", "admin.example.com")},
		{name: "another port", of: get, stage: atVerify, reason: invalid, after: set("@authority", authority+":8443")},
		{name: "another path", of: get, stage: atVerify, reason: invalid, after: set("@path", "/admin")},
		{name: "a slash behind the path", of: get, stage: atVerify, reason: invalid, after: set("@path", "/me/")},
		{name: "the path encoded otherwise", of: "path with percent-encoding", stage: atVerify, reason: invalid, after: set("@path", "/files/%c3%bcber%2fall")},
		{name: "the path decoded", of: "path with percent-encoding", stage: atVerify, reason: invalid, after: set("@path", "/files/%C3%BCber/all")},
		{name: "another query", of: "query", stage: atVerify, reason: invalid, after: set("@query", "page=3&q=fish%20%26%20chips&tag=")},
		{name: "the query in another order", of: "query", stage: atVerify, reason: invalid, after: set("@query", "q=fish%20%26%20chips&page=2&tag=")},
		{name: "no query", of: "query", stage: atVerify, reason: invalid, after: set("@query", "")},
		{name: "a query put in", of: "empty query", stage: atVerify, reason: invalid, after: set("@query", "admin=1")},
		{name: "the scheme bearer in other letters", of: get, stage: atVerify, reason: invalid, after: set("Authorization", "bearer "+token)},
		{name: "created changed", of: get, stage: atVerify, reason: invalid, after: rewrite("Signature-Input", "created=1764000000", "created=1764000001")},
		{name: "the nonce changed", of: get, stage: atVerify, reason: invalid, after: rewrite("Signature-Input", nonce("GET"), nonce("other"))},
		{name: "components moved", of: get, stage: atVerify, reason: invalid, after: rewrite("Signature-Input", `"@method" "@authority"`, `"@authority" "@method"`)},
		{name: "parameters moved", of: get, stage: atVerify, reason: invalid, after: rewrite("Signature-Input", `;alg="hmac-sha256";tag="limpet"`, `;tag="limpet";alg="hmac-sha256"`)},
		{name: "a component put in", of: get, stage: atVerify, reason: invalid, after: rewrite("Signature-Input", `"@query"`, `"@query" "@target-uri"`)},
		{name: "one bit of the tag changed", of: get, stage: atVerify, reason: invalid, signing: func(s *signing) {
			sign := s.sign
			s.sign = func(b []byte) []byte { sig := sign(b); sig[0] ^= 1; return sig }
		}},
		{name: "a tag cut to 16 bytes", of: get, stage: atVerify, reason: invalid, signing: func(s *signing) {
			sign := s.sign
			s.sign = func(b []byte) []byte { return sign(b)[:16] }
		}},

		// Bases and keys that are not quite right.
		{name: "a line feed behind the base", of: get, stage: atVerify, reason: invalid, signing: base(func(b []byte) []byte { return append(b, '\n') })},
		{name: "carriage returns in the base", of: get, stage: atVerify, reason: invalid, signing: base(func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")) })},
		{name: "an empty query without ? in the base", of: "empty query", stage: atVerify, reason: invalid, signing: base(func(b []byte) []byte { return bytes.Replace(b, []byte(`"@query": ?`), []byte(`"@query": `), 1) })},
		{name: "the query without ? in the base", of: "query", stage: atVerify, reason: invalid, signing: base(func(b []byte) []byte { return bytes.Replace(b, []byte(`"@query": ?`), []byte(`"@query": `), 1) })},
		{name: "the label in the base", of: get, stage: atVerify, reason: invalid, signing: base(func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"@signature-params": `), []byte(`"@signature-params": limpet=`), 1)
		})},
		{name: "the authority with its port in the base", of: "authority in capitals and with its port", stage: atVerify, reason: invalid, signing: base(func(b []byte) []byte {
			return bytes.Replace(b, []byte("app.example.com\n"), []byte("app.example.com:443\n"), 1)
		})},
		{name: "z as the key", of: get, stage: atVerify, reason: invalid, signing: secret(unhex(m, agreed.Z))},
		{name: "the public key as the HMAC key", of: "POST, ECDSA P-256", stage: atVerify, reason: invalid,
			signing: both(replace("alg=", `alg="hmac-sha256"`), secret(unhex(m, m.named("ephemeral p256").Public)))},
		{name: "another alg than the key's", of: get, stage: atVerify, reason: invalid, signing: both(replace("alg=", `alg="ecdsa-p256-sha256"`), by(m.named("ephemeral agreement"), "ecdsa-p256-sha256"))},
		{name: "ECDSA in DER", of: "POST, ECDSA P-256", stage: atVerify, reason: invalid, signing: func(s *signing) {
			s.sign = func(b []byte) []byte { return m.der(m.named("ephemeral p256"), b) }
		}},
		{name: "Ed25519 over the SHA-256 of the base", of: "POST, Ed25519", stage: atVerify, reason: invalid, signing: base(func(b []byte) []byte { return sum(string(b)) })},
		{name: "PSS with SHA-256 in place of SHA-512", of: "POST, RSA-PSS with SHA-512", stage: atVerify, reason: invalid, signing: by(m.named("ephemeral rsa-pss-sha512"), "rsa-pss-sha256")},
		{name: "another key's signature under this keyid", of: "POST, ECDSA P-256", stage: atVerify, reason: invalid, signing: by(thief, "ecdsa-p256-sha256")},
		{name: "the device key's signature under its own keyid", of: get, stage: atVerify, reason: proof.KeyUnknown, signing: both(
			replace("keyid=", quoted("keyid", m.named("device p256").KeyID)), replace("alg=", `alg="ecdsa-p256-sha256"`), by(m.named("device p256"), "ecdsa-p256-sha256"))},
		{name: "a key that nobody introduced", of: get, stage: atVerify, reason: proof.KeyUnknown, server: func(at *at) { at.Known = false }},
		{name: "a key whose lease is over", of: get, stage: atVerify, reason: proof.KeyUnknown, edit: func(r *request) { r.Created = start + lease }, server: func(at *at) { at.Now = start + lease }},

		// Limpet-Delegation as such.
		{name: "a delegation without a signature", of: "first request", stage: atRead, reason: bad, after: remove("Signature-Input", "Signature")},
		{name: "a delegation that is no byte sequence", of: "first request", stage: atRead, reason: bad, after: set("Limpet-Delegation", strings.Replace(text, ":", `"`, 1))},
		{name: "Limpet-Delegation on two lines", of: "first request", stage: atRead, reason: bad, after: add("Limpet-Delegation", text)},
		{name: "a delegation without sig", of: "first request", stage: atRead, reason: bad, after: rewrite("Limpet-Delegation", ";sig=", ";gis=")},
		{name: "a delegation with sig twice", of: "first request", stage: atRead, reason: bad, after: set("Limpet-Delegation", text+";sig=:AAAA:")},
		{name: "a delegation with a parameter that is not known", of: "first request", stage: atRead, reason: bad, after: set("Limpet-Delegation", text+";x=1")},
		{name: "an agreement without server", of: "first request", stage: atRead, reason: bad, after: set("Limpet-Delegation", text[:strings.Index(text, ";server=")])},
		{name: "server of 15 bytes", of: "first request", stage: atRead, reason: bad, after: set("Limpet-Delegation", text[:strings.Index(text, ";server=")]+";server=:"+b64(make([]byte, 15))+":")},
		{name: "server beside a key that signs", of: "first request, ECDSA P-256", stage: atRead, reason: bad, after: func(r *request) {
			r.set("Limpet-Delegation", r.lines("Limpet-Delegation")[0]+";server=:"+b64(unhex(m, agreed.ID))+":")
		}},
		{name: "a bit of the delegation's signature changed", of: "first request", stage: atVerify, reason: invalid, after: func(r *request) {
			d := *named(m, m.f.Delegations, func(d *delegation) string { return d.Name }, "agreement")
			sig := unhex(m, d.Signature)
			was := b64(sig)
			sig[40] ^= 1
			r.set("Limpet-Delegation", strings.Replace(d.Text, was, b64(sig), 1))
		}},
		{name: "the session belongs to another device key", of: "first request", stage: atVerify, reason: invalid, server: func(at *at) { at.Device = "thief" }},
	})
}

func (m *maker) refuseDelegations() {
	const first, signs = "first request", "first request, ECDSA P-256"
	const algorithmAt, audienceAt = 20, 20 + 1 + 8 + 8 + 32 // in a statement
	put := func(i int, with ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[i:], with); return b }
	}
	for _, tt := range []struct {
		name, of, stage string
		reason          proof.Reason
		edit            func(*delegation)
		bytes           func([]byte) []byte
	}{
		{"a statement of another purpose", first, atRead, proof.Malformed, nil, put(0, 'L')},
		{"a statement of another version", first, atRead, proof.Malformed, nil, put(algorithmAt-2, '2')},
		{"a statement that is cut off", first, atRead, proof.Malformed, nil, func(b []byte) []byte { return b[:60] }},
		{"algorithm 0", first, atRead, proof.Malformed, nil, put(algorithmAt, 0)},
		{"algorithm 6", first, atRead, proof.Malformed, nil, put(algorithmAt, 6)},
		{"the algorithm of a key of another length", first, atRead, proof.Malformed, nil, put(algorithmAt, 1)},
		{"expires with not before", first, atRead, proof.Malformed, func(d *delegation) { d.Expires = d.NotBefore }, nil},
		{"expires after the year 9999", first, atRead, proof.Malformed, func(d *delegation) { d.Expires = 253402300800 }, nil},
		{"no audience", first, atRead, proof.Malformed, func(d *delegation) { d.Audience = "" }, nil},
		{"an audience of 256 bytes", first, atRead, proof.Malformed, func(d *delegation) { d.Audience = strings.Repeat("a", 256) }, nil},
		{"an audience with a space", first, atRead, proof.Malformed, func(d *delegation) { d.Audience = "app example.com" }, nil},
		{"an audience that is longer than the rest", first, atRead, proof.Malformed, nil, put(audienceAt, 0, 0xff)},
		{"a byte behind the key", first, atRead, proof.Malformed, nil, func(b []byte) []byte { return append(b, 0) }},
		{"a delegation for another session", first, atVerify, proof.Invalid, func(d *delegation) { d.Session = hex.EncodeToString(sum("another-session-token")) }, nil},
		{"a delegation for another authority", first, atVerify, proof.Invalid, func(d *delegation) { d.Audience = "admin.example.com" }, nil},
		{"a delegation for the authority in capitals", first, atVerify, proof.Invalid, func(d *delegation) { d.Audience = "App.Example.com" }, nil},
		{"a delegation that begins 31 seconds after the server's time", first, atVerify, proof.ClockSkew, func(d *delegation) { d.NotBefore = start + 2 + 31; d.Expires = d.NotBefore + lease }, nil},
		{"a delegation that is over", first, atVerify, proof.KeyUnknown, func(d *delegation) { d.NotBefore, d.Expires = start-100, start+2 }, nil},
		{"a delegation that is longer than the server's lease, after that", first, atVerify, proof.KeyUnknown, func(d *delegation) { d.NotBefore, d.Expires = start+2-lease, start+lease }, nil},
		{"a delegation by another device key", first, atVerify, proof.Invalid, func(d *delegation) { d.Device = "thief" }, nil},
		{"a delegation by the ephemeral key itself", signs, atVerify, proof.Invalid, func(d *delegation) { d.Device = "ephemeral p256" }, nil},
		{"agreed with a key that is not the server's", first, atVerify, proof.KeyUnknown, func(d *delegation) { d.Agreement.Server = "other server" }, nil},
		{"a delegation for another key than the proof's", signs, atVerify, proof.Invalid, func(d *delegation) { d.Key = "thief" }, nil},
	} {
		base := named(m, m.f.Requests, func(r *request) string { return r.Name }, tt.of)
		good := named(m, m.f.Delegations, func(d *delegation) string { return d.Name }, base.Delegation)
		key := good.Key
		if tt.name == "a delegation for another key than the proof's" {
			key = "thief"
		}
		d := m.delegate(good.Name, good.Device, key, tt.edit, tt.bytes)
		// The device key of the session stays what it is.
		m.tamper([]tamper{{name: tt.name, of: tt.of, stage: tt.stage, reason: tt.reason, edit: set("Limpet-Delegation", d.Text), signing: func(s *signing) {
			if d.Agreement != nil {
				s.sign = m.mac(base, d)
			}
		}}})
	}
	off := func(b []byte) []byte { b[len(b)-1] ^= 1; return b }
	d := m.delegate("", "device p256", "ephemeral p256", nil, off)
	m.tamper([]tamper{{name: "a key that is no point of the curve", of: signs, stage: atVerify, reason: proof.Malformed, edit: set("Limpet-Delegation", d.Text)}})
	d = m.delegate("", "device p256", "ephemeral p256", nil, nil)
	der := m.der(m.named("device p256"), unhex(m, d.Statement))
	d.Text = ":" + b64(unhex(m, d.Statement)) + ":;sig=:" + b64(der) + ":"
	m.tamper([]tamper{{name: "a delegation signed in DER", of: signs, stage: atVerify, reason: proof.Invalid, edit: set("Limpet-Delegation", d.Text)}})
}

func (m *maker) refuseLogins() {
	const ec, ed, v15 = "login, ECDSA P-256", "login, Ed25519", "login, RSA PKCS #1 v1.5"
	const bad, invalid = proof.Malformed, proof.Invalid
	device := m.named("device p256")
	text := ":" + b64(unhex(m, device.SPKI)) + ":"
	offer := func(value string) func(*request) { return set("Limpet-Device", value) }
	with := func(name, algorithm string) (func(*request), func(*signing)) {
		k := m.named(name)
		field := ":" + b64(unhex(m, k.SPKI)) + ":"
		if strings.HasPrefix(algorithm, "rsa-") {
			field += ";alg=" + algorithm
		}
		return offer(field), func(s *signing) {
			replace("keyid=", quoted("keyid", k.KeyID))(s)
			replace("alg=", quoted("alg", algorithm))(s)
			s.sign = func(b []byte) []byte { return m.sign(k, k.Algorithm, b) }
		}
	}
	editP384, signP384 := with("device p384", "ecdsa-p384-sha384")
	editWeak, signWeak := with("device rsa-1024", "rsa-v1_5-sha256")
	offCurve := unhex(m, device.SPKI)
	offCurve[len(offCurve)-1] ^= 1
	m.tamper([]tamper{
		{name: "login without a signature", of: ec, stage: atRead, reason: bad, after: remove("Signature-Input", "Signature")},
		{name: "login, the device key not covered", of: ec, stage: atRead, reason: bad, signing: drop(`"limpet-device"`)},
		{name: "login, @path not covered", of: ec, stage: atRead, reason: bad, signing: drop(`"@path"`)},
		{name: "login, the body's digest not covered", of: ec, stage: atRead, reason: bad, signing: drop(`"content-digest"`)},
		{name: "login, a body without a digest", of: ec, stage: atRead, reason: bad, edit: remove("Content-Digest")},
		{name: "login, Limpet-Device on two lines", of: ec, stage: atRead, reason: bad, after: add("Limpet-Device", text)},
		{name: "login, a point in place of SPKI", of: ec, stage: atRead, reason: bad, edit: offer(":" + b64(unhex(m, device.Public)) + ":")},
		{name: "login, a key that is no point of the curve", of: ec, stage: atRead, reason: bad, edit: offer(":" + b64(offCurve) + ":")},
		{name: "login, a key of P-384", of: ec, stage: atRead, reason: bad, edit: editP384, signing: signP384},
		{name: "login, RSA of 1024 bits", of: v15, stage: atRead, reason: bad, edit: editWeak, signing: signWeak},
		{name: "login, RSA without alg in Limpet-Device", of: v15, stage: atRead, reason: bad, edit: offer(":" + b64(unhex(m, m.named("device rsa-v1_5").SPKI)) + ":")},
		{name: "login, an agreement key", of: ec, stage: atRead, reason: bad, edit: offer(text + ";alg=hmac-sha256")},
		{name: "login, an algorithm of other keys", of: ec, stage: atRead, reason: bad, edit: offer(text + ";alg=ed25519")},
		{name: "login, a parameter of Limpet-Device that is not known", of: ec, stage: atRead, reason: bad, edit: offer(text + ";x=1")},
		{name: "login, level is a string", of: ec, stage: atRead, reason: bad, edit: offer(text + `;level="hardware"`)},
		{name: "login, keyid of another key", of: ec, stage: atRead, reason: bad, signing: replace("keyid=", quoted("keyid", m.named("thief").KeyID))},
		{name: "login, another alg than the key's", of: ec, stage: atRead, reason: bad, signing: replace("alg=", `alg="ed25519"`)},
		{name: "login, no alg", of: ec, stage: atRead, reason: bad, signing: drop("alg=")},
		{name: "login, RSA-PSS with SHA-512 without alg", of: "login, RSA-PSS with SHA-512", stage: atRead, reason: bad, signing: drop("alg=")},
		{name: "login signed by another key", of: ec, stage: atVerify, reason: invalid, signing: func(s *signing) {
			s.sign = func(b []byte) []byte { return m.sign(m.named("thief"), "ecdsa-p256-sha256", b) }
		}},
		{name: "login signed in DER", of: ec, stage: atVerify, reason: invalid, signing: func(s *signing) {
			s.sign = func(b []byte) []byte { return m.der(device, b) }
		}},
		{name: "login, another level", of: ec, stage: atVerify, reason: invalid, after: offer(text + ";level=hardware")},
		{name: "login at another path", of: ec, stage: atVerify, reason: invalid, after: set("@path", "/register")},
		{name: "login at another host", of: ec, stage: atVerify, reason: invalid, after: set("@authority", "evil.example.com")},
		{name: "login with another body", of: ec, stage: atBody, reason: proof.BodyDiffer, after: set("@body", "user=mallory&password=x")},
		{name: "login made 61 seconds before the server's time", of: ed, stage: atVerify, reason: proof.ClockSkew, server: func(at *at) { at.Now = start + 61 }},
		{name: "login made 31 seconds after the server's time", of: ed, stage: atVerify, reason: proof.ClockSkew, server: func(at *at) { at.Now = start - 31 }},
		{name: "login sent again", of: ec, stage: atSpend, reason: proof.NonceSpent},
	})
}
