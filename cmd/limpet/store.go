package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/internal/private"
	"github.com/limpet-auth/limpet/internal/telemetry"
	"github.com/limpet-auth/limpet/store/boltstore"
	"github.com/limpet-auth/limpet/store/memstore"
	"github.com/limpet-auth/limpet/store/redisstore"
)

// storeFlag is the value of --store: "mem:", "bolt:PATH" or the URL of a Redis.
type storeFlag string

func (s *storeFlag) String() string { return string(*s) }
func (s *storeFlag) Type() string   { return "store" }
func (s *storeFlag) Set(text string) error {
	kind, path, _ := strings.Cut(text, ":")
	// What is wrong with a URL is said later, without repeating its password.
	if !strings.Contains(text, "://") && !(kind == "mem" && path == "") && !(kind == "bolt" && path != "") {
		return errors.New("must be mem:, bolt:PATH or a URL such as redis://HOST")
	}
	*s = storeFlag(text)
	return nil
}

// remote reports whether the store is one that servers share over the network.
func (s storeFlag) remote() bool { return strings.Contains(string(s), "://") }

// kind returns the word that begins it, as bolt.
func (s storeFlag) kind() string {
	kind, _, _ := strings.Cut(string(s), ":")
	return cmp.Or(kind, "bolt")
}

// path returns the store's file, "" if it has none.
func (s storeFlag) path() (string, error) {
	switch {
	case s == "":
		dir, err := stateDir()
		if err != nil {
			return "", withHint(fmt.Errorf("no place for the store: %w", err), "name one with --store bolt:PATH")
		}
		return filepath.Join(dir, "server.db"), nil
	case s == "mem:" || s.remote():
		return "", nil
	}
	return filepath.Abs(strings.TrimPrefix(string(s), "bolt:"))
}

// storeAccess are the files that say how a store in Redis is reached.
type storeAccess struct {
	password  string
	authority string // PEM certificates; "" means those that the system trusts
	cert, key string // the client's own, "" for none
}

func (a *storeAccess) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&a.password, "store-password-file", "", "`file` with the password of the Redis")
	f.StringVar(&a.authority, "store-ca-file", "", "PEM `file` with the certificates that a rediss Redis must have one under (default those that the system trusts)")
	f.StringVar(&a.cert, "store-cert-file", "", "PEM `file` with this end's certificate, for a rediss Redis that asks for one")
	f.StringVar(&a.key, "store-key-file", "", "PEM `file` with its private key")
}

// options reads the files.
func (a *storeAccess) options(s storeFlag, log *slog.Logger) (*redisstore.Options, error) {
	opts := &redisstore.Options{Logger: log}
	if a.password != "" {
		if err := private.OwnerOnly(a.password); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		b, err := readBounded(a.password, maxStorePassword)
		if err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		opts.Password = strings.TrimRight(string(b), "\r\n")
	}
	if a.authority == "" && a.cert == "" && a.key == "" {
		return opts, nil
	}
	if !strings.HasPrefix(string(s), "rediss") {
		return nil, usage("--store-ca-file, --store-cert-file and --store-key-file are for stores of the form rediss://…")
	}
	if (a.cert == "") != (a.key == "") {
		return nil, usage("--store-cert-file and --store-key-file go together")
	}
	opts.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if a.authority != "" {
		pem, err := readBounded(a.authority, maxAuthorities)
		if err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		opts.TLS.RootCAs = x509.NewCertPool()
		if !opts.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("store: no certificate in %s", a.authority)
		}
	}
	if a.cert != "" {
		// Read for each connection: certificates are replaced while servers run.
		load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(a.cert, a.key)
			return &c, err
		}
		if _, err := load(nil); err != nil {
			return nil, fmt.Errorf("store: certificate: %w", err)
		}
		opts.TLS.GetClientCertificate = load
	}
	return opts, nil
}

// openRemote connects to the store.
func (s storeFlag) openRemote(ctx context.Context, access *storeAccess, log *slog.Logger) (*redisstore.Store, error) {
	opts, err := access.options(s, log)
	if err != nil {
		return nil, err
	}
	store, err := redisstore.Open(ctx, string(s), opts)
	if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) && access.authority == "" {
		err = withHint(err, "--store-ca-file names a file with the authority's certificate")
	}
	return store, err
}

const (
	maxStorePassword = 4096    // bytes
	maxAuthorities   = 1 << 20 // likewise
)

// openSealed opens a server's store, and the key that secrets in it are sealed
// under.
func openSealed(ctx context.Context, s storeFlag, access *storeAccess, sealKeyFile string, log *slog.Logger) (key []byte, store telemetry.Store, closer io.Closer, err error) {
	if s.remote() {
		if key, err = sealKey(sealKeyFile, ""); err == nil && key == nil {
			err = usage("a store in Redis needs --seal-key-file, the same on every server")
		}
		if err != nil {
			return nil, nil, nil, err
		}
		store, err := s.openRemote(ctx, access, log)
		return key, store, store, err
	}
	path, err := s.path()
	if err != nil {
		return nil, nil, nil, err
	}
	if store, closer, err = openStore(path); err != nil {
		return nil, nil, nil, err
	}
	if key, err = sealKey(sealKeyFile, path); err != nil {
		closer.Close()
	}
	return key, store, closer, err
}

// openStore opens the store in a file, or one in memory for the path "".
func openStore(path string) (telemetry.Store, io.Closer, error) {
	if path == "" {
		return memstore.New(nil), io.NopCloser(nil), nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, nil, fmt.Errorf("store: %w", err)
	}
	s, err := boltstore.Open(path, nil)
	if err != nil {
		return nil, nil, err
	}
	return s, s, nil
}

const sealKeySize = 32

// sealKey returns the key that secrets in the store are sealed under: from the
// file, if one is named; else from the systemd credential limpet-seal-key; else
// from a file beside the store. A file that does not exist is made. A store in
// memory needs no key that lasts.
func sealKey(file, store string) ([]byte, error) {
	if file == "" {
		if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
			key, err := readSealKey(filepath.Join(dir, "limpet-seal-key")) // systemd guards the directory
			if !missing(err) {
				return key, err
			}
		}
		if store == "" {
			return nil, nil
		}
		file = store + ".sealkey"
	}
	key, err := readPrivateKey(file)
	if !missing(err) {
		return key, err
	}
	key = make([]byte, sealKeySize)
	rand.Read(key) // never fails
	err = createFile(file, key)
	if errors.Is(err, fs.ErrExist) {
		return readPrivateKey(file) // another process was faster
	}
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	return key, nil
}

func readPrivateKey(path string) ([]byte, error) {
	if err := private.OwnerOnly(path); err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	return readSealKey(path)
}

func readSealKey(path string) ([]byte, error) {
	key, err := readBounded(path, sealKeySize+1)
	if err == nil && len(key) != sealKeySize {
		err = fmt.Errorf("%s has %d bytes, want %d", path, len(key), sealKeySize)
	}
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	return key, nil
}
