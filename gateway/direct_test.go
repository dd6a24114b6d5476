package gateway

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	"syscall"
	"testing"
	"testing/iotest"
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
			if readWhole(requests) {
				io.WriteString(c, text)
			}
		}
	}
}

// readWhole reads a request with its body, if there is one.
func readWhole(requests *bufio.Reader) bool {
	r, err := http.ReadRequest(requests)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err == nil
}

func newDirect(t *testing.T, to *url.URL, timeout time.Duration) upstream {
	t.Helper()
	if !canTellQuiet {
		t.Skip("net/http's transport does it here")
	}
	u := newUpstream(to, timeout, slog.New(slog.DiscardHandler))
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
	var upload io.Reader
	if method == "POST" {
		upload = io.MultiReader(strings.NewReader("of unknown length"))
	}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), inform), method, to.String()+"/", upload)
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
		"of POST":            {"POST", plainAnswer, kept},
		"of DELETE":          {"DELETE", plainAnswer, kept},
		"no content of POST": {"POST", "HTTP/1.1 204 No Content\r\n\r\n", kept},
		"much information":   {"GET", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: "+strings.Repeat("a", 60_000)+"\r\n\r\n", 20) + plainAnswer, kept},
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
				for readWhole(requests) {
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

// TestNoAnswers: an app cannot make a connection something else than HTTP, and what is
// no status is no answer.
func TestNoAnswers(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",
	} {
		app := newRawApp(t, answers(text))
		u := newDirect(t, app.url, time.Minute)
		if a := ask(u, "GET", app.url); a.err == "" || a.informed != "" {
			t.Errorf("%+v", a)
		}
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
			left := func() int {
				u.direct.mu.Lock()
				defer u.direct.mu.Unlock()
				return len(u.direct.idle)
			}
			for left() > 0 {
				time.Sleep(10 * time.Millisecond)
			}
			for range app.conns.Load() {
				<-ended
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

// TestWhatGoesDirectly: what may get more than one answer, or is no request any more
// after the first, is net/http's.
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
	for name, value := range map[string]string{"Upgrade": "websocket", "Expect": "100-continue", "Accept": "*/*"} {
		r, _ := http.NewRequest("POST", "http://app/", strings.NewReader("body"))
		r.Header.Set(name, value)
		if taken := new(direct).takes(r); taken != (name == "Accept") {
			t.Errorf("%s: %v", name, taken)
		}
	}
}

// TestPostIsNotRepeated: nobody knows what the app has done of it.
func TestPostIsNotRepeated(t *testing.T) {
	t.Parallel()
	app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, _ int) {
		answers(plainAnswer)(t, c, requests, 1)
		readWhole(requests)
	})
	u := newDirect(t, app.url, time.Minute)
	for method, body := range map[string]io.Reader{"POST": strings.NewReader("body"), "DELETE": nil} {
		before := app.conns.Load()
		if a := ask(u, "GET", app.url); a.body != "hello" {
			t.Fatalf("%+v", a)
		}
		r, _ := http.NewRequest(method, app.url.String(), body)
		if _, err := u.RoundTrip(r); err == nil || app.conns.Load() != before+1 {
			t.Errorf("%s: %v, %d connections", method, err, app.conns.Load()-before)
		}
	}
}

// TestUploads: bodies pass as they are, with what comes behind them, and their
// connections are used again.
func TestUploads(t *testing.T) {
	t.Parallel()
	app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, _ int) {
		for {
			r, err := http.ReadRequest(requests)
			if err != nil {
				return
			}
			body, err := io.ReadAll(r.Body)
			text := fmt.Sprintf("%d %x %v %v %v", r.ContentLength, sha256.Sum256(body), r.TransferEncoding, r.Trailer, err)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		}
	})
	u := newDirect(t, app.url, time.Minute)
	large := strings.Repeat("0123456789abcde", 1<<16)
	for name, body := range map[string]func() io.Reader{
		"small": func() io.Reader { return strings.NewReader("small") },
		"large": func() io.Reader { return strings.NewReader(large) },
		"parts": func() io.Reader { return io.MultiReader(strings.NewReader("a"), strings.NewReader(large)) },
	} {
		for _, trailer := range []http.Header{nil, {"Sum": {"1"}}} {
			var told [2]string
			for i, transport := range []http.RoundTripper{newTransport(time.Minute), u} {
				r, _ := http.NewRequest("PUT", app.url.String(), body())
				if r.Trailer = trailer; trailer != nil {
					r.ContentLength = -1
				}
				resp, err := transport.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				text, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				told[i] = string(text)
			}
			if told[0] != told[1] || !strings.Contains(told[0], "<nil>") {
				t.Errorf("%s: net/http: %s, directly: %s", name, told[0], told[1])
			}
		}
	}
	if n := len(u.direct.idle); n != 1 {
		t.Errorf("%d connections are kept", n)
	}
}

