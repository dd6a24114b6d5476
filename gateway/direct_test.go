package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// rawApp answers on each connection, the nth from 1, as it is told.
type rawApp struct {
	url   *url.URL
	conns atomic.Int32
}

func newRawApp(t *testing.T, serve func(t *testing.T, c net.Conn, requests *bufio.Reader, nth int)) *rawApp {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &rawApp{url: &url.URL{Scheme: "http", Host: l.Addr().String()}}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			nth := int(a.conns.Add(1))
			wg.Go(func() {
				defer c.Close()
				serve(t, c, bufio.NewReader(c), nth)
			})
		}
	})
	return a
}

// answers returns an app that answers each request on a connection with the next of
// the texts, and then closes it.
func answers(texts ...string) func(*testing.T, net.Conn, *bufio.Reader, int) {
	return func(t *testing.T, c net.Conn, requests *bufio.Reader, _ int) {
		for _, text := range texts {
			if _, err := http.ReadRequest(requests); err != nil {
				return
			}
			io.WriteString(c, text)
		}
	}
}

func newDirect(t *testing.T, to *url.URL, timeout time.Duration) upstream {
	t.Helper()
	if !canTellQuiet {
		t.Skip("net/http's transport does it here")
	}
	u := newUpstream(to, timeout)
	if u.direct == nil {
		t.Fatalf("%v cannot be asked directly", to)
	}
	t.Cleanup(u.CloseIdleConnections)
	return u
}

// answered is what a proxy hands on of an answer.
type answered struct {
	err           string
	status        int
	length        int64
	header, after http.Header
	body          string
	informed      string
}

func ask(u http.RoundTripper, method string, to *url.URL) (a answered) {
	inform := &httptrace.ClientTrace{Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
		a.informed += fmt.Sprint(code, header)
		return nil
	}}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), inform), method, to.String()+"/", nil)
	if err != nil {
		return answered{err: err.Error()}
	}
	resp, err := u.RoundTrip(r)
	if err != nil {
		a.err = "no answer"
		return a
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		a.err = err.Error()
	}
	a.status, a.length, a.header, a.after, a.body = resp.StatusCode, resp.ContentLength, resp.Header, resp.Trailer, string(body)
	return a
}

const plainAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

const (
	kept    = "kept"
	dropped = "dropped"
	appEnds = "the app ends it"
)

