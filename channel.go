package limpet

import (
	"crypto/tls"
	"errors"
	"sync"

	"github.com/limpet-auth/limpet/internal/incoming"
	"github.com/limpet-auth/limpet/internal/weakmap"
	"github.com/limpet-auth/limpet/proof"
	"github.com/limpet-auth/limpet/proof/httpsig"
)

// channels keeps what was derived for TLS connections: the exporter costs some
// microseconds and many allocations, a key another HMAC. Requests of one
// connection share their *tls.ConnectionState; a server where they do not is
// merely slower.
type channels = weakmap.Map[tls.ConnectionState, *channel]

type channel struct {
	mu       sync.Mutex
	exported []byte
	keys     map[*proof.MACKey]*proof.MACKey // by the agreed key
}

const maxChannelKeys = 256 // a connection; a proxy's may carry many sessions

func newChannel(state *tls.ConnectionState) (*channel, error) {
	exported, err := incoming.Export(state, httpsig.ExporterLabel, nil, 32)
	if err != nil {
		return nil, err
	}
	return &channel{exported: exported, keys: make(map[*proof.MACKey]*proof.MACKey)}, nil
}

// key returns what an agreed key becomes on this connection.
func (ch *channel) key(agreed *proof.MACKey) *proof.MACKey {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if key := ch.keys[agreed]; key != nil {
		return key
	}
	for other := range ch.keys { // any one will do: map order is random
		if len(ch.keys) < maxChannelKeys {
			break
		}
		delete(ch.keys, other)
	}
	key := agreed.OnChannel(ch.exported)
	ch.keys[agreed] = key
	return key
}

// channelKey returns [proof.Message].ChannelKey for a connection.
func (g *Guard) channelKey(state *tls.ConnectionState) func(*proof.EphemeralKey) (*proof.MACKey, error) {
	return func(e *proof.EphemeralKey) (*proof.MACKey, error) {
		if !state.HandshakeComplete {
			return nil, errors.New("the TLS handshake is not complete")
		}
		ch, err := g.channels.Of(state, newChannel)
		if err != nil {
			return nil, err
		}
		return ch.key(e.MAC), nil
	}
}
