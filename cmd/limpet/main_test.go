//go:build unix

package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/limpet-auth/limpet/limpettest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"limpet": func() {
		if path := os.Getenv("TEST_SYSTEM_SOCKET"); path != "" {
			systemSocket = path
		}
		main()
	}})
}

// noTPM is the TPM of the tests, lest they use this machine's.
const noTPM = "unix:/nonexistent"

func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			for _, dir := range []string{"HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"} {
				env.Setenv(dir, env.WorkDir+"/"+strings.ToLower(dir))
			}
			env.Setenv("LIMPET_TPM", noTPM)
			peer, err := filepath.Abs("../../fido/testdata/peer.py")
			if err != nil {
				return err
			}
			env.Setenv("PEER", peer)
			env.Setenv("GORACE", "atexit_sleep_ms=20") // not a second for each command
			env.Values["servers"] = make(map[string]*server)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":    cmdCode,
			"server":  func(ts *testscript.TestScript, _ bool, args []string) { startServer(ts, args, "serve") },
			"gateway": func(ts *testscript.TestScript, _ bool, args []string) { startServer(ts, args, "gateway") },
			"daemon":  cmdDaemon,
			"echo":    cmdEcho,
			"ask":     cmdAsk,
			"watch":   cmdWatch,
			"watched": cmdWatched,
			// collector starts what takes traces: collector NAME FILE. $NAME is its URL, FILE is there once it got some.
			"collector": func(ts *testscript.TestScript, _ bool, args []string) {
				file := ts.MkAbs(args[1])
				srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if b, err := io.ReadAll(r.Body); err == nil && r.URL.Path == "/v1/traces" {
						os.WriteFile(file, b, 0o600)
					}
				}))
				ts.Defer(srv.Close)
				ts.Setenv(args[0], srv.URL)
			},
			"channel": func(ts *testscript.TestScript, _ bool, args []string) { startServer(ts, args, "channel", "serve") },
			"proxy":   cmdProxy,
			"signal":  cmdSignal,
			"mode":    cmdMode,
			"cert":    cmdCert,
			"setfrom": func(ts *testscript.TestScript, _ bool, args []string) { // FILE NAME PATTERN
				found := regexp.MustCompile(args[2]).FindStringSubmatch(ts.ReadFile(args[0]))
				if found == nil {
					ts.Fatalf("%s is not in %s", args[2], args[0])
				}
				ts.Setenv(args[1], found[1])
			},
			"redis": func(ts *testscript.TestScript, _ bool, args []string) { startRedis(t, ts, args) },
			"sleep": func(ts *testscript.TestScript, _ bool, args []string) {
				d, err := time.ParseDuration(args[0])
				ts.Check(err)
				time.Sleep(d)
			},
			"swtpm": func(ts *testscript.TestScript, _ bool, args []string) {
				addr := limpettest.SoftTPMAt(t, args[0])
				ts.Setenv("TPM", addr)
				ts.Setenv("TPM2TOOLS_TCTI", "swtpm:path="+strings.TrimPrefix(addr, "unix:"))
			},
		},
	})
}

// cmdCode runs limpet and checks its exit code: code 2 login --user alice.
// Its output goes to the files out and err.
func cmdCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	cmd := exec.Command("limpet", args[1:]...)
	cmd.Path, err = exec.LookPath("limpet")
	ts.Check(err)
	cmd.Dir, cmd.Env = ts.MkAbs("."), environ(ts)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Run() // its exit code tells
	ts.Check(os.WriteFile(ts.MkAbs("out"), stdout.Bytes(), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("err"), stderr.Bytes(), 0o600))
	if got := cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("exit code %d, want %d\n%s%s", got, want, &stdout, &stderr)
	}
}

