package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
)

// TestSmuggledHeaders: what two readers could read in two ways is refused.
func TestSmuggledHeaders(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	for _, name := range []string{"data", "data-sig", "accel-pub-id"} {
		h := p.proof(e, stamp())
		h.Add(p.prefix+name, h.Get(p.prefix+name))
		wantRefused(t, "two "+name, p.get(t, h), 400, "proof_malformed")
	}
	for _, name := range []string{"data", "data-sig", "accel-pub", "accel-pub-type", "accel-pub-sig"} {
		h := p.introduction(newEphemeral("ecdh"), stamp())
		h.Add(p.prefix+name, "x")
		wantRefused(t, "two "+name, p.get(t, h), 400, "proof_malformed")
	}
	rename := func(h http.Header, to func(string) string) http.Header {
		renamed := http.Header{}
		for name, vals := range h {
			renamed[to(name)] = vals
		}
		return renamed
	}
	prefix := func(name string) string {
		return http.CanonicalHeaderKey(strings.Replace(strings.ToLower(name), boundToken, dbcs, 1))
	}
	h := p.proof(e, stamp())
	for name, vals := range rename(p.proof(e, stamp()), prefix) {
		h[name] = vals
	}
	wantRefused(t, "a proof under each prefix", p.get(t, h), 400, "proof_malformed")
	h = p.proof(e, stamp())
	h.Set(dbcs+"data-sig", h.Get(boundToken+"data-sig"))
	h.Del(boundToken + "data-sig")
	wantRefused(t, "a proof over both prefixes", p.get(t, h), 400, "proof_malformed")

	underscores := func(name string) string { return strings.ReplaceAll(name, "-", "_") }
	wantRefused(t, "underscores", p.get(t, rename(p.proof(e, stamp()), underscores)), 401, "proof_required")
	h = p.proof(e, stamp())
	for name, vals := range rename(newPeer(t, shared, "ecdsa").introduction(newEphemeral("ecdh"), stamp()), underscores) {
		h[name] = vals
	}
	wantAdmitted(t, "a good proof beside one with underscores", p.get(t, h))

	for _, name := range []string{"X-Forwarded-For", "X-Real-Ip", "Forwarded", "X-Forwarded-Host", "X-Original-Url", "X-Rewrite-Url", "X-Http-Method-Override", "X-Limpet-User", "X-Limpet-Level"} {
		wantRefused(t, name, p.get(t, http.Header{name: {"127.0.0.1"}}), 401, "proof_required")
	}
}

// TestTwoDeviceKeysAtLogin: a login cannot be read in two ways either.
func TestTwoDeviceKeysAtLogin(t *testing.T) {
	t.Parallel()
	p := newPeer(t, shared, "ecdsa")
	q := *p
	q.prefix, q.device = dbcs, newKey("ecdsa", nil)
	both := p.offer()
	for name, vals := range q.offer() {
		both[name] = vals
	}
	wantRefused(t, "a device key under each prefix", p.send(t, "POST", "/login", both, p.credentials()), 400, "proof_malformed")
	twice := p.offer()
	twice.Add(p.prefix+"hw-pub", p.b64(q.device.public()))
	wantRefused(t, "two device keys", p.send(t, "POST", "/login", twice, p.credentials()), 400, "proof_malformed")
}

