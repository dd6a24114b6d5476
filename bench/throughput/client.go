package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
)

// sleeping sends the requests of each batch over a connection of its own, one after
// another, from a goroutine that sleeps until the answer is there. On one machine the
// server pays for waking it, the more often the slower it is: a client that waits longer
// falls asleep more often.
func sleeping(addr string, batches [][][]byte) error {
	errs := make([]error, len(batches))
	var wg sync.WaitGroup
	for i, batch := range batches {
		wg.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				errs[i] = err
				return
			}
			defer conn.Close()
			var a reply
			for _, request := range batch {
				if _, errs[i] = conn.Write(request); errs[i] != nil {
					return
				}
				for done := false; !done; {
					if done, errs[i] = a.read(conn); errs[i] != nil {
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// polling is sleeping without the sleep: one thread asks all the time which answers are
// there. So the server wakes nobody, as it does not wake clients on other machines.
func polling(addr string, batches [][][]byte) error {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer syscall.Close(epoll)
	type lane struct {
		socket
		reply
		left [][]byte // beginning with the one that waits for its answer
	}
	lanes := make([]lane, len(batches))
	open := 0
	for i, batch := range batches {
		l := &lanes[i]
		if l.socket, err = dial(to); err != nil {
			return err
		}
		defer syscall.Close(int(l.socket))
		event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(i)} // the kernel only hands Fd back
		if err := syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, int(l.socket), &event); err != nil {
			return err
		}
		if l.left = batch; len(batch) == 0 {
			continue
		}
		open++
		if _, err := syscall.Write(int(l.socket), batch[0]); err != nil {
			return err
		}
	}
	events := make([]syscall.EpollEvent, len(lanes))
	for open > 0 {
		n, err := syscall.EpollWait(epoll, events, 0)
		if err != nil && err != syscall.EINTR {
			return err
		}
		for _, event := range events[:max(n, 0)] {
			l := &lanes[event.Fd]
			done, err := l.read(l.socket)
			if err != nil {
				return err
			}
			if !done {
				continue
			}
			if l.left = l.left[1:]; len(l.left) == 0 {
				open--
				continue
			}
			if _, err := syscall.Write(int(l.socket), l.left[0]); err != nil {
				return err
			}
		}
	}
	return nil
}

// A socket is a connection that Go's own poller does not know, which would sleep on it.
type socket int

func dial(to netip.AddrPort) (socket, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		syscall.Close(fd)
		return 0, err
	}
	return socket(fd), syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
}

func (s socket) Read(p []byte) (int, error) {
	n, err := syscall.Read(int(s), p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}

// A reply is what has come of an answer.
type reply struct {
	buf [4096]byte
	n   int
}

// read reads once and reports whether the answer, which must be 200, is complete.
func (a *reply) read(r io.Reader) (done bool, err error) {
	if a.n == len(a.buf) {
		return false, fmt.Errorf("an answer over %d bytes", a.n)
	}
	n, err := r.Read(a.buf[a.n:])
	if err != nil {
		return false, err
	}
	a.n += n
	header, body, whole := bytes.Cut(a.buf[:a.n], []byte("\r\n\r\n"))
	if !whole {
		return false, nil
	}
	if !bytes.HasPrefix(header, []byte("HTTP/1.1 200 ")) {
		return false, fmt.Errorf("answer %q", a.buf[:a.n])
	}
	_, field, _ := bytes.Cut(header, []byte("\r\nContent-Length: "))
	field, _, _ = bytes.Cut(field, []byte("\r\n"))
	length, err := strconv.Atoi(string(field))
	if err != nil || len(body) < length {
		return false, err
	}
	a.n = 0
	return true, nil
}
