package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/limpet-auth/limpet"
)

// Parse reads the part of a configuration that says of the app: a YAML file, of
// which only upstream and session are needed, and only if the caller has no other
// ones. Fields that it does not know, and those that are there twice, are errors.
// Errors begin with name and line.
//
//	upstream: http://127.0.0.1:8080
//	session: {cookie: sid}            # or {bearer: true}
//	timeout: 60s                      # until an answer begins
//	dbsc: true                        # browsers bind the sessions of their logins
//
//	login:
//	  - route: POST /login
//	    user: form.username           # json.PATH, answer.json.PATH, answer.header.NAME
//	    token: data.access_token      # in a JSON answer; default the cookie, or token and access_token
//	    success: [302]                # default 200 to 299 and 301 to 303
//	logout: [POST /logout]
//
//	default: {mode: prefer}           # of what no route names
//	routes:
//	  - route: /admin/
//	    mode: require                 # observe, prefer, require
//	    freshness: strict-nonce       # nonce, strict-nonce, body-hash, timestamp
//	    min-level: hardware           # software, browser, hardware, hardware-attested
//	    challenge: true
//	    channel: true
//	    body: 1MiB                    # compared with its digest before the app sees it; default stream
//
//	headers: {user: X-User, key: "-"} # user, level, session, key; "-" sends none
func Parse(name string, text []byte) (Config, error) {
	var cfg Config
	var doc, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	err := dec.Decode(&doc)
	if err == io.EOF || err == nil && len(doc.Content) == 0 { // an empty file
		return cfg, nil
	}
	if err != nil {
		return cfg, noYAML(name, text, err)
	}
	if err := dec.Decode(&more); err == nil {
		return cfg, fmt.Errorf("%s:%d: want one document, and here begins another", name, more.Line)
	} else if err != io.EOF {
		return cfg, noYAML(name, text, err)
	}
	err = mapping(doc.Content[0], fields{
		"upstream": func(n *yaml.Node) (err error) {
			cfg.Upstream, err = parseUpstream(n)
			return err
		},
		"session": func(n *yaml.Node) error { return parseSession(n, &cfg.Session) },
		"dbsc":    yesNo(&cfg.DBSC),
		"timeout": func(n *yaml.Node) (err error) {
			cfg.Timeout, err = duration(n)
			return err
		},
		"login": func(n *yaml.Node) error {
			return list(n, func(n *yaml.Node) error {
				var l Login
				err := mapping(n, fields{
					"route":   value(&l.Pattern),
					"user":    value(&l.User),
					"token":   value(&l.Token),
					"success": func(n *yaml.Node) error { return statuses(n, &l.Success) },
				})
				if err == nil && l.Pattern == "" {
					err = at(n, errors.New("a login needs a route"))
				}
				cfg.Logins = append(cfg.Logins, l)
				return err
			})
		},
		"logout": func(n *yaml.Node) error {
			return list(n, func(n *yaml.Node) error {
				var pattern string
				err := value(&pattern)(n)
				cfg.Logouts = append(cfg.Logouts, pattern)
				return err
			})
		},
		"default": func(n *yaml.Node) error { return mapping(n, ruleFields(&cfg.Rule)) },
		"routes": func(n *yaml.Node) error {
			return list(n, func(n *yaml.Node) error {
				var r limpet.Route
				all := ruleFields(&r.Rule)
				all["route"] = value(&r.Pattern)
				err := mapping(n, all)
				if err == nil && r.Pattern == "" {
					err = at(n, errors.New("a rule needs a route"))
				}
				cfg.Routes = append(cfg.Routes, r)
				return err
			})
		},
		"headers": func(n *yaml.Node) error {
			return mapping(n, fields{"user": value(&cfg.Names.User), "level": value(&cfg.Names.Level),
				"session": value(&cfg.Names.Session), "key": value(&cfg.Names.Key), "client": value(&cfg.Names.Client)})
		},
	})
	if err != nil {
		return cfg, fmt.Errorf("%s:%w", name, err)
	}
	return cfg, nil
}

// noYAML is the parser's error, in the form of the others.
func noYAML(name string, text []byte, err error) error {
	why := strings.TrimPrefix(err.Error(), "yaml: ")
	number, rest, placed := strings.Cut(strings.TrimPrefix(why, "line "), ": ")
	line, e := strconv.Atoi(number)
	if !placed || e != nil {
		return fmt.Errorf("%s: %s", name, why)
	}
	if lines := bytes.Split(text, []byte("\n")); line <= len(lines) && line > 0 && bytes.HasPrefix(bytes.TrimLeft(lines[line-1], " "), []byte("\t")) {
		rest = "a tab, where YAML wants blanks"
	}
	return fmt.Errorf("%s:%d: %s", name, line, rest)
}

// fields are what a mapping may have.
type fields map[string]func(*yaml.Node) error

