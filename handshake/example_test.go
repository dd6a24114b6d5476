package handshake_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"

	"github.com/limpet-auth/limpet/handshake"
	"github.com/limpet-auth/limpet/keyring"
)

// Two processes that share a secret. A keyring with a file would have it by name:
// Keys: handshake.FromRing(ring).
func Example() {
	secret := keyring.NewSecret()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	l, err := handshake.NewListener(inner, handshake.Config{ID: "db", Keys: handshake.Shared(secret), Records: true})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "hello %s", conn.(*handshake.Conn).PeerID())
	}()

	d := &handshake.Dialer{Config: handshake.Config{ID: "web", Peer: "db", Keys: handshake.Shared(secret), Records: true}}
	conn, err := d.Dial(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	fmt.Println(string(text), err)
	// Output: hello web <nil>
}
