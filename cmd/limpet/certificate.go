package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
)

// reloaded is a TLS certificate that is read again on SIGHUP.
type reloaded struct {
	cert, key string // files
	now       atomic.Pointer[tls.Certificate]
}

func loadCertificate(cert, key string) (*reloaded, error) {
	r := &reloaded{cert: cert, key: key}
	return r, r.load()
}

func (r *reloaded) load() error {
	c, err := tls.LoadX509KeyPair(r.cert, r.key)
	var file *fs.PathError
	switch {
	case errors.As(err, &file): // and is named
		return fmt.Errorf("certificate: %w", err)
	case err != nil:
		return fmt.Errorf("certificate %s with key %s: %w", r.cert, r.key, err)
	}
	r.now.Store(&c)
	return nil
}

// loaded is files that can be loaded again.
type loaded struct {
	what string
	load func() error
}

func (r *reloaded) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.now.Load(), nil }

// onHangup loads files on each SIGHUP until stop is called, and tells systemd.
// Files that cannot be loaded change nothing.
func onHangup(log *slog.Logger, files ...loaded) (stop func()) {
	hangups := make(chan os.Signal, 1)
	if hangup != nil {
		signal.Notify(hangups, hangup)
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-hangups:
			}
			reloading()
			status := "reloaded"
			for _, f := range files {
				if err := f.load(); err != nil {
					log.Error("limpet: "+f.what+" not reloaded", "why", plain(err))
					status = f.what + " not reloaded: " + plain(err)
					continue
				}
				log.Info("limpet: " + f.what + " reloaded")
			}
			ready(status)
		}
	}()
	return func() { signal.Stop(hangups); close(done) }
}
