package vectors_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
)

const (
	document     = "../../docs/wire.md"
	exampleBegin = "<!-- example: limpettest/vectors, TestDocumentedExample -update -->\n"
	exampleEnd   = "<!-- end of example -->\n"
)

// TestDocumentedExample keeps the example in the documentation what the vectors
// say.
func TestDocumentedExample(t *testing.T) {
	doc, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(doc, []byte(exampleBegin))
	var after []byte
	if ok {
		if _, after, ok = bytes.Cut(rest, []byte(exampleEnd)); !ok {
			t.Fatal("the example does not end")
		}
	} else {
		before = append(bytes.TrimRight(before, "\n"), "\n\n## Example\n\n"...)
	}
	want := bytes.Join([][]byte{before, after}, []byte(exampleBegin+example(t)+exampleEnd))
	switch {
	case bytes.Equal(doc, want):
	case !*update:
		t.Error("docs/wire.md shows another example than the vectors: run the test with -update")
	default:
		if err := os.WriteFile(document, want, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Log("docs/wire.md is written anew")
	}
}

func example(t *testing.T) string {
	f := readHTTPSig(t)
	login := named(t, f.Logins, func(r *request) string { return r.Name }, "login, ECDSA P-256")
	first := named(t, f.Requests, func(r *request) string { return r.Name }, "first request")
	d := f.delegation(t, first.Delegation)
	device, ephemeral, srv := keyNamed(t, f.Keys, d.Device), keyNamed(t, f.Keys, d.Key), keyNamed(t, f.Keys, f.Server.Key)

	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n\n", args...) }
	block := func(lines ...string) { say("```\n%s\n```", strings.Join(lines, "\n")) }

	say("A login and the first request after it, with test keys. `limpettest/vectors/httpsig.json` has these values and those of many\n" +
		"other requests, and requests that must be refused; `go doc github.com/limpet-auth/limpet/limpettest/vectors` explains it.")
	block(
		"device key     private  "+device.Private,
		"               point    "+device.Public,
		"ephemeral key  private  "+ephemeral.Private,
		"               point    "+ephemeral.Public,
		"server key     private  "+srv.Private,
		"               point    "+srv.Public,
	)
	say("The client logs in:")
	block(http(login)...)
	say("The device key has signed, with ECDSA over SHA-256, these lines with a line feed between them and none at the end:")
	block(login.Base...)
	say("`keyid` is SHA-256 of this text, in base64url:")
	block(device.JWK)
	say("The app makes the session token `%s`, and the server answers:", f.Session.Token)
	block("HTTP/1.1 200 OK", "Limpet-Key: "+f.Server.LoginText)
	say("The session's ID, SHA-256 of the token, is `%s`. The client\nmakes the ephemeral key and has the device key sign this statement:", f.Session.ID)
	block(statement(t, d)...)
	say("The signature, r‖s:")
	block(d.Signature)
	say("The client agrees with the server's key, whose name is `%s`, the start of SHA-256 of its point:", d.Agreement.ID)
	block(
		"Z                   "+d.Agreement.Z,
		"SHA-256(statement)  "+d.Agreement.Statement,
		"HMAC key            "+d.Agreement.Secret,
	)
	say("The HMAC key is HKDF-SHA256 of Z without salt, with this info:")
	block(info(t, d)...)
	say("Its first request brings the delegation, and is proven already:")
	block(http(first)...)
	say("`Signature` is HMAC-SHA256, with that key, of")
	block(first.Base...)
	_, tag, _ := strings.Cut(first.Signature, ":")
	mac, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(tag, ":"))
	if err != nil {
		t.Fatal(err)
	}
	say("which is")
	block(hex.EncodeToString(mac))
	return b.String()
}

// http writes a request as HTTP/1.1 does.
func http(r *request) []string {
	target := r.Path
	if r.Query != "" {
		target += "?" + r.Query
	}
	lines := []string{r.Method + " " + target + " HTTP/1.1", "Host: " + r.Authority}
	for _, f := range r.Fields {
		lines = append(lines, f[0]+": "+f[1])
	}
	if r.Body != "" {
		lines = append(lines, fmt.Sprintf("Content-Length: %d", len(r.Body)), "", r.Body)
	}
	return lines
}

// part is a run of bytes and what it is.
type part struct {
	size int
	what string
}

// annotated writes bytes in hex, behind what each part is.
func annotated(t *testing.T, b []byte, parts []part) (lines []string) {
	t.Helper()
	for _, p := range parts {
		if p.size > len(b) {
			t.Fatalf("%s: only %d bytes are left", p.what, len(b))
		}
		lines = append(lines, fmt.Sprintf("%-27s %x", p.what, b[:p.size]))
		b = b[p.size:]
	}
	if len(b) > 0 {
		t.Fatalf("%d bytes are left", len(b))
	}
	return lines
}

func statement(t *testing.T, d *delegation) []string {
	t.Helper()
	return annotated(t, unhex(t, d.Statement), []part{
		{20, `"limpet delegation 1" 0x00`},
		{1, fmt.Sprintf("algorithm: %s", d.Algorithm)},
		{8, fmt.Sprintf("not before: %d", d.NotBefore)},
		{8, fmt.Sprintf("expires: %d", d.Expires)},
		{32, "session ID"},
		{2, fmt.Sprintf("length of the audience: %d", len(d.Audience))},
		{len(d.Audience), fmt.Sprintf("audience: %s", d.Audience)},
		{65, "ephemeral point"},
	})
}

func info(t *testing.T, d *delegation) []string {
	t.Helper()
	return annotated(t, unhex(t, d.Agreement.Info), []part{
		{21, `"limpet request key 1" 0x00`}, {32, "SHA-256(statement)"}, {65, "ephemeral point"}, {65, "server point"},
	})
}
