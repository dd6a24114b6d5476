package gateway_test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/gateway"
)

// fromNode sends requests over HTTP/2 as Go's client would not, one after the other.
const fromNode = `
const http2 = require('node:http2')
const [url, text] = process.argv.slice(1)
const session = http2.connect(url, {rejectUnauthorized: false, maxSendHeaderBlockLength: 1 << 22})
session.on('error', () => {})
const ask = headers => new Promise(done => {
	try {
		const stream = session.request(headers, {endStream: headers[':method'] !== 'CONNECT'})
		let status = 0, body = ''
		stream.on('response', h => { status = h[':status'] })
		stream.on('data', d => { body += d })
		stream.on('error', e => done([status, String(e)]))
		stream.on('end', () => done([status, body]))
		stream.on('close', () => done([status, body]))
	} catch (e) { done([0, String(e)]) }
})
session.on('remoteSettings', async () => {
	const answers = []
	for (const headers of JSON.parse(text)) {
		for (const name in headers) if (headers[name] === 'MEBIBYTE') headers[name] = 'x'.repeat(1 << 20)
		answers.push(await ask(headers))
	}
	console.log(JSON.stringify(answers))
	process.exit(0)
})
`

// TestHTTP2: what only HTTP/2 can say brings no stolen cookie past the proof, and
// no second host to the app.
func TestHTTP2(t *testing.T) {
	s := newSite(t, gateway.Config{Routes: []limpet.Route{{Pattern: "inside.example/", Rule: limpet.Rule{Mode: limpet.Require}}}})
	owner := s.device(t)
	s.login(t, owner)
	stolen := "sid=" + s.cookie(t, owner)
	before := s.requests()
	type fields map[string]any
	cases := []struct {
		fields  fields
		status  float64
		reaches bool
	}{
		{fields{":path": "/me", "cookie": "a=b"}, 200, true},
		{fields{":path": "/me", "cookie": stolen}, 401, false},
		{fields{":path": "/me", "cookie": []string{"a=b", stolen, "c=d"}}, 401, false},
		{fields{":path": "/me", "cookie": []string{stolen, "sid=other"}}, 400, false},
		{fields{":path": "/me", "cookie": []string{"a=\"", stolen, "\""}}, 401, false},
		{fields{":path": "/me", ":authority": "outside.example", "host": "inside.example"}, 200, true},
		{fields{":path": "/me", ":authority": "inside.example", "host": "outside.example"}, 401, false},
		{fields{":path": "/me", ":authority": "inside.example:8443"}, 401, false},
		{fields{":path": "//inside.example/me", "cookie": stolen}, 401, false},
		{fields{":path": "http://inside.example/me", ":authority": "outside.example"}, 400, false},
		{fields{":path": "me", "cookie": "a=b"}, 400, false},
		{fields{":path": "*", "cookie": "a=b"}, 400, false},
		{fields{":path": "/me", ":method": "get"}, 0, false},
		{fields{":method": "CONNECT", ":authority": "inside.example:443"}, 405, false},
		{fields{":path": "/me", ":method": "CONNECT", ":protocol": "websocket", "cookie": stolen}, 0, false},
		{fields{":path": "/me", "te": "trailers", "expect": "100-continue", "range": "bytes=0-1"}, 200, true},
		{fields{":path": "/me", "x-large": "MEBIBYTE"}, 431, false}, // or the end of the connection
	}
	var all []fields
	for _, c := range cases {
		if c.fields[":authority"] == nil {
			c.fields[":authority"] = "app.example"
		}
		all = append(all, c.fields)
	}
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	node := exec.Command("node", "-e", fromNode, s.front.URL, string(text))
	node.Stdout, node.Stderr = &out, &out
	if err := node.Run(); err != nil {
		t.Fatalf("Node.js, a real one of which this test needs: %v\n%s", err, &out)
	}
	var answers [][2]any
	if err := json.Unmarshal(out.Bytes(), &answers); err != nil || len(answers) != len(cases) {
		t.Fatalf("%v: %s", err, &out)
	}
	reached := 0
	for i, c := range cases {
		status, body := answers[i][0].(float64), answers[i][1].(string)
		if c.reaches {
			reached++
			var e echo
			json.Unmarshal([]byte(body), &e)
			if e.Host != c.fields[":authority"] || e.User != "" || strings.Contains(body, "inside.example") {
				t.Errorf("%v: the app saw %s", c.fields, body)
			}
		}
		if status != c.status && !(c.status == 0 && status >= 400) && !(c.status >= 400 && status == 0) {
			t.Errorf("%.200v: %v %.200s, want %v", c.fields, status, body, c.status)
		}
	}
	if n := s.requests() - before; n != reached {
		t.Errorf("%d requests reached the app, want %d", n, reached)
	}
}

// TestHTTP2WithoutBody: what has no body over HTTP/2 has none for the app either, which
// keeps its connection.
func TestHTTP2WithoutBody(t *testing.T) {
	s := newSite(t, gateway.Config{})
	b := s.browser(t)
	for range 5 {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			s.wants(t, b, method, "/me", 200, "")
		}
	}
	s.app.mu.Lock()
	defer s.app.mu.Unlock()
	for _, r := range s.app.seen {
		if r.RemoteAddr != s.app.seen[0].RemoteAddr || r.Close {
			t.Errorf("%s on %s, first on %s, the last on it: %v", r.Method, r.RemoteAddr, s.app.seen[0].RemoteAddr, r.Close)
		}
	}
}
