package httpsig

import "strings"

// scanner reads one structured field (RFC 9651, 4.2) from s. Its methods report
// false where the text breaks the grammar; the field is then refused as a whole.
type scanner struct {
	s string
	i int // s[:i] is read
}

// kind is a type of bare items (RFC 9651, 3.3).
type kind uint8

const (
	integer kind = iota + 1
	decimal
	text
	token
	octets
	boolean
	date
	display
)

// item is a bare item. raw is its text: of an integer with the sign, of a string
// between the quotes and with its escapes, of a byte sequence the base64, of a
// boolean "0" or "1".
type item struct {
	kind kind
	raw  string
}

// Classes of characters. The grammar is ASCII: all others are in none.
const (
	digit    = 1 << iota
	lower    // a to z
	keyByte  // of keys after the first character
	tokByte  // of tokens after the first character
	b64Byte  // of base64 but for the padding
	urlByte  // of base64url
	nonceOK  // of nonces
	nameByte // of field names, in lower case (RFC 9110, 5.6.2)
	textByte // of strings, but for those that stand for something else there
)

var class = func() (t [256]uint16) {
	mark := func(chars string, classes uint16) {
		for i := range len(chars) {
			t[chars[i]] |= classes
		}
	}
	mark("0123456789", digit|keyByte|tokByte|b64Byte|urlByte|nonceOK|nameByte)
	mark("abcdefghijklmnopqrstuvwxyz", lower|keyByte|tokByte|b64Byte|urlByte|nonceOK|nameByte)
	mark("ABCDEFGHIJKLMNOPQRSTUVWXYZ", tokByte|b64Byte|urlByte|nonceOK)
	mark("_-.*", keyByte)
	mark("!#$%&'*+-.^_`|~:/", tokByte)
	mark("+/", b64Byte)
	mark("-_", urlByte)
	mark("-._~+/=", nonceOK)
	mark("!#$%&'*+-.^_`|~", nameByte)
	for c := ' '; c <= '~'; c++ {
		if c != '"' && c != '\\' {
			t[c] |= textByte
		}
	}
	return t
}()

// all reports whether every character of s is in one of the classes.
func all(s string, classes uint16) bool {
	for i := range len(s) {
		if class[s[i]]&classes == 0 {
			return false
		}
	}
	return true
}

// trim returns s without the white space that may surround a field's value.
func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

func (s *scanner) end() bool { return s.i == len(s.s) }

// at reports whether c is next.
func (s *scanner) at(c byte) bool { return s.i < len(s.s) && s.s[s.i] == c }

// skip reads c if it is next.
func (s *scanner) skip(c byte) bool {
	if !s.at(c) {
		return false
	}
	s.i++
	return true
}

// spaces reads what may stand between the parts of a value: no tabs.
func (s *scanner) spaces() {
	for s.at(' ') {
		s.i++
	}
}

// run reads characters of the classes.
func (s *scanner) run(classes uint16) string {
	rest := s.s[s.i:]
	n := 0
	for n < len(rest) && class[rest[n]]&classes != 0 {
		n++
	}
	s.i += n
	return rest[:n]
}

// member reads the key of the next member of a dictionary (RFC 9651, 4.2.2) and
// what separates it from the one before. done tells that there is none.
func (s *scanner) member() (key string, done, ok bool) {
	if s.i == 0 {
		s.spaces()
		if s.end() {
			return "", true, true
		}
	} else {
		s.optionalSpace()
		if s.end() {
			return "", true, true
		}
		if !s.skip(',') {
			return "", false, false
		}
		s.optionalSpace()
	}
	key, ok = s.key()
	return key, false, ok
}

// optionalSpace reads what may stand around the commas of a dictionary.
func (s *scanner) optionalSpace() {
	for s.at(' ') || s.at('\t') {
		s.i++
	}
}

// key reads a key (RFC 9651, 4.2.3.3).
func (s *scanner) key() (string, bool) {
	if !s.at('*') && (s.end() || class[s.s[s.i]]&lower == 0) {
		return "", false
	}
	return s.run(keyByte), true
}

