package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/proof"
)

// table knows what a request's route asks for: a rule, and whether its answer is
// to be watched.
type table struct {
	rules    patterns
	rule     []limpet.Rule
	fallback limpet.Rule

	watched patterns
	event   []event
}

// event is what a watched route is.
type event struct {
	login  *login // nil for a logout
	logout bool
}

// verdict is where a request is found in a table; none if it is not.
type verdict struct{ rule, event int }

const none = -1

func (t *table) ruleOf(v verdict) limpet.Rule {
	if v.rule == none {
		return t.fallback
	}
	return t.rule[v.rule]
}

func (t *table) eventOf(v verdict) event {
	if v.event == none {
		return event{}
	}
	return t.event[v.event]
}

// enforces reports whether there is a rule that refuses anything.
func (t *table) enforces() bool {
	return t.fallback.Mode != limpet.Observe ||
		slices.ContainsFunc(t.rule, func(r limpet.Rule) bool { return r.Mode != limpet.Observe })
}

var errReading = &proof.Refusal{Reason: proof.Malformed, Detail: "a path or method that can be read in two ways"}

// of returns the verdict over a request. Apps differ in how they read a path:
// decoded once, twice or not at all, with or without ";parameters", with "\" for
// "/", in any case. Only if all of these come to the same verdict does it not
// matter; else the error is errReading. observed says that it is no matter
// either, since all the rules only observe.
func (t *table) of(r *http.Request) (v verdict, observed bool, err error) {
	host := r.Host
	if t.rules.hosts || t.watched.hosts {
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		host = strings.TrimRight(strings.ToLower(host), ".")
	}
	probe := r
	if host != r.Host {
		probe = &http.Request{Method: r.Method, URL: r.URL, Host: host}
	}
	plain, small := plainPath(r.URL)
	if v = (verdict{none, none}); !plain || t.rules.exact.may(r) {
		v.rule = t.rules.exact.find(probe)
	}
	if !plain || t.watched.exact.may(r) {
		v.event = t.watched.exact.find(probe)
	}
	methods, plainMethod := methodsOf(r)
	if plain && small && plainMethod && len(methods) == 1 {
		return v, false, nil
	}
	paths, readable := []string{r.URL.Path}, true
	if !plain {
		paths, readable = readings(r.URL)
	}
	same, observed := plainMethod && readable, t.ruleOf(v).Mode == limpet.Observe
	for _, method := range methods {
		for _, path := range paths {
			for _, w := range t.read(method, host, path) {
				same = same && w == v
				observed = observed && t.ruleOf(w).Mode == limpet.Observe
			}
		}
	}
	if !same {
		return v, observed, errReading
	}
	return v, false, nil
}

// read returns the verdicts over a path by apps that mind the case of letters
// and by those that do not.
func (t *table) read(method, host, path string) []verdict {
	r := &http.Request{Method: method, Host: host, URL: &url.URL{Path: path}}
	found := []verdict{{t.rules.exact.find(r), t.watched.exact.find(r)}}
	if lower := strings.ToLower(path); lower != path {
		r.URL = &url.URL{Path: lower}
		found = append(found, verdict{t.rules.folded.find(r), t.watched.folded.find(r)})
	}
	return found
}

// overrides are the fields, as normal makes them, by which some apps take
// another method than the request's own.
var overrides = []string{"x_http_method_override", "x_http_method", "x_method_override"}

// methodsOf returns what an app may take for the method; ok is false if that has
// small letters, which some apps make capital ones.
func methodsOf(r *http.Request) (methods []string, ok bool) {
	methods, ok = []string{r.Method}, strings.ToUpper(r.Method) == r.Method
	for name, values := range r.Header {
		if n := len(name); n != 22 && n != 13 && n != 17 || !slices.Contains(overrides, normal(name)) {
			continue
		}
		for method := range strings.SplitSeq(strings.Join(values, ","), ",") { // proxies may have joined them
			if method = strings.ToUpper(strings.TrimSpace(method)); method == "" || slices.Contains(methods, method) {
				continue
			}
			if methods = append(methods, method); len(methods) > 4 {
				return methods, false
			}
		}
	}
	return methods, ok
}

// plainPath reports whether a path has nothing in it that apps read in different
// ways, but for capital letters, and whether it is small, that is without those.
func plainPath(u *url.URL) (plain, small bool) {
	if u.RawPath != "" {
		return false, false
	}
	path, small := u.Path, true
	for i := range len(path) {
		switch c := path[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
		case c >= 'A' && c <= 'Z':
			small = false
		case c == '/':
			if i+1 < len(path) && (path[i+1] == '/' || path[i+1] == '.') {
				return false, false
			}
		case c < ' ', c >= 0x7f, strings.IndexByte(`\;%?#`, c) >= 0:
			return false, false
		}
	}
	return true, small
}

