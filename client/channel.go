package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/limpet-auth/limpet/internal/outgoing"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// channelSigner signs a request once its TLS connection is known, with the key
// that the agreement becomes there (RFC 5705, RFC 9266).
type channelSigner struct {
	site      *site
	agreement *agreement
	message   *proof.Message // but for its Header
}

func (c *channelSigner) sign(h http.Header, conn net.Conn) error {
	key, err := c.agreement.channels.Of(conn, func() (*proof.MACKey, error) { return onChannel(c.agreement.mac, conn) })
	if err != nil {
		return fmt.Errorf("limpet: client: %s: key of the TLS connection: %w", c.site.origin, err)
	}
	m := *c.message
	m.Header = h
	err = sign(&m, c.site.now(), c.agreement.keyID, c.agreement.Algorithm, func(base []byte) ([]byte, error) {
		return key.Append(nil, base), nil
	})
	if err != nil {
		return fmt.Errorf("limpet: client: %s: %w", c.site.origin, err)
	}
	return nil
}

// channels keeps what an agreed key becomes on its connections.
type channels = outgoing.PerConn[*proof.MACKey]

func onChannel(agreed *proof.MACKey, conn net.Conn) (*proof.MACKey, error) {
	over, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return nil, errors.New("the connection is not a TLS one")
	}
	state := over.ConnectionState()
	exported, err := state.ExportKeyingMaterial(httpsig.ExporterLabel, nil, 32)
	if err != nil {
		return nil, err
	}
	defer clear(exported)
	return agreed.OnChannel(exported), nil
}