// TestDirectAnswers: what an app answers is handed on as net/http's transport does
// it, and the connection is used again where that does, too.
func TestDirectAnswers(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		method, answer string
		then           string // what becomes of the connection
	}{
		"length":             {"GET", plainAnswer, kept},
		"length 0":           {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", kept},
		"long":               {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("0123456789", 10_000), kept},
		"chunks":             {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", kept},
		"trailers":           {"GET", "HTTP/1.1 200 OK\r\nTrailer: Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nSum: 1\r\nMore: 2\r\n\r\n", kept},
		"of HEAD":            {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", kept},
		"of OPTIONS":         {"OPTIONS", plainAnswer, kept},
		"none":               {"GET", "HTTP/1.1 204 No Content\r\n\r\n", kept},
		"not modified":       {"GET", "HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\nContent-Length: 5\r\n\r\n", kept},
		"several of a field": {"GET", "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nContent-Length: 0\r\n\r\n", kept},
		"informational":      {"GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + plainAnswer, kept},
		"to its end":         {"GET", "HTTP/1.1 200 OK\r\n\r\nhello", appEnds},
		"of HTTP/1.0":        {"GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", dropped},
		"the last":           {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", dropped},
		"bytes behind it":    {"GET", plainAnswer + "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", dropped},
		"a body of HEAD":     {"HEAD", plainAnswer, dropped},
		"cut off":            {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", appEnds},
		"chunks cut off":     {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n30\r\nhello", appEnds},
		"header cut off":     {"GET", "HTTP/1.1 200 OK\r\nContent-Le", appEnds},
		"no HTTP":            {"GET", "SSH-2.0-OpenSSH_9.2\r\n", dropped},
		"two lengths":        {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", dropped},
		"another protocol":   {"GET", "HTTP/1.1 600 Odd\r\nContent-Length: x\r\n\r\n", dropped},
		"large header":       {"GET", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", maxAnswerHeaders) + "\r\nContent-Length: 0\r\n\r\n", dropped},
		"large header field by field": {"GET", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: "+strings.Repeat("a", 1000)+"\r\n", 1100) +
			"Content-Length: 0\r\n\r\n", dropped},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, _ int) {
				for {
					if _, err := http.ReadRequest(requests); err != nil {
						return
					}
					if io.WriteString(c, tt.answer); tt.then == appEnds {
						return
					}
				}
			})
			u := newDirect(t, app.url, time.Minute)
			want, got := ask(u.Transport, tt.method, app.url), ask(u.direct, tt.method, app.url)
			if want.err != got.err || want.status != got.status || want.length != got.length || want.body != got.body || want.informed != got.informed ||
				!maps.EqualFunc(want.header, got.header, equalValues) || !maps.EqualFunc(want.after, got.after, equalValues) {
				t.Errorf("net/http: %+.300v\ndirectly: %+.300v", want, got)
			}
			conns := int32(3)
			if tt.then == kept {
				conns = 2
			}
			if ask(u.direct, tt.method, app.url); app.conns.Load() != conns {
				t.Errorf("%d connections", app.conns.Load())
			}
		})
	}
}

func equalValues(a, b []string) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

// TestUnaskedAnswer: what an app sends on an idle connection is not taken for the
// answer to the next request.
func TestUnaskedAnswer(t *testing.T) {
	t.Parallel()
	sent := make(chan bool)
	app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, nth int) {
		answers(plainAnswer)(t, c, requests, nth)
		if nth == 1 {
			<-sent
			io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\n\r\nevil")
			sent <- true
			requests.ReadByte() // until it is closed
		}
	})
	u := newDirect(t, app.url, time.Minute)
	if a := ask(u, "GET", app.url); a.body != "hello" {
		t.Fatalf("%+v", a)
	}
	sent <- true
	<-sent
	if a := ask(u, "GET", app.url); a.body != "hello" || app.conns.Load() != 2 {
		t.Errorf("%+v on connection %d", a, app.conns.Load())
	}
}

// TestRepeated: a request is sent once more only if its connection ended, before it
// was answered, as connections do that were idle.
func TestRepeated(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		before int // answers on the first connection
		last   string
		silent bool
		conns  int32
		ok     bool
	}{
		"idle connection ends":   {1, "", false, 2, true},
		"new connection ends":    {0, "", false, 1, false},
		"an answer is cut off":   {1, "HTTP/1.1 2", false, 1, false},
		"the app takes too long": {1, "", true, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, nth int) {
				if nth > 1 {
					answers(plainAnswer)(t, c, requests, nth)
					return
				}
				for range tt.before {
					http.ReadRequest(requests)
					io.WriteString(c, plainAnswer)
				}
				http.ReadRequest(requests)
				io.WriteString(c, tt.last)
				if tt.silent {
					requests.ReadByte()
				}
			})
			u := newDirect(t, app.url, 500*time.Millisecond)
			for range tt.before {
				if a := ask(u, "GET", app.url); a.body != "hello" {
					t.Fatalf("%+v", a)
				}
			}
			if a := ask(u, "GET", app.url); (a.body == "hello") != tt.ok || app.conns.Load() != tt.conns {
				t.Errorf("%+v after %d connections", a, app.conns.Load())
			}
		})
	}
}

// TestSlowAnswers: the app's time ends when its answer begins; after that it may be
// silent for longer.
func TestSlowAnswers(t *testing.T) {
	t.Parallel()
	app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, nth int) {
		http.ReadRequest(requests)
		if nth == 1 {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
			time.Sleep(time.Second)
			io.WriteString(c, "lo")
		} else {
			io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n") // is not yet the answer
		}
		requests.ReadByte()
	})
	u := newDirect(t, app.url, 500*time.Millisecond)
	if a := ask(u, "GET", app.url); a.body != "hello" {
		t.Errorf("%+v", a)
	}
	u.direct.closeIdle()
	r, _ := http.NewRequest("GET", app.url.String(), nil)
	_, err := u.RoundTrip(r)
	if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("an app that does not answer: %v", err)
	}
}

// TestUnaskedSwitch: an app cannot make a connection something else than HTTP.
func TestUnaskedSwitch(t *testing.T) {
	t.Parallel()
	app := newRawApp(t, answers("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))
	u := newDirect(t, app.url, time.Minute)
	if a := ask(u, "GET", app.url); a.err == "" || a.informed != "" {
		t.Errorf("%+v", a)
	}
}

// TestGivenUp: the end of a request ends its connection, before the answer and in
// the middle of it.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{"before": "", "amidst": "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reached, gone := make(chan bool), make(chan error)
			app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, _ int) {
				http.ReadRequest(requests)
				io.WriteString(c, answer)
				close(reached)
				_, err := requests.ReadByte()
				gone <- err
			})
			u := newDirect(t, app.url, time.Minute)
			ctx, cancel := context.WithCancel(context.Background())
			r, _ := http.NewRequestWithContext(ctx, "GET", app.url.String(), nil)
			go func() {
				<-reached
				cancel()
			}()
			resp, err := u.RoundTrip(r)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if err := <-gone; err == nil {
				t.Error("the connection goes on")
			}
			if n := len(u.direct.idle); n != 0 {
				t.Errorf("%d connections are kept", n)
			}
		})
	}
}

