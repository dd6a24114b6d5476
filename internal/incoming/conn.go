package incoming

import (
	"crypto/tls"
	"errors"
)

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