// TestSmuggledOnTheWire sends what net/http's client would not.
func TestSmuggledOnTheWire(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	h := p.proof(e, stamp())
	var lines strings.Builder
	h.Write(&lines)
	token := "Authorization: Bearer " + p.token + "\r\n"
	for name, head := range map[string]string{
		"space before the colon":    token + strings.ReplaceAll(lines.String(), ": ", " : "),
		"bare CR in a name":         token + strings.ReplaceAll(lines.String(), "X-Rpc", "X-\rRpc"),
		"NUL in a value":            token + strings.ReplaceAll(lines.String(), ": ", ": \x00"),
		"proof in the trailer":      token + "Trailer: " + p.prefix + "data\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + lines.String(),
		"length and chunks":         token + "Content-Length: 4\r\nTransfer-Encoding: chunked, identity\r\n" + lines.String(),
		"two lengths":               token + "Content-Length: 4\r\nContent-Length: 0\r\n" + lines.String(),
		"two hosts":                 token + "Host: a.example\r\n" + lines.String(),
		"token in a folded header":  "X-A: b\r\n " + token,
		"token under an underscore": strings.Replace(token, "Authorization", "_Authorization", 1) + lines.String(),
	} {
		status, body := raw(t, shared, "GET /authenticated HTTP/1.1\r\nHost: limpet.example\r\n"+head+"\r\n")
		if status < 400 || status == 500 {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	wantAdmitted(t, "the proof as it was", p.get(t, h))
}

// raw sends a request as it is written and returns the answer's status and body.
func raw(t testing.TB, base, request string) (int, string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("answer to %.60q: %v", request, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestBearerSpellings: a bound session is bound however its token is written,
// also where sessions that are not bound pass.
func TestBearerSpellings(t *testing.T) {
	t.Parallel()
	lenient := newGuarded(t, limpet.Config{})
	for _, base := range []string{shared, lenient.url} {
		p, e := ready(t, base, "ecdsa", "ecdh")
		for _, form := range []string{
			"Bearer %s", "bearer %s", "BEARER %s", "Bearer  %s", "Bearer %s ", "Bearer \t%s", "Bearer\t%s",
			"Bearer %s x", "Bearer %s\tx", "Bearer\u00a0%s", "Bearer\xa0%s", "Bearer %s,", "Bearer %s, Bearer x", "Bearer x, Bearer %s", `Bearer "%s"`,
		} {
			// An app may take the second word of it, or what precedes a comma.
			a := p.get(t, http.Header{"Authorization": {fmt.Sprintf(form, p.token)}})
			if a.status != 401 && a.status != 400 {
				t.Errorf("%q without a proof: %v", form, a)
			}
		}
		h := p.proof(e, stamp())
		h["Authorization"] = []string{"bearer " + p.token}
		wantAdmitted(t, "lower case, with a proof", p.get(t, h))
		for name, vals := range map[string][]string{
			"twice":             {"Bearer " + p.token, "Bearer " + p.token},
			"another before it": {"Bearer x", "Bearer " + p.token},
			"another after it":  {"Bearer " + p.token, "Bearer x"},
			"basic before it":   {"Basic eDp5", "Bearer " + p.token},
		} {
			wantRefused(t, name, p.get(t, http.Header{"Authorization": vals}), 400, "proof_malformed")
		}
	}
}

// TestCookieSpellings is the same for cookies, with an app that takes sessions
// that are not bound.
func TestCookieSpellings(t *testing.T) {
	t.Parallel()
	g := newGuarded(t, limpet.Config{Session: limpet.Cookie("session")})
	p := newPeer(t, g.url, "ecdsa")
	token := p.token
	p.token = ""
	escaped := ""
	for i := range len(token) {
		escaped += fmt.Sprintf("%%%02X", token[i])
	}
	octal := fmt.Sprintf(`\%03o%s`, token[0], token[1:])
	for name, cookies := range map[string][]string{
		"plain":             {"session=" + token},
		"quoted":            {`session="` + token + `"`},
		"percent-encoded":   {"session=" + escaped},
		"lower-case hex":    {"session=" + strings.ToLower(escaped)},
		"one character":     {"session=" + escaped[:3] + token[1:]},
		"quoted, encoded":   {`session="` + escaped + `"`},
		"encoded quotes":    {"session=%22" + token + "%22"},
		"name encoded":      {"%73ession=" + token},
		"among others":      {"a=b; session=" + token + "; c=d"},
		"no space":          {"a=b;session=" + token},
		"white space":       {"a=b;  session = " + token + " "},
		"second header":     {"a=b", "session=" + token},
		"same twice":        {"session=" + token + `; session="` + token + `"`},
		"octal escape":      {`session="` + octal + `"`},
		"backslash":         {`session="\` + token + `"`},
		"two, bound first":  {"session=" + token + "; session=other"},
		"two, bound second": {"session=other; session=" + token},
		"two headers":       {"session=other", "session=" + token},
		"two, one encoded":  {"session=other; %73ession=" + escaped},
		"empty first":       {"session=; session=" + token},
	} {
		a := p.get(t, http.Header{"Cookie": cookies})
		if a.status != 401 && a.status != 400 {
			t.Errorf("%s: %v, want it refused", name, a)
		}
	}
	if a := p.get(t, http.Header{"Cookie": {"session=another"}}); !strings.Contains(a.body, `"level":"none"`) {
		t.Errorf("a session that is not bound: %v", a)
	}
}

// TestMalformed: nothing that can be sent does more than be refused, always as
// JSON of one shape.
func TestMalformed(t *testing.T) {
	t.Parallel()
	p, e := ready(t, shared, "ecdsa", "ecdh")
	long := strings.Repeat("A", 9<<10)
	garbage := []string{"", "?", "=", "====", "A", "AAAAA", "\x80\xff", "null", "0", "-1", "9223372036854775808-x", "99999999999999999999", "-", "{}", "%00", "é", long}
	for _, name := range []string{"data", "data-sig", "accel-pub-id"} {
		for _, val := range garbage {
			refused(t, fmt.Sprintf("%s: %.20q", name, val), p.get(t, p.with(p.proof(e, stamp()), name, val)))
		}
	}
	for _, name := range []string{"data", "data-sig", "accel-pub", "accel-pub-type", "accel-pub-sig"} {
		for _, val := range garbage {
			refused(t, fmt.Sprintf("introduction's %s: %.20q", name, val), p.get(t, p.with(p.introduction(newEphemeral("ecdh"), stamp()), name, val)))
		}
	}
	// A delegated key that is no key.
	for _, typeName := range ephemeralTypes {
		for _, text := range []string{"AA==", p.b64(make([]byte, 32))[:40], p.b64(make([]byte, 65)), p.b64([]byte("\x04" + strings.Repeat("\xff", 64))), p.b64(make([]byte, 2000))} {
			h := p.introduction(newEphemeral(typeName), stamp())
			h.Set(p.prefix+"accel-pub", text)
			h.Set(p.prefix+"accel-pub-sig", p.b64(p.device.sign([]byte(text))))
			refused(t, typeName+" key "+text[:4], p.get(t, h))
		}
	}
	for _, name := range []string{"hw-pub", "hw-pub-type"} {
		for _, val := range garbage[1:] {
			a := p.send(t, "POST", "/login", p.with(p.offer(), name, val), p.credentials())
			refused(t, fmt.Sprintf("%s: %.20q", name, val), a)
		}
	}
	for _, path := range []string{"/login", "/register"} {
		for _, body := range []string{"", "{", "null", "[]", `"x"`, "0", `{"username":1,"password":2}`, `{"username":["a"]}`, `{"username":"","password":""}`, `{"username":"x"}`, `{"password":"x"}`, "\xff\xfe", `{"username":"a\u0000b","password":"x"}{`, strings.Repeat("[", 10000), `{"username":"` + long + `","password":"x"}`} {
			a, err := do("POST", shared+path, http.Header{}, body)
			if err != nil {
				t.Fatal(err)
			}
			refused(t, fmt.Sprintf("%s %.30q", path, body), a)
		}
	}
	wantAdmitted(t, "the server afterwards", p.get(t, p.proof(e, stamp())))
}

func refused(t testing.TB, what string, a answer) {
	t.Helper()
	switch a.status {
	case 400, 401, 413, 431:
		wantRefused(t, what, a, a.status, "")
	default:
		t.Errorf("%s: got %v", what, a)
	}
}
