package httpsig

import (
	"strings"
	"testing"

	"github.com/limpet-auth/limpet/proof"
)

// Component values as RFC 9421, 2.1 and 2.2 gives them, most by its examples.
func TestComponentValue(t *testing.T) {
	fields := header(
		"X-Ows-Header", "  Leading and trailing whitespace.   ",
		"Cache-Control", "max-age=60", "Cache-Control", "    must-revalidate",
		"Example-Dict", "  a=1,    b=2;x=1;y=2,   c=(a   b    c)  ",
		"Example-Header", "value, with, lots", "Example-Header", "of, commas",
		"X-Empty-Header", "",
		"X-Folded", "a\r\n b",
		"X-Broken", "a\nb",
		"Set-Cookie", strings.Repeat("a", maxField+1),
		"X-Long", strings.Repeat("a", maxField/2), "X-Long", strings.Repeat("a", maxField/2),
		"Content-Digest", "a", "Content-Digest", "b",
	)
	base := proof.Message{Method: "POST", Scheme: "https", Authority: "www.example.com", Path: "/path", RawQuery: "param=value", Header: fields}
	query := func(q string) *proof.Message {
		m := base
		m.RawQuery = q
		return &m
	}
	const parameters = "var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace&fa%C3%A7ade%22%3A%20=something"
	const simple = "param=value&foo=bar&baz=batman&qux="
	empty, broken, plain := base, base, base
	empty.Path, empty.RawQuery = "", ""
	broken.Path = "/a\n\"@method\": GET"
	plain.Scheme = ""
	for _, tt := range []struct {
		component string // as in Signature-Input
		m         *proof.Message
		want      string // of the line behind the identifier; a proof.Reason after "!"
	}{
		{`"@method"`, &base, "POST"},
		{`"@target-uri"`, &base, "https://www.example.com/path?param=value"},
		{`"@authority"`, &base, "www.example.com"},
		{`"@scheme"`, &base, "https"},
		{`"@request-target"`, &base, "/path?param=value"},
		{`"@path"`, &base, "/path"},
		{`"@query"`, &base, "?param=value"},
		{`"@path"`, &empty, "/"},
		{`"@query"`, &empty, "?"},
		{`"@request-target"`, &empty, "/"},
		{`"@target-uri"`, &empty, "https://www.example.com/"},
		{`"@target-uri"`, &plain, "!proof_malformed"},
		{`"@scheme"`, &plain, "!proof_malformed"},
		{`"@path"`, &broken, "!proof_malformed"},
		{`"@status"`, &base, "!proof_malformed"},
		{`"@signature-params"`, &base, "!proof_malformed"},
		{`"@unknown"`, &base, "!proof_malformed"},
		{`"@Method"`, &base, "!proof_malformed"},
		{`"@method";bs`, &base, "!proof_malformed"},
		{`"@path";name="a"`, &base, "!proof_malformed"},

		{`"@query-param";name="param"`, query(simple), "value"},
		{`"@query-param";name="baz"`, query(simple), "batman"},
		{`"@query-param";name="qux"`, query(simple), ""},
		{`"@query-param";name="var"`, query(parameters), "this%20is%20a%20big%0Amultiline%20value"},
		{`"@query-param";name="bar"`, query(parameters), "with%20plus%20whitespace"},
		{`"@query-param";name="fa%C3%A7ade%22%3A%20"`, query(parameters), "something"},
		{`"@query-param";name="a"`, query("%61=%7e%41%zz%2"), "%7EA%25zz%252"},
		{`"@query-param";name="a"`, query("&&a&b"), ""},
		{`"@query-param";name=""`, query("&&"), "!proof_malformed"},
		{`"@query-param";name="none"`, query(simple), "!proof_malformed"},
		{`"@query-param";name="a"`, query("a=1&a=2"), "!proof_malformed"},
		{`"@query-param";name="a"`, query("a=1&%61=2"), "!proof_malformed"},
		{`"@query-param"`, query(simple), "!proof_malformed"},
		{`"@query-param";name="a"`, query("a=" + strings.Repeat("b", maxField)), "!header_too_large"},

		{`"x-ows-header"`, &base, "Leading and trailing whitespace."},
		{`"cache-control"`, &base, "max-age=60, must-revalidate"},
		{`"example-dict"`, &base, "a=1,    b=2;x=1;y=2,   c=(a   b    c)"},
		{`"x-empty-header"`, &base, ""},
		{`"example-header"`, &base, "value, with, lots, of, commas"},
		{`"example-header";bs`, &base, ":dmFsdWUsIHdpdGgsIGxvdHM=:, :b2YsIGNvbW1hcw==:"},
		{`"example-header";bs=?1`, &base, ":dmFsdWUsIHdpdGgsIGxvdHM=:, :b2YsIGNvbW1hcw==:"},
		{`"x-folded"`, &base, "!proof_malformed"},
		{`"x-broken"`, &base, "!proof_malformed"},
		{`"x-broken";bs`, &base, ":YQpi:"},
		{`"set-cookie"`, &base, "!header_too_large"},
		{`"x-long"`, &base, "!header_too_large"},        // with what joins the lines
		{`"content-digest"`, &base, "!proof_malformed"}, // twice, and it matters
		{`"x-none"`, &base, "!proof_malformed"},
		{`"Cache-Control"`, &base, "!proof_malformed"},
		{`"cache-control";name="a"`, &base, "!proof_malformed"},
		{`"cache control"`, &base, "!proof_malformed"},
		{`""`, &base, "!proof_malformed"},
		{`"a\"b"`, &base, "!proof_malformed"},
		{`"` + strings.Repeat("a", maxName+1) + `"`, &base, "!proof_malformed"},
	} {
		var in input
		s := scanner{s: "x=(" + tt.component + ")"}
		if done, ok := in.next(&s); done || !ok || in.flaw != "" {
			t.Errorf("%s: %v, %v, %s", tt.component, done, ok, in.flaw)
			continue
		}
		got, err := in.appendBase([]byte("before"), tt.m)
		if reason, refused := strings.CutPrefix(tt.want, "!"); refused {
			if string(reasonOf(err)) != reason {
				t.Errorf("%s: %.80q, %v; want %s", tt.component, got, err, reason)
			}
			continue
		}
		id := strings.TrimSuffix(tt.component, "=?1")
		if want := "before" + id + ": " + tt.want + "\n\"@signature-params\": (" + id + ")"; err != nil || string(got) != want {
			t.Errorf("%s: %v, %.200q\nwant %.200q", tt.component, err, got, want)
		}
	}
}

// A base that many long fields make is bounded.
func TestBaseIsBounded(t *testing.T) {
	m := request(false, false)
	var in input
	for i := range maxComponents {
		name := "x-" + strings.Repeat("a", i+1)
		upper, _ := canonical(new([maxName]byte), name)
		m.Header[string(upper)] = []string{strings.Repeat("b", maxField)}
		in.cover(name)
	}
	if in.flaw != "" {
		t.Fatal(in.flaw)
	}
	base, err := in.appendBase(nil, m)
	if reasonOf(err) != proof.TooLarge || len(base) > maxBase+2*maxField {
		t.Errorf("%d bytes, %v", len(base), err)
	}
}
