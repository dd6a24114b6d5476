package gatewaybench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// SessionCookie is the cookie that is the app's session.
const SessionCookie = "sid"

// NewApp returns the app: a session for everybody who asks for one, and a small
// JSON document.
func NewApp() http.Handler {
	app := http.NewServeMux()
	app.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: SessionCookie, Value: newToken(), Path: "/", HttpOnly: true})
	})
	app.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"id":7,"name":"limpet","ok":true}`)
	})
	return app
}

// NewBare returns what the gateway is compared with: a httputil.ReverseProxy with
// the gateway's limits, its timeouts and its pool of buffers.
// It sets X-Forwarded-… as the gateway does and looks at nothing.
func NewBare(upstream *url.URL) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(upstream)
			pr.Out.Host = pr.In.Host
			pr.SetXForwarded()
		},
		Transport: &http.Transport{
			TLSHandshakeTimeout:    10 * time.Second,
			ResponseHeaderTimeout:  time.Minute,
			ExpectContinueTimeout:  time.Second,
			ForceAttemptHTTP2:      true,
			MaxIdleConns:           1024,
			MaxIdleConnsPerHost:    1024,
			IdleConnTimeout:        time.Second,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 1 << 20,
		},
		BufferPool: new(buffers),
		ErrorLog:   log.New(io.Discard, "", 0), // of a load that broke off
	}
}

type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

func (p *buffers) Get() []byte {
	if b, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return b[:]
	}
	return make([]byte, bufferSize)
}

func (p *buffers) Put(b []byte) { p.pool.Put((*[bufferSize]byte)(b)) }

// usage is what a process has used up to now, and what it holds.
type usage struct {
	cpu time.Duration
	rss int64
}

// Attend tells what this process uses, on out, as often as a line comes from in.
// It returns when in ends: whoever started the process is done with it, or gone.
func Attend(in io.Reader, out io.Writer) {
	for s := bufio.NewScanner(in); s.Scan(); {
		u := measure()
		fmt.Fprintln(out, int64(u.cpu), u.rss)
	}
}

// process is one that Attend answers for.
type process struct {
	url string
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startProcess starts a process that ends with ctx, or with this one. It has five
// seconds for that.
func startProcess(ctx context.Context, cmd *exec.Cmd) (*process, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	said, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, in: in, out: bufio.NewReader(out)}
	context.AfterFunc(ctx, func() {
		in.Close()
		time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
	})
	lines := bufio.NewReader(said)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			in.Close()
			cmd.Process.Kill()
			p.wait()
			return nil, errors.New("it did not start")
		}
		if _, u, ok := strings.Cut(line, "listening on "); ok {
			p.url = strings.TrimSpace(u)
			break
		}
		os.Stderr.WriteString(line)
	}
	go io.Copy(os.Stderr, lines)
	return p, nil
}

func (p *process) wait() { p.cmd.Wait() }

// used asks the process what it uses.
func (p *process) used() (u usage, err error) {
	if _, err = io.WriteString(p.in, "\n"); err == nil {
		_, err = fmt.Fscanln(p.out, &u.cpu, &u.rss)
	}
	if err != nil {
		return u, fmt.Errorf("a server has ended: %w", err)
	}
	return u, nil
}
