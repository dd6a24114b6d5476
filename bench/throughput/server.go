package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/oauth"
	"github.com/limpet-auth/limpet/store/memstore"
)

// What a server process is.
const (
	bare           = "bare handler"
	guardHMAC      = "Guard, hw-sign HMAC proofs"
	guardSignature = "Guard, RFC 9421 HMAC proofs"
	bareECDSA      = "bare handler + one ecdsa.Verify"
	guardECDSA     = "Guard, hw-sign ECDSA proofs"
	bareToken      = "bare handler + one ecdsa.Verify + one JWT verified"
	guardDPoP      = "Guard, DPoP proofs and JWT access tokens"
)

// start runs this program as the server of a variant.
func start(variant string, users int, tokens *issuer) (*peer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-serve", variant, "-issuer", tokens.URL)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() { cmd.Process.Kill(); cmd.Wait() }
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return nil, fmt.Errorf("%s: the server did not start: %w", variant, err)
	}
	p := &peer{variant: variant, addr: strings.TrimSpace(addr), stop: stop}
	for range users {
		token := rand.Text() + rand.Text()[:17] // 43 characters, as 32 bytes in base64
		switch variant {
		case bare:
			p.users = append(p.users, user{scheme: "Bearer", token: token})
		case guardSignature:
			err = p.hold(token)
		case bareToken, guardDPoP:
			err = p.dpop(tokens)
		default:
			// The bare ECDSA server ignores the proofs; it gets the same bytes.
			err = p.login(token, variant == guardHMAC)
		}
		if err != nil {
			stop()
			return nil, fmt.Errorf("%s: %w", variant, err)
		}
	}
	return p, nil
}

func runServer(variant, issuer string) error {
	tokens, err := oauth.NewJWT(oauth.JWTConfig{Issuer: issuer, Audience: audience, JWKS: issuer + "/jwks"})
	if err != nil {
		return err
	}
	guard, err := limpet.New(limpet.Config{Session: limpet.Bearer(), Store: memstore.New(nil), Tokens: tokens, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	protected := guard.Protect(http.HandlerFunc(answer))
	var api http.Handler
	switch variant {
	case bare:
		api = http.HandlerFunc(answer)
	case guardHMAC, guardSignature, guardECDSA, guardDPoP:
		api = protected
	case bareECDSA:
		if api, err = verifying(nil); err != nil {
			return err
		}
	case bareToken:
		keys, err := fetchKeys(issuer)
		if err != nil {
			return err
		}
		if api, err = verifying(keys); err != nil {
			return err
		}
	default:
		return fmt.Errorf("no variant %q", variant)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if err := guard.Bind(w, r, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), "alice"); err != nil {
			limpet.Refuse(w, err)
		}
	})
	mux.Handle("/", protected)
	mux.Handle("/api", api)
	mux.HandleFunc("/cpu", func(w http.ResponseWriter, r *http.Request) {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, time.Duration(u.Utime.Nano()+u.Stime.Nano()))
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return (&http.Server{Handler: mux}).Serve(l)
}

// answer is the app: a small JSON document.
func answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(struct {
		ID   int    `json:"id"`
		Name string `json:"name"`
		OK   bool   `json:"ok"`
	}{1, "limpet", true})
}

// verifying is the app after one raw signature check a request and, with keys,
// that of the access token.
func verifying(keys *jose.JSONWebKeySet) (http.Handler, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	message := []byte("1764000000-0011223344556677889900112233445566778899001122334455667788990011")
	sum := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.Sum256(message)
		if !ecdsa.VerifyASN1(&key.PublicKey, sum[:], sig) {
			http.Error(w, "refused", http.StatusUnauthorized)
			return
		}
		if keys != nil {
			if err := verifyToken(keys, strings.TrimPrefix(r.Header.Get("Authorization"), "DPoP ")); err != nil {
				http.Error(w, "refused", http.StatusUnauthorized)
				return
			}
		}
		answer(w, r)
	}), nil
}
