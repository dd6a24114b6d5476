package main

import (
	"crypto/tls"
	"fmt"
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
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	r.now.Store(&c)
	return nil
}

func (r *reloaded) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.now.Load(), nil }

// watch loads the certificate on each SIGHUP until stop is called. Files that
// cannot be loaded change nothing.
func (r *reloaded) watch(log *slog.Logger) (stop func()) {
	return onHangup(func() {
		if err := r.load(); err != nil {
			log.Error("limpet: certificate not reloaded", "why", err)
			return
		}
		log.Info("limpet: certificate reloaded")
	})
}

// onHangup calls reload on each SIGHUP until stop is called.
func onHangup(reload func()) (stop func()) {
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
				reload()
			}
		}
	}()
	return func() { signal.Stop(hangups); close(done) }
}
