package limpet

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/store/memstore"
)

func TestSessionToken(t *testing.T) {
	for _, tt := range []struct {
		name    string
		session Session
		header  http.Header
		want    string
		reason  proof.Reason
	}{
		{"none", Bearer(), http.Header{}, "", ""},
		{"bearer", Bearer(), http.Header{"Authorization": {"Bearer abc"}}, "abc", ""},
		{"scheme in lower case", Bearer(), http.Header{"Authorization": {"bearer abc"}}, "abc", ""},
		{"more space", Bearer(), http.Header{"Authorization": {"Bearer   abc "}}, "abc", ""},
		{"another scheme", Bearer(), http.Header{"Authorization": {"Basic abc"}}, "", ""},
		{"two headers", Bearer(), http.Header{"Authorization": {"Bearer a", "Bearer b"}}, "", proof.Malformed},
		{"too large", Bearer(), http.Header{"Authorization": {"Bearer " + strings.Repeat("a", 8193)}}, "", proof.TooLarge},
		{"cookie is no bearer", Bearer(), http.Header{"Cookie": {"sid=abc"}}, "", ""},

		{"two tokens", Bearer(), http.Header{"Authorization": {"Bearer a b"}}, "", proof.Malformed},
		{"trailing comma", Bearer(), http.Header{"Authorization": {"Bearer abc,"}}, "", proof.Malformed},
		{"quoted bearer", Bearer(), http.Header{"Authorization": {`Bearer "abc"`}}, "", proof.Malformed},
		{"tab", Bearer(), http.Header{"Authorization": {"Bearer\tabc"}}, "", proof.Malformed},
		{"no-break space", Bearer(), http.Header{"Authorization": {"Bearer\u00a0abc"}}, "", proof.Malformed},
		{"scheme alone", Bearer(), http.Header{"Authorization": {"Bearer"}}, "", proof.Malformed},
		{"DPoP", Bearer(), http.Header{"Authorization": {"DPoP abc"}}, "abc", ""},
		{"second scheme DPoP", Bearer(), http.Header{"Authorization": {"x, DPoP abc"}}, "", proof.Malformed},
		{"second scheme", Bearer(), http.Header{"Authorization": {"Basic x, Bearer abc"}}, "", proof.Malformed},

		{"name in capitals", Cookie("my_sid"), http.Header{"Cookie": {"MY_SID=abc"}}, "abc", ""},
		{"name after a no-break space", Cookie("my_sid"), http.Header{"Cookie": {"\u00a0my_sid=abc"}}, "", proof.Malformed},
		{"name after a Latin-1 space", Cookie("my_sid"), http.Header{"Cookie": {"\xa0my_sid=abc"}}, "", proof.Malformed},
		{"after a comma", Cookie("my_sid"), http.Header{"Cookie": {"x=1, my_sid=abc"}}, "", proof.Malformed},
		{"after white space", Cookie("my_sid"), http.Header{"Cookie": {"x=1 my_sid=abc"}}, "", proof.Malformed},
		{"a dot that PHP reads as _", Cookie("my_sid"), http.Header{"Cookie": {"my.sid=abc"}}, "", proof.Malformed},
		{"end of another name", Cookie("sid"), http.Header{"Cookie": {"connect.sid=x; sid=abc"}}, "abc", ""},
		{"escaped twice", Cookie("sid"), http.Header{"Cookie": {"sid=a%2562c"}}, "abc", ""},
		{"escaped without end", Cookie("sid"), http.Header{"Cookie": {"sid=%252525252562"}}, "", proof.Malformed},
		{"octal escape", Cookie("sid"), http.Header{"Cookie": {`sid="\141bc"`}}, "", proof.Malformed},
		{"escape", Cookie("sid"), http.Header{"Cookie": {`sid="\abc"`}}, "", proof.Malformed},
		{"white space inside", Cookie("sid"), http.Header{"Cookie": {"sid=a%20bc"}}, "", proof.Malformed},
		{"cookie", Cookie("sid"), http.Header{"Cookie": {"a=b; sid=abc; c=d"}}, "abc", ""},
		{"no such cookie", Cookie("sid"), http.Header{"Cookie": {"a=b; xsid=abc; sidx=1"}}, "", ""},
		{"in the second header", Cookie("sid"), http.Header{"Cookie": {"a=b", "sid=abc"}}, "abc", ""},
		{"quoted", Cookie("sid"), http.Header{"Cookie": {`sid="abc"`}}, "abc", ""},
		{"percent-encoded", Cookie("sid"), http.Header{"Cookie": {"sid=a%62c"}}, "abc", ""},
		{"percent-encoded name", Cookie("sid"), http.Header{"Cookie": {"s%69d=abc"}}, "abc", ""},
		{"white space", Cookie("sid"), http.Header{"Cookie": {"a=b;\tsid =\tabc "}}, "abc", ""},
		{"twice the same", Cookie("sid"), http.Header{"Cookie": {"sid=abc; sid=abc"}}, "abc", ""},
		{"twice, another spelling", Cookie("sid"), http.Header{"Cookie": {`sid=abc; sid="a%62c"`}}, "abc", ""},
		{"two values", Cookie("sid"), http.Header{"Cookie": {"sid=abc; sid=def"}}, "", proof.Malformed},
		{"two headers, two values", Cookie("sid"), http.Header{"Cookie": {"sid=abc", "sid=def"}}, "", proof.Malformed},
		{"broken percent-encoding", Cookie("sid"), http.Header{"Cookie": {"sid=a%zz"}}, "a%zz", ""},
		{"value with =", Cookie("sid"), http.Header{"Cookie": {"sid=abc=="}}, "abc==", ""},
		{"cookie too large", Cookie("sid"), http.Header{"Cookie": {"sid=" + strings.Repeat("a", 8193)}}, "", proof.TooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.session.Token(tt.header)
			if got != tt.want && err == nil || reasonOf(err) != tt.reason {
				t.Errorf("%q, %v; want %q, %q", got, err, tt.want, tt.reason)
			}
		})
	}
}

