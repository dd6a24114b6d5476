package gateway

import (
	"log/slog"
	"net"
	"net/http"

	"github.com/limpet-auth/limpet/internal/relay"
)

// NewServer returns a server with the limits that a gateway needs: none on how
// long a request or its answer takes, as long as they go on. Serve it on a
// [Listener]'s connections.
func NewServer(h http.Handler, log *slog.Logger) *http.Server { return relay.NewServer(h, log) }

// Listener returns a listener whose connections end if their peer takes no bytes
// for a minute. TLS goes on top of it.
func Listener(l net.Listener) net.Listener { return relay.Listener(l) }