// pulled is a body that tells when it is closed.
type pulled struct {
	io.Reader
	closed chan bool
}

func (p *pulled) Close() error { close(p.closed); return nil }

// TestBrokenUpload: what reading a body fails with is what sending it fails with, and
// the app does not get a whole request.
func TestBrokenUpload(t *testing.T) {
	t.Parallel()
	whole := make(chan bool, 1)
	app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, _ int) { whole <- readWhole(requests) })
	u := newDirect(t, app.url, time.Minute)
	mine := errors.New("mine")
	body := &pulled{io.MultiReader(strings.NewReader("half"), iotest.ErrReader(mine)), make(chan bool)}
	r, _ := http.NewRequest("POST", app.url.String(), body)
	if _, err := u.RoundTrip(r); !errors.Is(err, mine) {
		t.Error(err)
	}
	if <-body.closed; <-whole {
		t.Error("the app takes it for whole")
	}
}

// TestSlowUpload: the app's time begins when it has the whole request, and ends when
// its answer begins, whichever comes first.
func TestSlowUpload(t *testing.T) {
	t.Parallel()
	for _, early := range []bool{false, true} {
		app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, _ int) {
			answers(plainAnswer)(t, c, requests, 1)
			r, err := http.ReadRequest(requests)
			if err != nil {
				return
			}
			if early {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
			}
			io.Copy(io.Discard, r.Body)
			if early {
				time.Sleep(400 * time.Millisecond)
				io.WriteString(c, "lo")
			}
			requests.ReadByte()
		})
		u := newDirect(t, app.url, 200*time.Millisecond)
		ask(u, "GET", app.url) // and the connection is used again
		r, w := io.Pipe()
		read := make(chan bool)
		go func() {
			for range 4 {
				time.Sleep(100 * time.Millisecond)
				w.Write([]byte("piece"))
			}
			close(read)
			w.Close()
		}()
		req, _ := http.NewRequest("POST", app.url.String(), r)
		resp, err := u.RoundTrip(req)
		if early {
			if err != nil {
				t.Fatal(err)
			}
			if text, err := io.ReadAll(resp.Body); string(text) != "hello" || err != nil {
				t.Errorf("%q, %v", text, err)
			}
			continue
		}
		select {
		case <-read:
		default:
			t.Error("not all of the body was read")
		}
		if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Error(err)
		}
	}
}

// TestEarlyAnswers: an answer may come, and go on, before the request has ended; the
// connection is not kept if that is not sent to its end.
func TestEarlyAnswers(t *testing.T) {
	t.Parallel()
	for _, ends := range []bool{true, false} {
		app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, _ int) {
			r, err := http.ReadRequest(requests)
			if err != nil {
				return
			}
			io.WriteString(c, plainAnswer)
			io.Copy(io.Discard, r.Body)
			requests.ReadByte()
		})
		u := newDirect(t, app.url, time.Minute)
		r, w := io.Pipe()
		req, _ := http.NewRequest("POST", app.url.String(), r)
		wrote := make(chan bool)
		go func() {
			w.Write([]byte("first"))
			close(wrote)
		}()
		resp, err := u.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if <-wrote; ends {
			w.Close()
		}
		if text, err := io.ReadAll(resp.Body); string(text) != "hello" || err != nil {
			t.Errorf("%q, %v", text, err)
		}
		u.direct.mu.Lock()
		if got := len(u.direct.idle) == 1; got != ends {
			t.Errorf("the request has ended: %v, its connection is kept: %v", ends, got)
		}
		u.direct.mu.Unlock()
		for err = nil; err == nil; { // until the body is closed
			_, err = w.Write([]byte("more"))
		}
	}
}

