package incoming

import (
	"crypto/tls"
	"errors"
	"runtime"
	"sync"
	"weak"
)

// PerConn keeps a value for each TLS connection for as long as net/http keeps
// the connection: its requests share their *tls.ConnectionState. A server where
// they do not share it is merely slower. It is safe for concurrent use.
type PerConn[V any] struct {
	mu     sync.Mutex
	values map[weak.Pointer[tls.ConnectionState]]V
}

// Of returns the value of a connection, which create makes when it is first
// asked for.
func (p *PerConn[V]) Of(state *tls.ConnectionState, create func(*tls.ConnectionState) (V, error)) (V, error) {
	name := weak.Make(state)
	p.mu.Lock()
	defer p.mu.Unlock()
	if v, ok := p.values[name]; ok {
		return v, nil
	}
	v, err := create(state)
	if err != nil {
		return v, err
	}
	if p.values == nil {
		p.values = make(map[weak.Pointer[tls.ConnectionState]]V)
	}
	p.values[name] = v
	runtime.AddCleanup(state, p.forget, name)
	return v, nil
}

func (p *PerConn[V]) forget(name weak.Pointer[tls.ConnectionState]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.values, name)
}

// Len returns the number of connections that have a value.
func (p *PerConn[V]) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.values)
}

// Export returns keying material of a connection. States that were made by hand,
// as net/http/fcgi and others who do not end TLS themselves make them, have none
// and panic when they are asked.
func Export(state *tls.ConnectionState, label string, context []byte, size int) (b []byte, err error) {
	defer func() {
		if recover() != nil {
			b, err = nil, errors.New("a connection without keying material: TLS ends before the server")
		}
	}()
	return state.ExportKeyingMaterial(label, context, size)
}