func mapping(n *yaml.Node, known fields) error {
	if n.Kind != yaml.MappingNode {
		return at(n, errors.New("want lines of the form name: value"))
	}
	seen := make(map[string]bool)
	for pairs := n.Content; len(pairs) > 0; pairs = pairs[2:] {
		name, value := pairs[0], pairs[1]
		read := known[name.Value]
		switch {
		case read == nil:
			return at(name, fmt.Errorf("unknown field %.64q", name.Value))
		case seen[name.Value]:
			return at(name, fmt.Errorf("%s is set twice", name.Value))
		}
		seen[name.Value] = true
		err := read(value)
		if placed := (*placedError)(nil); err != nil && !errors.As(err, &placed) {
			err = at(value, fmt.Errorf("%s: %w", name.Value, err))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func list(n *yaml.Node, each func(*yaml.Node) error) error {
	if n.Kind != yaml.SequenceNode {
		return errors.New("want a list")
	}
	for _, item := range n.Content {
		if err := each(item); err != nil {
			return err
		}
	}
	return nil
}

// placedError is an error that knows its line.
type placedError struct {
	line int
	err  error
}

func (e *placedError) Error() string { return fmt.Sprintf("%d: %v", e.line, e.err) }
func (e *placedError) Unwrap() error { return e.err }

func at(n *yaml.Node, err error) error { return &placedError{n.Line, err} }

func plain(n *yaml.Node) (string, error) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return "", errors.New("want a plain value")
	}
	return n.Value, nil
}

func value(to *string) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		s, err := plain(n)
		if err == nil && s == "" {
			err = errors.New("want a value")
		}
		*to = s
		return err
	}
}

func yesNo(to *bool) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		s, err := plain(n)
		if err == nil && s != "true" && s != "false" {
			err = errors.New("must be true or false")
		}
		*to = s == "true"
		return err
	}
}

func duration(n *yaml.Node) (time.Duration, error) {
	s, err := plain(n)
	if err != nil {
		return 0, err
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, errors.New("want a time such as 30s or 2m")
	}
	return d, nil
}

func statuses(n *yaml.Node, to *[]int) error {
	return list(n, func(n *yaml.Node) error {
		s, err := plain(n)
		if err != nil {
			return err
		}
		code, err := strconv.Atoi(s)
		if err != nil || code < 200 || code > 399 {
			return errors.New("want statuses from 200 to 399")
		}
		*to = append(*to, code)
		return nil
	})
}

func parseUpstream(n *yaml.Node) (*url.URL, error) {
	s, err := plain(n)
	if err != nil {
		return nil, err
	}
	return ParseUpstream(s)
}

// ParseUpstream reads a [Config].Upstream.
func ParseUpstream(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("the upstream is not of the form http://host:port")
	}
	return u, checkUpstream(u)
}

func parseSession(n *yaml.Node, to *limpet.Session) error {
	var cookie string
	var bearer bool
	if err := mapping(n, fields{"cookie": value(&cookie), "bearer": yesNo(&bearer)}); err != nil {
		return err
	}
	switch {
	case bearer == (cookie != ""):
		return errors.New("want {cookie: NAME} or {bearer: true}")
	case bearer:
		*to = limpet.Bearer()
	default:
		*to = limpet.Cookie(cookie)
	}
	return nil
}

// ruleFields are those of a rule. Their words are those of the command's flags.
func ruleFields(r *limpet.Rule) fields {
	return fields{
		"mode":      word(&r.Mode, limpet.Observe, limpet.Prefer, limpet.Require),
		"freshness": word(&r.Freshness, limpet.Nonce, limpet.StrictNonce, limpet.BodyHash, limpet.Timestamp),
		"min-level": func(n *yaml.Node) error {
			s, err := plain(n)
			if err == nil && (s == "" || !limpet.HardwareAttested.AtLeast(limpet.Level(s))) {
				err = errors.New("must be one of none, software, browser, hardware, hardware-attested")
			}
			r.MinLevel = limpet.Level(s)
			return err
		},
		"challenge": yesNo(&r.Challenge),
		"channel":   yesNo(&r.Channel),
		"client":    word(&r.Client, limpet.NoClient, limpet.BesideSession, limpet.InsteadOfSession),
		"body": func(n *yaml.Node) (err error) {
			r.Body, err = size(n)
			return err
		},
	}
}

// word reads one of a few words.
func word[T fmt.Stringer](to *T, words ...T) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		s, err := plain(n)
		if err != nil {
			return err
		}
		var names []string
		for _, w := range words {
			if w.String() == s {
				*to = w
				return nil
			}
			names = append(names, w.String())
		}
		return fmt.Errorf("must be one of %s", strings.Join(names, ", "))
	}
}

// size reads a number of bytes, KiB or MiB, or "stream".
func size(n *yaml.Node) (int64, error) {
	s, err := plain(n)
	if err != nil || s == "stream" {
		return limpet.StreamBody, err
	}
	digits, unit := s, int64(1)
	for suffix, bytes := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			digits, unit = rest, bytes
		}
	}
	v, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || v < 1 {
		return 0, errors.New("want stream, or a size such as 64KiB or 1MiB")
	}
	return v * unit, nil
}
