package gateway

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/limpet-auth/limpet/proof"
)

const (
	maxLogin  = 1 << 20  // bytes of a login's body that are read for the user's name
	maxAnswer = 64 << 10 // bytes of an answer that are read for the token
	maxName   = 256      // bytes of a user's name
)

// place is where a user's name is found: "form.FIELD" and "json.PATH" in the
// request, "answer.json.PATH" and "answer.header.NAME" in the answer. The zero
// value is nowhere.
type place struct {
	answer bool
	kind   string // "form", "json" or "header"
	name   []string
}

func parsePlace(text string) (p place, err error) {
	if text == "" {
		return p, nil
	}
	rest, answer := strings.CutPrefix(text, "answer.")
	p.answer = answer
	kind, name, _ := strings.Cut(rest, ".")
	switch p.kind = kind; {
	case name == "":
	case kind == "json":
		p.name, err = parsePath(name)
		return p, err
	case kind == "form" && !answer:
		p.name = []string{name}
		return p, nil
	case kind == "header" && answer:
		p.name = []string{http.CanonicalHeaderKey(name)}
		return p, nil
	}
	return p, fmt.Errorf("%.40q is none of form.FIELD, json.PATH, answer.json.PATH and answer.header.NAME", text)
}

// parsePath reads names of JSON members with dots between them.
func parsePath(text string) ([]string, error) {
	path := strings.Split(text, ".")
	for _, name := range path {
		if name == "" {
			return nil, fmt.Errorf("%.40q is no path of the form data.token", text)
		}
	}
	return path, nil
}

var errTwoNames = &proof.Refusal{Reason: proof.Malformed, Detail: "a login whose user name can be read in two ways"}

// inRequest returns the name in a login request's body, "" if there is none. The
// body is put back. A body that the app may read otherwise is refused.
func (p *place) inRequest(r *http.Request) (string, error) {
	if len(r.Header["Content-Type"]) > 1 || len(r.Header["Content-Encoding"]) > 1 {
		return "", errTwoNames
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if charset := params["charset"]; err != nil || charset != "" && !strings.EqualFold(charset, "utf-8") || r.Body == nil ||
		r.Header.Get("Content-Encoding") != "" {
		return "", nil
	}
	if form := media == "application/x-www-form-urlencoded"; form != (p.kind == "form") || !form && !isJSON(media) {
		return "", nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxLogin+1))
	r.Body = struct { // whole, for mode Observe
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), r.Body), r.Body}
	if err != nil {
		return "", &proof.Refusal{Reason: proof.Malformed, Detail: "body", Err: err}
	}
	if len(body) > maxLogin {
		return "", &proof.Refusal{Reason: proof.BodyLarge, Detail: "a login's body over 1 MiB"}
	}
	if p.kind == "json" {
		name, err := member(body, p.name)
		if errors.Is(err, errTwice) {
			return "", errTwoNames
		}
		return sane(name), nil
	}
	name, n := field(string(body), p.name[0])
	_, inQuery := field(r.URL.RawQuery, p.name[0])
	if n > 1 || n > 0 && inQuery > 0 {
		return "", errTwoNames
	}
	return sane(name), nil
}

// field returns the value of a form's field, and how often it is there in any
// spelling that apps may take for its own.
func field(form, name string) (value string, n int) {
	want := normal(name)
	for pair := range strings.FieldsFuncSeq(form, func(r rune) bool { return r == '&' || r == ';' }) {
		key, val, _ := strings.Cut(pair, "=")
		plain, err := url.QueryUnescape(key)
		if err != nil {
			plain = key
		}
		base, _, _ := strings.Cut(strings.TrimSpace(plain), "[")
		base, _, _ = strings.Cut(base, "\x00")
		if normal(base) != want {
			continue
		}
		n++
		if plain == name {
			value, _ = url.QueryUnescape(val)
		}
	}
	return value, n
}

var (
	errTwice  = errors.New("a member that is there twice")
	errNoJSON = errors.New("not a JSON object")
)

// member returns the string or number at a path of a JSON object, "" if there is
// none. Names that differ only in case are the same: to some parsers they are.
func member(text []byte, path []string) (string, error) {
	if !utf8.Valid(text) {
		return "", errNoJSON
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return "", errNoJSON
	}
	var found json.RawMessage
	seen := false
	for dec.More() {
		key, err := dec.Token()
		var val json.RawMessage
		if err != nil || dec.Decode(&val) != nil {
			return "", errNoJSON
		}
		name, _ := key.(string)
		if !strings.EqualFold(name, path[0]) {
			continue
		}
		if seen {
			return "", errTwice
		}
		seen = true
		if name == path[0] {
			found = val
		}
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return "", errNoJSON
	}
	if _, err := dec.Token(); err != io.EOF {
		return "", errNoJSON
	}
	switch {
	case len(found) == 0:
		return "", nil
	case len(path) > 1:
		if found[0] != '{' {
			return "", nil
		}
		return member(found, path[1:])
	case found[0] == '"':
		var s string
		err := json.Unmarshal(found, &s)
		return s, err
	case found[0] == '-' || found[0] >= '0' && found[0] <= '9':
		return string(found), nil
	}
	return "", nil
}

func isJSON(media string) bool {
	return media == "application/json" || strings.HasSuffix(media, "+json")
}

// readJSON returns the body of an answer if it is JSON, nil if it is not or is
// empty, and puts it back. Many apps do not say that it is JSON, and clients do
// not ask: then what begins like an object is one.
func readJSON(resp *http.Response) ([]byte, error) {
	if resp.Body == nil {
		return nil, nil
	}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if !isJSON(media) {
		body := bufio.NewReader(resp.Body)
		resp.Body = struct {
			io.Reader
			io.Closer
		}{body, resp.Body}
		start, _ := body.Peek(4)
		if start = bytes.TrimLeft(start, " \t\r\n\ufeff"); len(start) > 0 && start[0] != '{' {
			return nil, nil
		}
	}
	if coding := resp.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, errors.New("the answer to a login is encoded")
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	resp.Body = struct { // whole, for mode Observe
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(text), resp.Body), resp.Body}
	if err != nil {
		return nil, fmt.Errorf("the answer to a login: %w", err)
	}
	if len(text) > maxAnswer {
		return nil, errors.New("the answer to a login is over 64 KiB")
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	return text, nil
}

// sane returns a name that a header can carry as it is, "" for others: one that
// is trimmed or cut on its way is another's.
func sane(name string) string {
	if len(name) > maxName || !utf8.ValidString(name) || strings.TrimSpace(name) != name {
		return ""
	}
	for _, r := range name {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return ""
		}
	}
	return name
}