// TestRefusedEarly: who does not take a request to its end has answered, and that is
// the answer; the request is not sent again.
func TestRefusedEarly(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, nth int) {
		answers(plainAnswer)(t, c, requests, nth)
		if _, err := io.ReadFull(requests, make([]byte, 4096)); err != nil {
			return
		}
		asked.Add(1)
		io.WriteString(c, "HTTP/1.1 431 Too Large\r\nContent-Length: 4\r\n\r\nmuch")
	})
	u := newDirect(t, app.url, time.Minute)
	const times = 50
	for range times {
		ask(u, "GET", app.url)
		r, _ := http.NewRequest("GET", app.url.String(), nil)
		r.Header.Set("Large", strings.Repeat("x", 30<<10))
		resp, err := u.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 431 {
			t.Error(resp.Status)
		}
		resp.Body.Close()
	}
	if n := asked.Load(); n != times {
		t.Errorf("asked %d times", n)
	}
}

// TestOneWorker: an app that serves one connection after the other is not kept from one
// request by the connection of another.
func TestOneWorker(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conns := 0
	done := make(chan bool)
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns++
			for requests := bufio.NewReader(c); ; {
				r, err := http.ReadRequest(requests)
				if err != nil {
					break
				}
				io.Copy(io.Discard, r.Body)
				if io.WriteString(c, plainAnswer); r.Close {
					break
				}
			}
			c.Close()
		}
	}()
	u := newDirect(t, &url.URL{Scheme: "http", Host: l.Addr().String()}, time.Minute)
	for _, what := range []string{"GET", "POST", "Expect", "GET", "Expect", "POST", "Upgrade", "GET"} {
		r, _ := http.NewRequest("GET", "http://"+l.Addr().String()+"/", nil)
		switch what {
		case "POST":
			r, _ = http.NewRequest("POST", r.URL.String(), strings.NewReader("body"))
		case "Expect":
			r, _ = http.NewRequest("POST", r.URL.String(), strings.NewReader("body"))
			r.Header.Set("Expect", "100-continue")
		case "Upgrade":
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "websocket")
		}
		resp, err := u.RoundTrip(r)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	u.CloseIdleConnections()
	l.Close()
	if <-done; conns > 4 {
		t.Errorf("%d connections", conns)
	}
}

// TestFreeBefore: who waits for a connection to be made takes one that is free before.
func TestFreeBefore(t *testing.T) {
	t.Parallel()
	app := newRawApp(t, answers(plainAnswer, plainAnswer, plainAnswer))
	u := newDirect(t, app.url, time.Minute)
	dial, block := u.direct.dial, make(chan bool)
	first := true
	u.direct.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !first {
			<-block
		}
		first = false
		return dial(ctx, network, addr)
	}
	r, _ := http.NewRequest("GET", app.url.String(), nil)
	resp, err := u.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan answered)
	go func() { got <- ask(u, "GET", app.url) }()
	waiting := func() bool {
		u.direct.mu.Lock()
		defer u.direct.mu.Unlock()
		return len(u.direct.waiting) > 0
	}
	for !waiting() {
		runtime.Gosched()
	}

	// One who gives up is not waited for, and what it would have got goes to others.
	ctx, cancel := context.WithCancel(context.Background())
	gaveUp := make(chan error)
	go func() {
		r, _ := http.NewRequestWithContext(ctx, "GET", app.url.String(), nil)
		_, err := u.RoundTrip(r)
		gaveUp <- err
	}()
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	io.Copy(io.Discard, resp.Body)
	if a := <-got; a.body != "hello" || app.conns.Load() != 1 {
		t.Errorf("%+v on connection %d", a, app.conns.Load())
	}
	close(block)
	if a := ask(u, "GET", app.url); a.body != "hello" || waiting() {
		t.Errorf("%+v", a)
	}
}

