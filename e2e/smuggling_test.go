//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// seen is a request as the app saw it: method, target and user.
type seen [3]string

// whatAppSaw asks the app itself.
func whatAppSaw(t *testing.T, app string) (all []seen) {
	t.Helper()
	resp, err := httpClient.Get(app + "/seen")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		t.Fatal(err)
	}
	return all
}

// send sends bytes and returns what comes back until the gateway closes, or waits
// for more.
func send(t *testing.T, g *server, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(conn, text) // the answer tells
	got, _ := io.ReadAll(conn)
	return string(got)
}

// TestSmuggledIntoPython: requests hidden in others, and in bodies that the app
// leaves unread on a connection that it keeps, do not reach it with a stolen cookie.
func TestSmuggledIntoPython(t *testing.T) {
	t.Parallel()
	app := pythonApp(t)
	g := mustGateway(t, "127.0.0.1:0", "--upstream", app, "--session-cookie", "sid", "--store", "mem:")
	owner := newPerson(t, g.url, true)
	stolen := owner.login(t, "alice", "correct horse")
	inner := "GET /smuggled HTTP/1.1\r\nHost: x\r\nCookie: sid=" + stolen + "\r\n\r\n"
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(inner), inner)
	length := fmt.Sprintf("Content-Length: %d\r\n", len(inner))
	requests := []string{ // what is between the request line and the end of the header, and the body
		length + "\r\n" + inner,
		"Transfer-Encoding: chunked\r\n\r\n" + chunks,
		"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + chunks,
		"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + "0\r\n\r\n" + inner,
		"Content-Length: 0\r\n" + length + "\r\n" + inner,
		"Content-Length: 0, 0\r\n\r\n" + inner,
		"Content-Length: 0x0\r\n\r\n" + inner,
		"Content-Length: -1\r\n\r\n" + inner,
		"Content-Length:\r\n\r\n" + inner,
		"Transfer-Encoding: xchunked\r\n\r\n" + chunks,
		"Transfer-Encoding: chunked, identity\r\n\r\n" + chunks,
		"Transfer-Encoding: identity, chunked\r\n\r\n" + chunks,
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks,
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n" + chunks,
		"Transfer-Encoding:\tchunked\r\n\r\n" + chunks,
		"Transfer-Encoding : chunked\r\n\r\n" + chunks,
		" Transfer-Encoding: chunked\r\n\r\n" + chunks,
		"X: y\r\n Transfer-Encoding: chunked\r\n" + length + "\r\n" + chunks,
		"Transfer-Encoding:\r\n chunked\r\n\r\n" + chunks,
		"X: y\nTransfer-Encoding: chunked\r\n" + length + "\r\n" + chunks,
		"X: y\rTransfer-Encoding: chunked\r\n" + length + "\r\n" + chunks,
		"Transfer-Encoding: \x0bchunked\r\n" + length + "\r\n" + chunks,
		"Transfer_Encoding: chunked\r\n" + length + "\r\n" + inner,
		"Transfer-Encoding: chunked\r\n\r\n" + "1;x\n" + inner,
		"Transfer-Encoding: chunked\r\n\r\n" + "0;\n\r\n\r\n" + inner,
		"Transfer-Encoding: chunked\r\n\r\n" + "0\r\nX: y\r\n\r\n" + "x",
		"Expect: 100-continue\r\n" + length + "\r\n" + inner,
		"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n" + length + "\r\n" + inner,
		"Upgrade: websocket\r\nConnection: Upgrade\r\n" + length + "\r\n" + inner,
		"Connection: close, Cookie, Content-Length\r\n" + length + "\r\n" + inner,
		"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks,
	}
	var wg sync.WaitGroup
	for _, method := range []string{"GET", "POST", "DELETE"} {
		for _, version := range []string{"1.1", "1.0"} {
			for _, rest := range requests {
				text := method + " /login HTTP/" + version + "\r\nHost: x\r\n" + rest + "GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
				wg.Go(func() { send(t, g, text) })
			}
		}
	}
	wg.Wait()
	time.Sleep(100 * time.Millisecond) // for what the app finds on connections that it keeps
	all := whatAppSaw(t, app)
	if len(all) < 100 {
		t.Fatalf("the app saw %d requests: the test asks for nothing", len(all))
	}
	for _, r := range all {
		if r[2] == "alice" {
			t.Errorf("the app saw %v, which nobody has proven", r)
		}
	}
	owner.wants(t, "GET", "/me", 200, "alice")
}