// TestHalfReadAnswer: the rest of an answer that nobody read is not the next one.
func TestHalfReadAnswer(t *testing.T) {
	t.Parallel()
	app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, nth int) {
		if nth == 1 {
			answers("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", plainAnswer)(t, c, requests, nth)
		} else {
			answers(plainAnswer)(t, c, requests, nth)
		}
	})
	u := newDirect(t, app.url, time.Minute)
	r, _ := http.NewRequest("GET", app.url.String(), nil)
	resp, err := u.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
		t.Error(err)
	}
	resp.Body.Close()
	if n, err := resp.Body.Read(make([]byte, 5)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("a closed body: %d bytes, %v", n, err)
	}
	ask(u, "GET", app.url)
	if app.conns.Load() != 2 {
		t.Errorf("%d connections", app.conns.Load())
	}
}

// TestGivenUpLate: a connection that the end of a request closes is not kept, also if
// the whole answer is there.
func TestGivenUpLate(t *testing.T) {
	t.Parallel()
	app := newRawApp(t, answers(plainAnswer, plainAnswer))
	u := newDirect(t, app.url, time.Minute)
	ctx, cancel := context.WithCancel(context.Background())
	r, _ := http.NewRequestWithContext(ctx, "GET", app.url.String(), nil)
	resp, err := u.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	io.ReadAll(resp.Body)
	if n := len(u.direct.idle); n != 0 {
		t.Errorf("%d connections are kept", n)
	}
}

// TestIdleConnections: those that no request uses end after a second, and when the
// gateway closes.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(upstream){
		"by time":  func(upstream) {},
		"by Close": upstream.CloseIdleConnections,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ended := make(chan time.Time, 8)
			app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, nth int) {
				answers(plainAnswer)(t, c, requests, nth)
				requests.ReadByte()
				ended <- time.Now()
			})
			u := newDirect(t, app.url, time.Minute)
			var wg sync.WaitGroup
			for range cap(ended) {
				wg.Go(func() { ask(u, "GET", app.url) })
			}
			wg.Wait()
			end(u)
			for range app.conns.Load() {
				<-ended
			}
			u.direct.mu.Lock()
			defer u.direct.mu.Unlock()
			if len(u.direct.idle) != 0 {
				t.Errorf("%d are left", len(u.direct.idle))
			}
		})
	}
}

// TestManyDirectly: many at once get each their own answer, while others give up.
func TestManyDirectly(t *testing.T) {
	t.Parallel()
	app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, _ int) {
		for {
			r, err := http.ReadRequest(requests)
			if err != nil {
				return
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(r.URL.Path), r.URL.Path)
		}
	})
	u := newDirect(t, app.url, time.Minute)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for j := range 200 {
				ctx, cancel := context.WithCancel(context.Background())
				path := fmt.Sprintf("/%d/%d", i, j)
				r, _ := http.NewRequestWithContext(ctx, "GET", app.url.String()+path, nil)
				if givesUp := j%3 == 0; givesUp {
					go func() {
						runtime.Gosched()
						cancel()
					}()
				}
				resp, err := u.RoundTrip(r)
				var body []byte
				if err == nil {
					body, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				if err == nil && string(body) != path || err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %q, %v", path, body, err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if n := app.conns.Load(); n < 32 || n > 32*70 {
		t.Errorf("%d connections", n)
	}
}

// TestWhatGoesDirectly: requests that cannot be repeated, or that are more than one
// answer to one header, are net/http's.
func TestWhatGoesDirectly(t *testing.T) {
	t.Parallel()
	for to, addr := range map[string]string{
		"http://127.0.0.1:8080": "127.0.0.1:8080", "http://app": "app:80", "http://[::1]": "[::1]:80", "http://[::1]:8080": "[::1]:8080",
		"https://app": "", "http://äpp": "",
	} {
		u, err := url.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		if !canTellQuiet {
			addr = ""
		}
		if got := directAddr(u); got != addr {
			t.Errorf("%s: %q", to, got)
		}
	}
	for what, change := range map[string]func(*http.Request){
		"a POST":     func(r *http.Request) { r.Method = "POST" },
		"a DELETE":   func(r *http.Request) { r.Method = "DELETE" },
		"a body":     func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("x")) },
		"a last one": func(r *http.Request) { r.Close = true },
		"trailers":   func(r *http.Request) { r.Trailer = http.Header{"Sum": nil} },
		"an upgrade": func(r *http.Request) { r.Header.Set("Upgrade", "websocket") },
	} {
		r, _ := http.NewRequest("GET", "http://app/", nil)
		if !new(direct).takes(r) {
			t.Fatal("a GET is not")
		}
		if change(r); new(direct).takes(r) {
			t.Errorf("%s is", what)
		}
	}
}
