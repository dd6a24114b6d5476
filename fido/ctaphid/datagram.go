package ctaphid

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// Datagrams are a token's end of a datagram socket on this machine, one report in
// each: for tests, and for virtual machines without a device of their own. Every
// user of this machine can reach it, as every program of the user at the screen can
// reach a device.
type Datagrams struct {
	conn *net.UDPConn

	mu    sync.Mutex
	hosts map[uint32]netip.AddrPort // whoever used a channel last
	order []uint32                  // of hosts, oldest first
}

// ListenDatagrams listens on an address of this machine; port 0 takes a free one.
func ListenDatagrams(addr netip.AddrPort) (*Datagrams, error) {
	if !addr.Addr().IsLoopback() {
		return nil, errors.New("limpet: ctaphid: datagrams are for hosts on this machine: the address must be 127.0.0.1 or ::1")
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, fmt.Errorf("limpet: ctaphid: %w", err)
	}
	return &Datagrams{conn: conn, hosts: make(map[uint32]netip.AddrPort)}, nil
}

// Addr returns the address that it listens on.
func (d *Datagrams) Addr() netip.AddrPort { return d.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// Read returns the next datagram of the right length; others are passed over.
func (d *Datagrams) Read() (r Report, err error) {
	var buf [ReportSize + 1]byte
	for {
		n, from, err := d.conn.ReadFromUDPAddrPort(buf[:])
		if errors.Is(err, net.ErrClosed) {
			return r, err
		}
		if err != nil || n != ReportSize {
			continue // a host that has gone, or sends something else
		}
		copy(r[:], buf[:])
		d.remember(binary.BigEndian.Uint32(r[:]), from)
		return r, nil
	}
}

// remember keeps a channel's host: as many as there can be channels, and the
// broadcast channel's.
func (d *Datagrams) remember(channel uint32, from netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.hosts[channel]; !known {
		if len(d.order) > 2*maxChannels {
			delete(d.hosts, d.order[0])
			d.order = d.order[1:]
		}
		d.order = append(d.order, channel)
	}
	d.hosts[channel] = from
}

// Write sends a report to the host of its channel.
func (d *Datagrams) Write(r Report) error {
	d.mu.Lock()
	to, known := d.hosts[binary.BigEndian.Uint32(r[:])]
	d.mu.Unlock()
	if !known {
		return nil
	}
	_, err := d.conn.WriteToUDPAddrPort(r[:], to)
	return err
}

// Close ends Read.
func (d *Datagrams) Close() error { return d.conn.Close() }
