package httpsig

import (
	"bytes"
	"strings"

	"github.com/limpet-auth/limpet/proof"
)

// Bounds, in bytes. A base is longer than the fields it covers by little.
const (
	maxField = 8 << 10
	maxBase  = 64 << 10
	maxName  = 64
)

// appendBase appends the signature base of m (RFC 9421, 2.5): components and
// parameters in the order that in has them.
func (in *input) appendBase(dst []byte, m *proof.Message) ([]byte, error) {
	start := len(dst)
	for i := range in.n {
		c := &in.components[i]
		var err error
		if dst, err = c.appendValue(append(append(dst, c.id...), ": "...), m); err != nil {
			return dst, err
		}
		dst = append(dst, '\n')
		if len(dst)-start > maxBase {
			return dst, &proof.Refusal{Reason: proof.TooLarge, Detail: "covered components over 64 KiB"}
		}
	}
	// A line break in a value would begin a component that is not there. It also
	// is what a folded field line has (RFC 9112, 5.2).
	if base := dst[start:]; bytes.Count(base, []byte{'\n'}) != in.n || bytes.IndexByte(base, '\r') >= 0 {
		return dst, malformed("a covered component with a line break in it")
	}
	dst = append(dst, `"@signature-params": `...)
	return in.append(dst), nil
}

// append appends the member without its label, serialized as RFC 9651, 4.1.1.1
// says.
func (in *input) append(dst []byte) []byte {
	dst = append(dst, '(')
	for i := range in.n {
		if i > 0 {
			dst = append(dst, ' ')
		}
		dst = append(dst, in.components[i].id...)
	}
	dst = append(dst, ')')
	for _, p := range in.params[:in.np] {
		dst = append(append(append(append(dst, ';'), p.name...), '='), p.value...)
	}
	return dst
}

// appendValue appends the component's value (RFC 9421, 2.1 and 2.2).
func (c *component) appendValue(dst []byte, m *proof.Message) ([]byte, error) {
	if !strings.HasPrefix(c.name, "@") {
		return c.appendField(dst, m)
	}
	if c.name == "@query-param" && c.param == "name" {
		return appendQueryParam(dst, m.RawQuery, c.value)
	}
	if c.param != "" {
		return dst, malformed("a derived component with a parameter that it has not")
	}
	if m.Scheme == "" && (c.name == "@target-uri" || c.name == "@scheme") {
		return dst, malformed("the scheme is covered, and TLS ends elsewhere")
	}
	switch c.name {
	case "@method":
		return append(dst, m.Method...), nil
	case "@authority":
		return append(dst, m.Authority...), nil
	case "@path":
		return appendPath(dst, m), nil
	case "@query":
		return append(append(dst, '?'), m.RawQuery...), nil
	case "@scheme":
		return append(dst, m.Scheme...), nil
	case "@request-target":
		return appendTarget(dst, m), nil
	case "@target-uri":
		return appendTarget(append(append(append(dst, m.Scheme...), "://"...), m.Authority...), m), nil
	}
	return dst, malformed("a derived component that is not known here")
}

func appendPath(dst []byte, m *proof.Message) []byte {
	if m.Path == "" {
		return append(dst, '/')
	}
	return append(dst, m.Path...)
}

func appendTarget(dst []byte, m *proof.Message) []byte {
	dst = appendPath(dst, m)
	if m.RawQuery == "" {
		return dst
	}
	return append(append(dst, '?'), m.RawQuery...)
}

// appendField appends the value of a field: its lines, each without the white
// space around it, joined.
func (c *component) appendField(dst []byte, m *proof.Message) ([]byte, error) {
	var room [maxName]byte
	name, ok := canonical(&room, c.name)
	if !ok || c.param == "name" {
		return dst, malformed("a covered field whose name is none")
	}
	lines := m.Header[string(name)]
	if len(lines) == 0 {
		return dst, malformed("a covered field that the request has not")
	}
	if len(lines) > 1 && covered(c.name) != 0 {
		return dst, twice()
	}
	size := 0
	for i, line := range lines {
		if size += len(line) + 2; size > maxField+2 {
			return dst, tooLarge()
		}
		if i > 0 {
			dst = append(dst, ", "...)
		}
		line = trim(line)
		if c.param == "bs" { // RFC 9421, 2.1.3
			dst = append(strict.AppendEncode(append(dst, ':'), []byte(line)), ':')
		} else {
			dst = append(dst, line...)
		}
	}
	return dst, nil
}

// canonical writes a field name, given in lower case, as net/http spells it.
func canonical(room *[maxName]byte, name string) ([]byte, bool) {
	if name == "" || len(name) > maxName {
		return nil, false
	}
	upper := true
	for i := range len(name) {
		c := name[i]
		if class[c]&nameByte == 0 {
			return nil, false
		}
		if upper && class[c]&lower != 0 {
			c -= 'a' - 'A'
		}
		room[i] = c
		upper = c == '-'
	}
	return room[:len(name)], true
}

// appendQueryParam appends the value of the one parameter of the query with this
// name (RFC 9421, 2.2.8). The name is encoded as values are.
func appendQueryParam(dst []byte, query, name string) ([]byte, error) {
	if len(query) > maxField {
		return dst, tooLarge()
	}
	start, found := len(dst), false
	for pair := range strings.SplitSeq(query, "&") {
		k, v, _ := strings.Cut(pair, "=")
		at := len(dst)
		dst = appendForm(dst, k)
		same := pair != "" && string(dst[at:]) == name
		dst = dst[:at]
		if !same {
			continue
		}
		if found {
			return dst[:start], malformed("a covered query parameter that occurs twice")
		}
		found = true
		dst = appendForm(dst, v)
	}
	if !found {
		return dst, malformed("a covered query parameter that the request has not")
	}
	return dst, nil
}

// appendForm decodes text as an HTML form's and encodes it in the one way of
// RFC 9421, 2.2.8: all but letters, digits and *-._ as % and two digits.
func appendForm(dst []byte, text string) []byte {
	const hex = "0123456789ABCDEF"
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '+':
			c = ' '
		case c == '%' && i+2 < len(text):
			hi, lo := unhex(text[i+1]), unhex(text[i+2])
			if hi < 16 && lo < 16 {
				c = hi<<4 | lo
				i += 2
			}
		}
		if class[c]&(urlByte|keyByte) != 0 {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', hex[c>>4], hex[c&15])
		}
	}
	return dst
}

// unhex returns the value of a hexadecimal digit, 16 if c is none.
func unhex(c byte) byte {
	switch {
	case class[c]&digit != 0:
		return c - '0'
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10
	}
	return 16
}