// However a token is spelled on the way in, it is the session that was bound.
func TestSpellingsShareASession(t *testing.T) {
	s := Cookie("sid")
	for _, token := range []string{"abc", "a%62c", "a%2562c", "abc%252Fdef", "a+b/c=", "eyJ.eyJ._-~"} {
		want := s.ID(token)
		for _, spelled := range []string{token, `"` + token + `"`} {
			got, err := s.Token(http.Header{"Cookie": {"sid=" + spelled}})
			if err != nil || s.ID(got) != want {
				t.Errorf("%q as %q is another session: %q, %v", token, spelled, got, err)
			}
		}
	}
}

func TestParseID(t *testing.T) {
	id := Bearer().ID("token")
	if got, err := ParseID(id.String()); err != nil || got != id {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "abc", id.String() + "A", id.String()[:42] + "=", "../../../../etc/passwd"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q is an ID", bad)
		}
	}
}

func FuzzCookieToken(f *testing.F) {
	f.Add("a=b; sid=abc")
	f.Add(`sid="a%62c"; sid=abc`)
	f.Add("sid=;;=; sid")
	f.Fuzz(func(t *testing.T, line string) {
		s := Cookie("sid")
		token, err := s.Token(http.Header{"Cookie": {line}})
		if err != nil {
			return
		}
		if len(token) > maxToken {
			t.Fatal("token over the limit")
		}
		if r := (&http.Request{Header: http.Header{"Cookie": {line}}}); token == "" {
			if c, err := r.Cookie("sid"); err == nil && c.Value != "" {
				t.Fatalf("net/http finds %q, we find none in %q", c.Value, line)
			}
		}
	})
}