// param reads the next parameter (RFC 9651, 4.2.3.2). done tells that there is
// none.
func (s *scanner) param() (key string, v item, done, ok bool) {
	if !s.skip(';') {
		return "", item{}, true, true
	}
	s.spaces()
	if key, ok = s.key(); !ok {
		return "", item{}, false, false
	}
	if !s.skip('=') {
		return key, item{boolean, "1"}, false, true
	}
	v, ok = s.item()
	return key, v, false, ok
}

// rest reads the rest of a member that means nothing to us: after its key an
// item or inner list, and the parameters of both.
func (s *scanner) rest() bool {
	if s.skip('=') {
		if s.at('(') {
			if !s.innerList() {
				return false
			}
		} else if _, ok := s.item(); !ok {
			return false
		}
	}
	return s.params()
}

// innerList reads an inner list without its parameters (RFC 9651, 4.2.1.2).
func (s *scanner) innerList() bool {
	for open := s.skip('('); open; {
		s.spaces()
		if s.skip(')') {
			return true
		}
		if _, ok := s.item(); !ok || !s.params() {
			return false
		}
		open = s.at(' ') || s.at(')')
	}
	return false
}

// params reads parameters that mean nothing to us.
func (s *scanner) params() bool {
	for {
		if _, _, done, ok := s.param(); done || !ok {
			return ok
		}
	}
}

// item reads a bare item (RFC 9651, 4.2.3.1).
func (s *scanner) item() (item, bool) {
	if s.end() {
		return item{}, false
	}
	switch c := s.s[s.i]; {
	case c == '"':
		return s.text()
	case c == ':':
		return s.binary()
	case c == '-' || class[c]&digit != 0:
		return s.number()
	case c == '*' || class[c|0x20]&lower != 0:
		return item{token, s.run(tokByte)}, true
	case c == '?':
		return s.boolean()
	case c == '@':
		s.i++
		v, ok := s.number()
		return item{date, v.raw}, ok && v.kind == integer
	case c == '%':
		return s.display()
	}
	return item{}, false
}

// text reads a string.
func (s *scanner) text() (item, bool) {
	s.i++
	from := s.i
	for {
		s.run(textByte)
		switch {
		case s.skip('"'):
			return item{text, s.s[from : s.i-1]}, true
		case !s.skip('\\') || !s.skip('"') && !s.skip('\\'):
			return item{}, false
		}
	}
}

// binary reads a byte sequence, in base64 with padding.
func (s *scanner) binary() (item, bool) {
	s.i++
	from := s.i
	n := len(s.run(b64Byte))
	for range 2 {
		if n%4 > 1 && s.skip('=') {
			n++
		}
	}
	raw := s.s[from:s.i]
	return item{octets, raw}, n%4 == 0 && s.skip(':')
}

// number reads an integer of up to 15 digits, or a decimal of up to 12 and 3.
func (s *scanner) number() (item, bool) {
	from := s.i
	s.skip('-')
	whole := len(s.run(digit))
	if whole == 0 || whole > 15 {
		return item{}, false
	}
	if !s.skip('.') {
		return item{integer, s.s[from:s.i]}, true
	}
	fraction := len(s.run(digit))
	return item{decimal, s.s[from:s.i]}, whole <= 12 && 1 <= fraction && fraction <= 3
}

func (s *scanner) boolean() (item, bool) {
	s.i++
	from := s.i
	if !s.skip('0') && !s.skip('1') {
		return item{}, false
	}
	return item{boolean, s.s[from:s.i]}, true
}

// display reads a display string. That it is UTF-8 inside matters to nobody here.
func (s *scanner) display() (item, bool) {
	s.i++
	if !s.skip('"') {
		return item{}, false
	}
	from := s.i
	for ; s.i < len(s.s); s.i++ {
		switch c := s.s[s.i]; {
		case c == '"':
			s.i++
			return item{display, s.s[from : s.i-1]}, true
		case c == '%':
			for range 2 {
				s.i++
				if s.end() || !strings.Contains("0123456789abcdef", s.s[s.i:s.i+1]) {
					return item{}, false
				}
			}
		case c < ' ' || c > '~':
			return item{}, false
		}
	}
	return item{}, false
}
