//go:build unix

package redisstore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// newCertificate makes a certificate for 127.0.0.1 under an authority, or one of
// its own if there is none, and returns it with the files it lies in.
func newCertificate(t *testing.T, under *tls.Certificate) (cert tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: under == nil, BasicConstraintsValid: true,
		Subject: pkix.Name{CommonName: "end"}, KeyUsage: x509.KeyUsageDigitalSignature}
	if under == nil {
		template.Subject.CommonName, template.KeyUsage = "authority", x509.KeyUsageCertSign
	}
	parent, signer := template, key
	if under != nil {
		parent, signer = under.Leaf, under.PrivateKey.(*ecdsa.PrivateKey)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if cert, err = tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		t.Fatal(err)
	}
	return cert, certFile, keyFile
}

// TestTLS: over TLS with certificates on both sides all is as without; and what is
// wrong with them is said, soon.
func TestTLS(t *testing.T) {
	t.Parallel()
	authority, authorityFile, _ := newCertificate(t, nil)
	_, serverFile, serverKey := newCertificate(t, &authority)
	ours, _, _ := newCertificate(t, &authority)
	port := freePort(t)
	server := startRedis(t, "--tls-port", strconv.Itoa(port), "--tls-cert-file", serverFile, "--tls-key-file", serverKey,
		"--tls-ca-cert-file", authorityFile, "--tls-auth-clients", "yes")
	roots := x509.NewCertPool()
	roots.AddCert(authority.Leaf)
	secure := fmt.Sprint("127.0.0.1:", port)
	s, err := Open(t.Context(), "rediss://"+secure+"/3", &Options{Logger: quiet.Logger, TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{ours}}})
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(server.dir, "log"))
		t.Fatalf("%v\n%s", err, log)
	}
	defer s.Close()
	for name, call := range calls(s) {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, tt := range []struct {
		url  string
		tls  *tls.Config
		want string
	}{
		{"rediss://" + secure, nil, "certificate signed by unknown authority"},
		{"rediss://" + secure, &tls.Config{RootCAs: roots}, "connecting"}, // the alert may be too late to be read
		{"rediss://localhost:" + strconv.Itoa(port), &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{ours}}, "certificate"},
		{"rediss://" + server.addr(), &tls.Config{RootCAs: roots}, "connecting"},
		{"redis://" + secure, nil, "connecting"},
	} {
		began := time.Now()
		_, err := Open(t.Context(), tt.url, &Options{Logger: quiet.Logger, TLS: tt.tls})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.url, err, tt.want)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("%s took %v", tt.url, took)
		}
	}
}

// TestLogin: who may not, or gives the wrong password or database, is told so.
func TestLogin(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	server.do("acl", "setuser", "limpet", "on", ">s3same", "~*", "+@all")
	server.do("acl", "setuser", "reader", "on", ">s3same", "~*", "+@read", "+@connection", "+client", "+info", "+role")
	server.do("acl", "setuser", "default", "off")
	for url, want := range map[string]string{
		"redis://limpet:wrong@":    "WRONGPASS",
		"redis://nobody:s3same@":   "WRONGPASS",
		"redis://limpet@":          "WRONGPASS",
		"redis://":                 "wants a password",
		"redis://reader:s3same@":   "NOPERM",
		"redis://limpet:s3same@/x": "database number",
	} {
		scheme, path, _ := strings.Cut(url, "@")
		if path == "" && !strings.HasSuffix(url, "@") {
			scheme = strings.TrimSuffix(url, "@")
		} else {
			scheme += "@"
		}
		_, err := Open(t.Context(), scheme+server.addr()+path, quiet)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
	if _, err := Open(t.Context(), "redis://limpet:s3same@"+server.addr()+"/99", quiet); err == nil || !strings.Contains(err.Error(), "out of range") {
		t.Errorf("database 99: %v", err)
	}
}