// startRedis starts a Redis with the password "open sesame": its address is $REDIS.
// With redis CERT KEY it also speaks TLS, on $REDISS, to whom that certificate
// vouches for.
func startRedis(t *testing.T, ts *testscript.TestScript, args []string) {
	settings := []string{"--requirepass", "open sesame"}
	if len(args) == 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0") // asks for a port that is free
		ts.Check(err)
		ts.Setenv("REDISS", l.Addr().String())
		cert := ts.MkAbs(args[0])
		settings = append(settings, "--tls-port", strconv.Itoa(l.Addr().(*net.TCPAddr).Port), "--tls-cert-file", cert, "--tls-key-file", ts.MkAbs(args[1]),
			"--tls-ca-cert-file", cert, "--tls-auth-clients", "yes")
		l.Close()
	}
	ts.Setenv("REDIS", limpettest.Redis(t, settings...))
}

func environ(ts *testscript.TestScript) (env []string) {
	for _, name := range []string{"HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "PATH", "TMPDIR", "GOCOVERDIR", "GORACE",
		"LIMPET_CONFIG", "LIMPET_TPM", "LIMPET_STORE", "LIMPET_LISTEN", "LIMPET_USER", "LIMPET_CHALLENGE", "LIMPET_CHANNEL", "CREDENTIALS_DIRECTORY", "SSL_CERT_FILE", "XDG_RUNTIME_DIR", "TEST_SYSTEM_SOCKET"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

type server struct {
	cmd  *exec.Cmd
	log  *bytes.Buffer // whole once done is closed
	done chan struct{}
}

var (
	listening = regexp.MustCompile(`listening on (\S+)`)
	adminPort = regexp.MustCompile(`admin API on (\S+)`) // said before that
)

// startServer starts limpet serve, gateway or channel serve on a free port: server
// NAME [FLAG...]. $NAME becomes its URL.
func startServer(ts *testscript.TestScript, args []string, command ...string) {
	cmdDaemon(ts, false, slices.Concat(args[:1], command, []string{"--listen", "127.0.0.1:0"}, args[1:]))
}

// cmdDaemon starts limpet, which listens: daemon NAME [ARG...]. $NAME becomes where,
// $NAME_ADMIN its admin port.
// Its output goes to the file NAME.
func cmdDaemon(ts *testscript.TestScript, _ bool, args []string) {
	path, err := exec.LookPath("limpet")
	ts.Check(err)
	s := &server{cmd: exec.Command(path, args[1:]...), log: new(bytes.Buffer), done: make(chan struct{})}
	s.cmd.Args[0] = "limpet"
	s.cmd.Dir, s.cmd.Env = ts.MkAbs("."), environ(ts)
	stdout, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer stdout.Close()
	s.cmd.Stdout = stdout
	stderr, err := s.cmd.StderrPipe()
	ts.Check(err)
	ts.Check(s.cmd.Start())
	url, admin := make(chan string, 1), ""
	go func() {
		defer close(s.done)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			fmt.Fprintln(s.log, lines.Text())
			if found := adminPort.FindStringSubmatch(lines.Text()); found != nil {
				admin = found[1]
			}
			if found := listening.FindStringSubmatch(lines.Text()); found != nil {
				url <- found[1]
			}
		}
		s.cmd.Wait()
	}()
	ts.Defer(func() { s.cmd.Process.Kill(); <-s.done })
	select {
	case u := <-url:
		ts.Setenv(args[0], u)
		ts.Setenv(args[0]+"_ADMIN", admin)
	case <-s.done:
		ts.Fatalf("the server ended: %s", s.log)
	case <-time.After(20 * time.Second):
		ts.Fatalf("the server does not listen")
	}
	ts.Value("servers").(map[string]*server)[args[0]] = s
}

// cmdWatch starts limpet session watch: watch FILE [FLAG...]. What it shows, as
// JSON, is in FILE after watched FILE.
func cmdWatch(ts *testscript.TestScript, _ bool, args []string) {
	path, err := exec.LookPath("limpet")
	ts.Check(err)
	s := &server{cmd: exec.Command(path, append([]string{"session", "watch", "--json"}, args[1:]...)...), done: make(chan struct{})}
	s.cmd.Args[0] = "limpet"
	s.cmd.Dir, s.cmd.Env = ts.MkAbs("."), environ(ts)
	out, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer out.Close()
	s.cmd.Stdout, s.cmd.Stderr = out, out
	ts.Check(s.cmd.Start())
	go func() { defer close(s.done); s.cmd.Wait() }()
	ts.Defer(func() { s.cmd.Process.Kill(); <-s.done })
	ts.Value("servers").(map[string]*server)[args[0]] = s
	// It says nothing before it is told something.
	for range 200 {
		fi, err := out.Stat()
		ts.Check(err)
		if fi.Size() > 0 {
			return
		}
		resp, err := http.Get(ts.Getenv("URL"))
		ts.Check(err)
		resp.Body.Close()
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("nothing is seen")
}

// cmdWatched waits for the end of what watch began.
func cmdWatched(ts *testscript.TestScript, _ bool, args []string) {
	select {
	case <-ts.Value("servers").(map[string]*server)[args[0]].done:
	case <-time.After(15 * time.Second):
		ts.Fatalf("it does not end")
	}
}

var signals = map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL}

// cmdSignal sends a server a signal: signal NAME INT. Unless that is HUP it waits
// for the end, which is orderly but for KILL; the log goes to the file log.
func cmdSignal(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.Value("servers").(map[string]*server)[args[0]]
	if err := s.cmd.Process.Signal(signals[args[1]]); !errors.Is(err, os.ErrProcessDone) {
		ts.Check(err)
	}
	if args[1] == "HUP" {
		return
	}
	select {
	case <-s.done:
	case <-time.After(15 * time.Second):
		ts.Fatalf("the server does not end")
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 && args[1] != "KILL" {
		ts.Fatalf("exit code %d\n%s", code, s.log)
	}
	ts.Check(os.WriteFile(ts.MkAbs("log"), s.log.Bytes(), 0o600))
}

// cmdProxy starts a proxy that ends TLS before a server: proxy NAME URL CERT. $NAME
// becomes its URL, CERT its certificate.
func cmdProxy(ts *testscript.TestScript, _ bool, args []string) {
	server, err := url.Parse(args[1])
	ts.Check(err)
	proxy := httptest.NewTLSServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(server) },
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	})
	ts.Defer(proxy.Close)
	ts.Setenv(args[0], proxy.URL)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxy.Certificate().Raw})
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), cert, 0o600))
}

