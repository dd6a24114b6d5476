package main

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// inherited returns the TCP sockets that systemd opened for this process
// (sd_listen_fds(3)) under the names that their units give them. A socket of no
// such name is refused: its clients would wait for ever. Without systemd, and for
// the child of a process that the sockets were for, there are none.
func inherited(names ...string) (map[string][]net.Listener, error) {
	sockets := make(map[string][]net.Listener)
	for _, f := range activation.Files(true) {
		defer f.Close() // the listener has a copy
		if !slices.Contains(names, f.Name()) {
			return nil, withHint(fmt.Errorf("systemd passes a socket of the name %q", f.Name()),
				"its unit needs FileDescriptorName=%s", strings.Join(names, " or "))
		}
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("the socket %q of systemd: %w", f.Name(), err)
		}
		if _, ok := l.(*net.TCPListener); !ok {
			l.Close()
			return nil, fmt.Errorf("the socket %q of systemd is not a TCP socket", f.Name())
		}
		sockets[f.Name()] = append(sockets[f.Name()], l)
	}
	return sockets, nil
}

// How a service is, as sd_notify(3) has it. Without systemd nobody is told.

func ready(status string) { tell(daemon.SdNotifyReady + "\nSTATUS=" + oneLine.Replace(status)) }
func reloading()          { tell(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec()) }
func stopping()           { tell(daemon.SdNotifyStopping) }

func tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		note("cannot tell systemd: %v", err)
	}
}