// TestGivenAfterAll: a connection for who has just given up is kept for others, and one
// that was to be the last is not.
func TestGivenAfterAll(t *testing.T) {
	t.Parallel()
	app := newRawApp(t, answers(plainAnswer, plainAnswer))
	u := newDirect(t, app.url, time.Minute)
	wait := make(chan opened, 1)
	u.direct.waiting = append(u.direct.waiting, wait)
	u.direct.open(wait)
	u.direct.forget(wait)
	r, _ := http.NewRequest("GET", app.url.String(), nil)
	r.Close = true
	resp, err := u.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	if app.conns.Load() != 1 || len(u.direct.idle) > 0 {
		t.Errorf("%d connections, %d are kept", app.conns.Load(), len(u.direct.idle))
	}
}

// TestNobodyListens: an error of the one who dials is that of the one who asks.
func TestNobodyListens(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	to := &url.URL{Scheme: "http", Host: l.Addr().String()}
	u := newDirect(t, to, time.Minute)
	body := &pulled{strings.NewReader("body"), make(chan bool)}
	r, _ := http.NewRequest("POST", to.String(), body)
	if _, err := u.RoundTrip(r); !errors.Is(err, syscall.ECONNREFUSED) || len(u.direct.waiting) > 0 {
		t.Errorf("%v, %d are waiting", err, len(u.direct.waiting))
	}
	<-body.closed
}

// TestOverBefore: a request that is over before it is sent does not reach the app, and
// none that another one would be for the app.
func TestOverBefore(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, _ int) {
		for readWhole(requests) {
			asked.Add(1)
			io.WriteString(c, plainAnswer)
		}
	})
	u := newDirect(t, app.url, time.Minute)
	ask(u, "GET", app.url)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r, _ := http.NewRequestWithContext(ctx, "GET", app.url.String(), nil)
	if _, err := u.RoundTrip(r); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for name, value := range map[string]string{"Name": "a\nb", "Nul": "a\x00b", "A b": "c", "": "x"} {
		r, _ := http.NewRequest("GET", app.url.String(), nil)
		r.Header[name] = []string{value}
		if _, err := u.RoundTrip(r); err == nil {
			t.Errorf("%q: %q was sent", name, value)
		}
	}
	if a := ask(u, "GET", app.url); a.body != "hello" || asked.Load() != 2 || app.conns.Load() != 1 {
		t.Errorf("%+v, asked %d times on %d connections", a, asked.Load(), app.conns.Load())
	}
}

// TestClosedWhileRead: whoever closes a body ends its reading.
func TestClosedWhileRead(t *testing.T) {
	t.Parallel()
	app := newRawApp(t, func(t *testing.T, c net.Conn, requests *bufio.Reader, _ int) {
		readWhole(requests)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello")
		requests.ReadByte()
	})
	u := newDirect(t, app.url, time.Minute)
	r, _ := http.NewRequest("GET", app.url.String(), nil)
	resp, err := u.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(resp.Body, make([]byte, 5))
	go resp.Body.Close()
	for range 2 {
		if n, err := resp.Body.Read(make([]byte, 5)); n > 0 || err == nil || err == io.EOF {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
}

// TestIdleAfterClose: what becomes idle when the gateway was closed is not kept.
func TestIdleAfterClose(t *testing.T) {
	t.Parallel()
	app := newRawApp(t, answers(plainAnswer, plainAnswer))
	u := newDirect(t, app.url, time.Minute)
	r, _ := http.NewRequest("GET", app.url.String(), nil)
	resp, err := u.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	u.CloseIdleConnections()
	io.Copy(io.Discard, resp.Body)
	if n := len(u.direct.idle); n > 0 {
		t.Errorf("%d are kept", n)
	}
	if a := ask(u, "GET", app.url); a.body != "hello" {
		t.Errorf("%+v", a)
	}
}