// readings returns how apps may read a path. It is not readable if one of them
// has dot segments, control characters or letters in more bytes than they need:
// nothing that is asked for in earnest has.
func readings(u *url.URL) (paths []string, readable bool) {
	literal := []string{u.EscapedPath(), u.Path}
	if twice, err := url.PathUnescape(u.Path); err == nil && twice != u.Path {
		literal = append(literal, twice)
	}
	readable = true
	add := func(path string) {
		if !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
		readable = readable && sound(path)
	}
	for _, path := range literal {
		for _, path := range []string{path, strings.ReplaceAll(path, `\`, "/")} {
			add(path)
			add(withoutParameters(path))
			if end := strings.IndexAny(path, "?#"); end >= 0 {
				add(path[:end])
			}
			if rest, ok := strings.CutPrefix(path, "//"); ok { // what a URL parser takes for a host
				if slash := strings.IndexByte(rest, '/'); slash >= 0 {
					add(rest[slash:])
				} else {
					add("/")
				}
			}
		}
	}
	return paths, readable
}

// withoutParameters takes the parameters off a path's segments (RFC 3986, 3.3).
func withoutParameters(path string) string {
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		segments[i], _, _ = strings.Cut(segment, ";")
	}
	return strings.Join(segments, "/")
}

func sound(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return false
		}
	}
	for i := range len(path) {
		c := path[i]
		if c < ' ' || c == 0x7f || (c == 0xc0 || c == 0xc1) && i+1 < len(path) && !utf8.RuneStart(path[i+1]) {
			return false
		}
	}
	return true
}

// patterns are those of [http.ServeMux], as they are and in small letters. A
// pattern counts with and without a slash at its end.
type patterns struct {
	exact, folded finder
	hosts         bool // there are some with a host
}

// finder finds the number of the pattern that a request matches.
type finder struct {
	mux    *http.ServeMux // nil if there are no patterns
	number map[string]int
	starts []start
}

// start is the method of a pattern, "" for any, and how a path that it matches
// begins.
type start struct{ method, path string }

// may reports whether a request with a plain path may match any pattern. Most
// match none, and a ServeMux takes its time to find that.
func (f *finder) may(r *http.Request) bool {
	for i := range f.starts {
		s := &f.starts[i]
		if strings.HasPrefix(r.URL.Path, s.path) &&
			(s.method == "" || s.method == r.Method || s.method == http.MethodGet && r.Method == http.MethodHead) {
			return true
		}
	}
	return false
}

func (f *finder) find(r *http.Request) int {
	if f.mux == nil {
		return none
	}
	_, pattern := f.mux.Handler(r)
	if n, ok := f.number[pattern]; ok {
		return n
	}
	return none
}

func newPatterns(list []string) (p patterns, err error) {
	if p.exact, err = newFinder(list); err != nil {
		return p, err
	}
	small := make([]string, len(list))
	for i, pattern := range list {
		method, rest := cutMethod(pattern)
		small[i] = method + strings.ToLower(rest)
		p.hosts = p.hosts || !strings.HasPrefix(rest, "/")
	}
	if p.folded, err = newFinder(small); err != nil {
		return p, fmt.Errorf("%w, without case", err)
	}
	return p, nil
}

func newFinder(list []string) (f finder, err error) {
	if len(list) == 0 {
		return f, nil
	}
	f = finder{mux: http.NewServeMux(), number: make(map[string]int)}
	for i, pattern := range list {
		if _, ok := f.number[pattern]; ok {
			return f, fmt.Errorf("pattern %q is there twice", pattern)
		}
		if err := f.add(pattern, i); err != nil {
			return f, err
		}
	}
	for i, pattern := range list {
		other := sibling(pattern)
		if _, ok := f.number[other]; ok || other == "" {
			continue
		}
		if err := f.add(other, i); err != nil {
			return f, err
		}
	}
	return f, nil
}

func (f *finder) add(pattern string, n int) (err error) {
	defer func() { // ServeMux panics on bad and conflicting patterns
		if p := recover(); p != nil {
			why, _, _ := strings.Cut(registered.ReplaceAllString(fmt.Sprint(p), ""), "\n")
			err = fmt.Errorf("pattern %q: %s", pattern, strings.TrimSuffix(why, ":"))
		}
	}()
	if method, _ := cutMethod(pattern); strings.ToUpper(method) != method {
		return fmt.Errorf("pattern %q: a method is in capital letters", pattern)
	}
	f.mux.Handle(pattern, http.NotFoundHandler())
	f.number[pattern] = n
	method, rest := cutMethod(pattern)
	path := rest[strings.IndexByte(rest, '/'):] // ServeMux has seen to it
	if wild := strings.IndexByte(path, '{'); wild >= 0 {
		path = path[:wild]
	}
	path, err = url.PathUnescape(strings.TrimSuffix(path, "/"))
	f.starts = append(f.starts, start{strings.TrimSpace(method), path})
	return err
}

var registered = regexp.MustCompile(` \(registered at [^)]*\)`)

// sibling returns the pattern with a slash at its end, or without it; "" if there
// is none.
func sibling(pattern string) string {
	if end := strings.LastIndex(pattern, "/{"); end >= 0 && (strings.HasSuffix(pattern, "...}") || strings.HasSuffix(pattern, "/{$}")) {
		pattern = pattern[:end+1]
	} else if !strings.HasSuffix(pattern, "/") {
		return pattern + "/{$}"
	}
	_, rest := cutMethod(pattern)
	if i := strings.IndexByte(rest, '/'); i == len(rest)-1 {
		return "" // the root
	}
	return strings.TrimSuffix(pattern, "/")
}

// cutMethod splits a pattern into its method, with the space after it, and the
// rest.
func cutMethod(pattern string) (method, rest string) {
	i := strings.IndexAny(pattern, " \t")
	if i < 0 {
		return "", pattern
	}
	rest = strings.TrimLeft(pattern[i:], " \t")
	return pattern[:i] + " ", rest
}
