package httpsig

import (
	"slices"
	"strings"
	"testing"
)

// Bare items of every type, in RFC 9651's grammar and just outside of it.
func TestItem(t *testing.T) {
	for _, tt := range []struct {
		text string
		kind kind // 0 if it is none
		raw  string
	}{
		{"0", integer, "0"},
		{"-0", integer, "-0"},
		{"007", integer, "007"},
		{"999999999999999", integer, "999999999999999"},
		{"-999999999999999", integer, "-999999999999999"},
		{"1000000000000000", 0, ""},
		{"-", 0, ""},
		{"--1", 0, ""},
		{"+1", 0, ""},
		{"1.5", decimal, "1.5"},
		{"-0.125", decimal, "-0.125"},
		{"999999999999.999", decimal, "999999999999.999"},
		{"1000000000000.0", 0, ""},
		{"1.", 0, ""},
		{".5", 0, ""},
		{"1.2345", 0, ""},
		{`"a b"`, text, "a b"},
		{`""`, text, ""},
		{`"a\"b\\"`, text, `a\"b\\`},
		{`"a\b"`, 0, ""},
		{`"a`, 0, ""},
		{`"a\`, 0, ""},
		{`"a\"`, 0, ""},
		{"\"a\tb\"", 0, ""},
		{"\"a\nb\"", 0, ""},
		{"\"a\x7f\"", 0, ""},
		{"\"\u00fc\"", 0, ""},
		{"a", token, "a"},
		{"*a", token, "*a"},
		{"A:/b!", token, "A:/b!"},
		{"_a", 0, ""},
		{"::", octets, ""},
		{":aGk=:", octets, "aGk="},
		{":aGkh:", octets, "aGkh"},
		{":aA==:", octets, "aA=="},
		{":aGk:", 0, ""},
		{":aGk==:", 0, ""},
		{":a===:", 0, ""},
		{":=:", 0, ""},
		{":aGk=aGk=:", 0, ""},
		{":aG_-:", 0, ""},
		{": aGk=:", 0, ""},
		{":aG\nk=:", 0, ""},
		{":aGk=", 0, ""},
		{":", 0, ""},
		{"?1", boolean, "1"},
		{"?0", boolean, "0"},
		{"?2", 0, ""},
		{"?", 0, ""},
		{"?true", 0, ""},
		{"@1659578233", date, "1659578233"},
		{"@-1", date, "-1"},
		{"@1.5", 0, ""},
		{"@", 0, ""},
		{`%"caf%c3%a9"`, display, "caf%c3%a9"},
		{`%"caf%C3%A9"`, 0, ""},
		{`%"a%2"`, 0, ""},
		{`%"a`, 0, ""},
		{"%\"\x01\"", 0, ""},
		{`%a`, 0, ""},
		{"%", 0, ""},
		{"", 0, ""},
		{"(", 0, ""},
		{",", 0, ""},
	} {
		s := scanner{s: tt.text}
		v, ok := s.item()
		ok = ok && s.end()
		if ok != (tt.kind != 0) || ok && v != (item{tt.kind, tt.raw}) {
			t.Errorf("%q: %v, %v; want %d, %q", tt.text, v, ok, tt.kind, tt.raw)
		}
	}
}

// Dictionaries, of which only the keys are told here.
func TestDictionary(t *testing.T) {
	for _, tt := range []struct {
		text string
		keys string // "-" if it is none
	}{
		{"", ""},
		{"  ", ""},
		{"a=1", "a"},
		{" a=1 ", "a"},
		{"a=1, b;x=?0;y, *c=(\"a\" b;q=1.0 :aGk=:);z", "a b *c"},
		{"a=1 \t,\t b", "a b"},
		{"a=1,b=2", "a b"},
		{"a=1\t", "a"},
		{"a", "a"},
		{"a; x", "a"},
		{"a=()", "a"},
		{"a=( )", "a"},
		{"a=(  b   c  )", "a"},
		{"a.b-c_d*9", "a.b-c_d*9"},
		{"a=1, a=2", "a a"}, // to overwrite or to refuse is for those who know the key
		{"\ta=1", "-"},
		{"a=1,", "-"},
		{"a=1, ", "-"},
		{",a=1", "-"},
		{"a=1,,b", "-"},
		{"a=1 b=2", "-"},
		{"a=", "-"},
		{"a =1", "-"},
		{"a= 1", "-"},
		{"a;", "-"},
		{"a;x=", "-"},
		{"a; \tx", "-"},
		{"a ;x", "-"},
		{"A=1", "-"},
		{"1a=1", "-"},
		{"-a", "-"},
		{"a=(", "-"},
		{"a=(b", "-"},
		{"a=(b c", "-"},
		{"a=(b,c)", "-"},
		{"a=(b\tc)", "-"},
		{"a=(\"b\"\"c\")", "-"},
		{"a=((b))", "-"},
		{"a=(b;)", "-"},
		{"a=1\n, b", "-"},
		{"a=\x00", "-"},
		{"ä", "-"},
	} {
		var keys []string
		got := ""
		for s := (scanner{s: tt.text}); ; {
			key, done, ok := s.member()
			if ok && done {
				got = strings.Join(keys, " ")
				break
			}
			if !ok || !s.rest() {
				got = "-"
				break
			}
			keys = append(keys, key)
		}
		if got != tt.keys {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.keys)
		}
	}
}

// Fields that are byte sequences with parameters.
func TestParseBytes(t *testing.T) {
	for _, tt := range []struct {
		text, bytes string
		params      []attribute
		ok          bool
	}{
		{":aGk=:", "hi", nil, true},
		{"  :aGk=:  ", "hi", nil, true},
		{":aGk=:;a;b=1; c=\"x\"", "hi", []attribute{{"a", item{boolean, "1"}}, {"b", item{integer, "1"}}, {"c", item{text, "x"}}}, true},
		{"::", "", nil, true},
		{":aGl=:", "", nil, false}, // bits in the padding
		{":aGk=:, :aGk=:", "", nil, false},
		{":aGk=: a", "", nil, false},
		{":aGk=:;", "", nil, false},
		{"aGk=", "", nil, false},
		{"1", "", nil, false},
		{"", "", nil, false},
		{":aGk=:" + strings.Repeat(";a", maxAttributes+1), "", nil, false},
	} {
		b, params, ok := parseBytes(tt.text)
		if ok != tt.ok || ok && (string(b) != tt.bytes || !slices.Equal(params, tt.params)) {
			t.Errorf("%q: %q, %v, %v", tt.text, b, params, ok)
		}
	}
}
