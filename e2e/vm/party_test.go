//go:build guest

package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"
)

// TestBrowser has alice's Chromium use the token: with a relying party here, which
// has the checks of go-webauthn, and with passkeys at the page of limpet serve. It
// begins where TestInstall ended.
func TestBrowser(t *testing.T) {
	asked = alice.attend(t)
	const scripts, display = "/usr/lib/limpet-vm/browser/", ":7"
	dir := alice.home + "/browser"
	alice.must(t, "mkdir", dir)
	start(t, alice.command("Xvfb", display, "-screen", "0", "1000x800x24", "-nolisten", "tcp", "-fbdir", dir))
	waitFor(t, "the screen", func() bool {
		_, err := os.Stat("/tmp/.X11-unix/X" + strings.TrimPrefix(display, ":"))
		return err == nil
	})
	const server = "localhost:28280"
	start(t, alice.command("limpet", "serve", "--listen", "127.0.0.1:28280", "--store", "mem:"))
	waitFor(t, "limpet serve", func() bool {
		conn, err := net.Dial("tcp", server)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	as := alice.command(scripts+"node", "--no-warnings", scripts+"token.mjs")
	cmd := exec.CommandContext(ctx, as.Path, as.Args[1:]...)
	cmd.Dir, cmd.SysProcAttr = as.Dir, as.SysProcAttr
	cmd.Env = append(as.Env, "DISPLAY="+display, "LIMPET_CHROMIUM=/usr/bin/chromium", "LIMPET_SCREEN="+dir+"/Xvfb_screen0",
		"LIMPET_PROFILE="+dir+"/profile", "LIMPET_PARTY="+newParty(t), "LIMPET_URL=http://"+server)
	cmd.WaitDelay = 10 * time.Second // for a Chromium that it leaves behind
	out, err := cmd.CombinedOutput()
	t.Logf("\n%s%s", out, asked.questions(t))
	if err != nil {
		t.Fatalf("%v\n%s", err, journal())
	}

	questions := asked.questions(t)
	for question, times := range map[string]int{
		`Register with localhost (calls itself "A party") as "alice"?`: 2,
		`Sign in to localhost?`: 4,
		`Register with localhost (calls itself "Limpet") as "alice"?`: 1,
		`Sign in to localhost (calls itself "Limpet") as "alice"?`:    1,
	} {
		if got := strings.Count(questions, question); got != times {
			t.Errorf("%s was asked %d times, want %d", question, got, times)
		}
	}
	if info := alice.must(t, "fido2-token", "-I", device); !strings.Contains(info, " clientPin") || !strings.Contains(info, "pin retries: 8") {
		t.Errorf("after Chromium the token is\n%s", info)
	}
}

// start has a program run until the test ends.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// party is a relying party whose one user is alice.
type party struct {
	rp          *webauthn.WebAuthn
	credentials []webauthn.Credential
	session     *webauthn.SessionData
}

func (p *party) WebAuthnID() []byte                         { return []byte("alice's handle") }
func (p *party) WebAuthnName() string                       { return "alice" }
func (p *party) WebAuthnDisplayName() string                { return "Alice" }
func (p *party) WebAuthnCredentials() []webauthn.Credential { return p.credentials }

// newParty starts one, and returns its URL. The last credential is the one that is
// asked for.
func newParty(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("http://localhost:%d", l.Addr().(*net.TCPAddr).Port)
	p := new(party)
	p.rp, err = webauthn.New(&webauthn.Config{RPID: "localhost", RPDisplayName: "A party", RPOrigins: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<!DOCTYPE html><title>A party</title>")
	})
	for path, handle := range map[string]func(*http.Request) (any, error){
		"/create/options": p.createOptions, "/create": p.create, "/get/options": p.getOptions, "/get": p.get,
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			answer, err := handle(r)
			if e := (*protocol.Error)(nil); errors.As(err, &e) {
				err = fmt.Errorf("%s: %s", e.Details, e.DevInfo)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			json.NewEncoder(w).Encode(answer)
		})
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: patience}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return url
}

func (p *party) createOptions(r *http.Request) (options any, err error) {
	more := []webauthn.RegistrationOption{webauthn.WithAuthenticatorSelection(protocol.AuthenticatorSelection{
		UserVerification: protocol.VerificationDiscouraged, ResidentKey: protocol.ResidentKeyRequirementDiscouraged})}
	if r.FormValue("prf") != "" {
		more = append(more, webauthn.WithExtensions(webauthn.WithExtensionPRFSupport()))
	}
	options, p.session, err = p.rp.BeginRegistration(p, more...)
	return options, err
}

func (p *party) create(r *http.Request) (any, error) {
	made, err := protocol.ParseCredentialCreationResponseBody(r.Body)
	if err != nil {
		return nil, err
	}
	credential, err := p.rp.CreateCredential(p, *p.session, made)
	if err != nil {
		return nil, err
	}
	p.credentials = []webauthn.Credential{*credential}
	prf := made.ClientExtensionResults.PRF
	return map[string]bool{"verified": credential.Flags.UserVerified, "prf": prf != nil && prf.Enabled != nil && *prf.Enabled}, nil
}

func (p *party) getOptions(r *http.Request) (options any, err error) {
	more := []webauthn.LoginOption{webauthn.WithUserVerification(protocol.VerificationDiscouraged)}
	if r.FormValue("prf") != "" {
		more = append(more, webauthn.WithAssertionExtensions(webauthn.WithExtensionPRF(protocol.PRFValues{First: []byte(r.FormValue("salt"))})))
	}
	options, p.session, err = p.rp.BeginLogin(p, more...)
	return options, err
}

func (p *party) get(r *http.Request) (any, error) {
	signed, err := protocol.ParseCredentialRequestResponseBody(r.Body)
	if err != nil {
		return nil, err
	}
	credential, err := p.rp.ValidateLogin(p, *p.session, signed)
	if err != nil {
		return nil, err
	}
	if credential.Authenticator.CloneWarning {
		return nil, errors.New("the counter went back")
	}
	p.credentials = []webauthn.Credential{*credential}
	var output []byte
	if prf := signed.ClientExtensionResults.PRF; prf != nil && prf.Results != nil {
		output = prf.Results.First
	}
	return map[string]any{"verified": credential.Flags.UserVerified, "output": output}, nil
}
