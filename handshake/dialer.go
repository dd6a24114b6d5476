package handshake

import (
	"context"
	"net"
)

// Dialer connects to servers and has both ends prove themselves.
type Dialer struct {
	Config Config

	// DialContext makes the connection: that of a net.Dialer, which is the
	// default, or of a tls.Dialer.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// Dial connects to address, within ctx, and runs the handshake.
func (d *Dialer) Dial(ctx context.Context, network, address string) (*Conn, error) {
	if err := d.Config.check(true); err != nil {
		return nil, err
	}
	dial := d.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, wrap(err)
	}
	return Client(ctx, conn, &d.Config)
}