// cmdMode checks permissions: mode 0600 FILE...
func cmdMode(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args[1:] {
		fi, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%#o", fi.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, want %s", name, got, args[0])
		}
	}
}

// cmdCert makes a certificate for 127.0.0.1: cert CERT KEY.
func cmdCert(ts *testscript.TestScript, _ bool, args []string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true, BasicConstraintsValid: true,
		Subject: pkix.Name{CommonName: "test"}, // which OpenSSL wants
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	ts.Check(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	for i, block := range []pem.Block{{Type: "CERTIFICATE", Bytes: cert}, {Type: "PRIVATE KEY", Bytes: der}} {
		ts.Check(os.WriteFile(ts.MkAbs(args[i]), pem.EncodeToMemory(&block), 0o600))
	}
}

// cmdEcho starts a TCP server that sends back what it got: echo NAME. $NAME becomes
// its address.
func cmdEcho(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], l.Addr().String())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
}

// cmdAsk sends a text over TCP, half-closes and wants it back: ask ADDRESS TEXT.
// With ! it wants nothing back.
func cmdAsk(ts *testscript.TestScript, neg bool, args []string) {
	c, err := net.Dial("tcp", args[0])
	ts.Check(err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = io.WriteString(c, args[1])
	ts.Check(err)
	c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	if (string(got) == args[1]) == neg || neg && len(got) > 0 {
		ts.Fatalf("it answers %q, %v", got, err)
	}
}