// TestPathsIntoPython: whatever of a path the app makes, what it sees unproven
// is not under a rule that asks for a proof.
func TestPathsIntoPython(t *testing.T) {
	t.Parallel()
	app := pythonApp(t)
	routes := t.TempDir() + "/routes.yaml"
	write(t, routes, "upstream: "+app+"\nsession: {cookie: sid}\nlogin: [{route: POST /login}]\nroutes: [{route: /admin/, mode: require}]\n")
	g := mustGateway(t, "127.0.0.1:0", "--routes", routes, "--store", "mem:")
	pieces := []string{"/", "//", "admin", "Admin", "%61dmin", "%2561dmin", "..", ".", "%2e%2e", "%2e", "%2f", "%2F", "%5c", "\\", ";", ";x=y", "%3b", "%00", "%0a", "x", "?", "%3f", "%23", "#", "%c0%af", "%252f", "%252e%252e"}
	var targets []string
	for _, a := range pieces {
		for _, b := range pieces {
			for _, c := range []string{"", "/", "admin/x"} {
				targets = append(targets, "/"+a+b+c, a+b+"/admin"+c)
			}
		}
	}
	slices.Sort(targets)
	targets = slices.Compact(targets)
	batch := ""
	answers := 0
	flush := func() {
		got := send(t, g, batch+"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		answers += strings.Count(got, "HTTP/1.1 ")
		batch = ""
	}
	sent := 0
	for _, target := range targets {
		if target[0] != '/' {
			flush() // such a line ends the connection
			batch = "GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n"
			flush()
			continue
		}
		sent++
		batch += "GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n"
		if sent%50 == 0 {
			flush()
		}
	}
	flush()
	all := whatAppSaw(t, app)
	for _, r := range all {
		for _, reading := range appReadings(r[1]) {
			if strings.HasPrefix(reading, "/admin/") || reading == "/admin" {
				t.Errorf("the app saw %q, which some read as %q", r[1], reading)
			}
		}
	}
	if len(all) < 100 || answers < sent {
		t.Errorf("of %d targets %d were answered, and %d reached the app", sent, answers, len(all))
	}
	t.Logf("%d targets, %d reached the app", len(targets), len(all))
}

// appReadings are the paths that apps make of a target.
func appReadings(target string) (paths []string) {
	target, _, _ = strings.Cut(target, "#")
	target, _, _ = strings.Cut(target, "?")
	for range 3 {
		for _, p := range []string{target, strings.ReplaceAll(target, `\`, "/")} {
			bare := ""
			for segment := range strings.SplitSeq(p, "/") {
				segment, _, _ = strings.Cut(segment, ";")
				bare += "/" + segment
			}
			for _, p := range []string{p, bare, strings.TrimRight(p, "\x00"), "/" + strings.TrimLeft(p, "/")} {
				paths = append(paths, strings.ToLower(path.Clean(p)))
			}
		}
		plain, err := url.PathUnescape(target)
		if err != nil {
			break
		}
		target = plain
	}
	return paths
}

// TestUnaskedAnswers: an app that says something on a connection where nothing was
// asked, as one does that took a body for a request, is told of in the log, without
// what it said: that may be somebody's session.
func TestUnaskedAnswers(t *testing.T) {
	t.Parallel()
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	go func() {
		for {
			conn, err := app.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				conn.Read(make([]byte, 4096))
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				time.Sleep(50 * time.Millisecond)
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nSet-Cookie: sid=secret-token\r\nContent-Length: 0\r\n\r\n")
				io.Copy(io.Discard, conn)
			}()
		}
	}()
	g := mustGateway(t, "127.0.0.1:0", "--upstream", "http://"+app.Addr().String(), "--session-cookie", "sid", "--store", "mem:")
	if a, err := do("GET", g.url+"/", nil, ""); err != nil || a.status != 200 {
		t.Fatal(a, err)
	}
	for end := time.Now().Add(10 * time.Second); !strings.Contains(g.out.String(), "nobody asked"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the log does not tell: %s", g.out)
		}
	}
	if strings.Contains(g.out.String(), "secret-token") {
		t.Errorf("the log has the answer: %s", g.out)
	}
}