func FuzzBearerToken(f *testing.F) {
	f.Add("Bearer abc")
	f.Add("bearer  abc ")
	f.Add("Basic x, Bearer abc")
	f.Fuzz(func(t *testing.T, line string) {
		token, err := Bearer().Token(http.Header{"Authorization": {line}})
		if err == nil && token != "" && strings.Fields(line)[1] != token {
			t.Fatalf("we read %q in %q, an app that splits reads %q", token, line, strings.Fields(line)[1])
		}
		if err == nil && token == "" && len(strings.Fields(line)) > 1 && strings.EqualFold(strings.Fields(line)[0], "bearer") {
			t.Fatalf("we read no token in %q", line)
		}
	})
}

// FuzzIssued: a cookie that net/http would keep is found.
func FuzzIssued(f *testing.F) {
	f.Add("sid=abc; Path=/; HttpOnly")
	f.Add("sid=; Max-Age=0")
	f.Add("=sid=abc; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=1")
	f.Fuzz(func(t *testing.T, line string) {
		token, err := Cookie("sid").Issued(http.Header{"Set-Cookie": {line}})
		if err != nil {
			t.Fatalf("one cookie is two in %q", line)
		}
		c, err := http.ParseSetCookie(line)
		if err == nil && c.Name == "sid" && c.Value != "" && c.MaxAge >= 0 && c.Expires.IsZero() && Cookie("sid").canonical(c.Value) != "" && token == "" {
			t.Fatalf("net/http finds %q, we find none in %q", c.Value, line)
		}
	})
}

// FuzzElsewhere: where net/http finds a token in the query or in Basic, so do we.
func FuzzElsewhere(f *testing.F) {
	f.Add("/a;sid=abc?sid=abc", "Basic YWJjOmRlZg==")
	f.Add("/?a=b&SID=%61bc", "Token token=abc")
	f.Add("/%3bsid=a", "abc")
	f.Fuzz(func(t *testing.T, target, authorization string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r := &http.Request{URL: u, Header: http.Header{"Authorization": {authorization}}}
		for _, s := range []Session{Cookie("sid"), Bearer()} {
			m := incoming.Message(r)
			found := s.elsewhere(&m, "")
			for _, token := range found {
				if token == "" || len(token) > maxToken {
					t.Fatalf("%q of %d bytes", token, len(token))
				}
			}
			want := u.Query().Get("sid")
			if s == Bearer() {
				_, want, _ = r.BasicAuth()
			}
			if want != "" && len(want) <= maxToken && spellable(s.canonical(want)) && !slices.Contains(found, want) {
				t.Fatalf("%q is not among %q of %q, %q", want, found, target, authorization)
			}
		}
	})
}

func FuzzDecodeBinding(f *testing.F) {
	f.Add((&Binding{Level: None, User: "alice"}).encode())
	f.Fuzz(func(t *testing.T, rec []byte) {
		if b, err := decodeBinding(ID{}, rec); err == nil && b.Level != None && b.device == nil {
			t.Fatal("a bound session without a device key")
		}
	})
}

func FuzzDecodeEphemeral(f *testing.F) {
	g, err := New(Config{Session: Bearer(), Store: memstore.New(nil), SealKey: make([]byte, 32)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{recordVersion, byte(proof.HMACSHA256)})
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, rec []byte) {
		e, err := g.decodeEphemeral(0, "e:{session}0", rec)
		if err == nil && (e.key.MAC == nil) == (e.key.Public == nil) {
			t.Fatal("a key that is neither or both of a MAC and a signing key")
		}
	})
}

// TestElsewhereIsBounded: who is refused for too many tokens costs no more than
// those that are looked up.
func TestElsewhereIsBounded(t *testing.T) {
	var query strings.Builder
	for i := range 4000 {
		fmt.Fprintf(&query, "&sid=%d", i)
	}
	m := &proof.Message{Path: "/;" + strings.ReplaceAll(query.String(), "&", ";"), RawQuery: query.String()}
	if n := len(Cookie("sid").elsewhere(m, "")); n != maxElsewhere+1 {
		t.Errorf("%d tokens are compared, want %d", n, maxElsewhere+1)
	}
}
