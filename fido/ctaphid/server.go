package ctaphid

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Serve answers the hosts of a transport until ctx is done or the transport fails,
// and closes it. It returns when no request is being answered any more; the error is
// nil if ctx ended it.
//
// One transaction is served at a time; hosts on other channels are told that the
// token is busy. There are 128 channels, and a further one takes the place of the
// one that was used least recently; no message is longer than [MaxMessage]. So a host
// can cost no more memory than that.
func Serve(ctx context.Context, t Transport, token Token, log *slog.Logger) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{transport: t, token: token, log: log, channels: make(map[uint32]uint64), turn: make(chan struct{}, 1)}
	reports, failed := make(chan Report, readAhead), make(chan error, 1)
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			r, err := t.Read()
			if err != nil {
				failed <- err
				return
			}
			select {
			case reports <- r:
			case <-inner.Done():
				return
			}
		}
	})
	err := s.loop(inner, reports, failed)
	cancel()
	t.Close()
	reader.Wait()        // Read may be the one that gives the descriptor back
	s.turn <- struct{}{} // and nobody gets it any more
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("limpet: ctaphid: %w", err)
}

type server struct {
	transport Transport
	token     Token
	log       *slog.Logger

	channels map[uint32]uint64 // when each was last used, in uses of any
	uses     uint64

	lock      uint32 // the channel that has the token for itself, if unlock is set
	unlock    <-chan time.Time
	receiving *partial
	overdue   <-chan time.Time // for the next report of what is being received

	// The transaction that is being answered.
	running *transaction
	turn    chan struct{} // whose request the token has

	// What hosts have yet to be sent, one message after the other: libfido2 takes no
	// report of another channel in the middle of one.
	out   []Report
	due   time.Time        // when as many could have gone at the pace alone
	paced <-chan time.Time // when the next one may go
}

type transaction struct {
	channel uint32
	cmd     byte
	cancel  context.CancelFunc // the host wants an answer now
	leave   context.CancelFunc // the host wants none
	answer  chan []byte
	waiting atomic.Bool // for the user
	changed chan struct{}
}

func (s *server) loop(ctx context.Context, reports <-chan Report, failed <-chan error) error {
	tick := time.NewTicker(keepalive)
	defer tick.Stop()
	var beats *transaction // whose ticks they are
	for {
		var answer chan []byte
		var beat <-chan time.Time
		var changed chan struct{}
		if s.running != nil {
			answer, changed = s.running.answer, s.running.changed
			if s.running.cmd == cmdCBOR {
				if beats != s.running {
					beats = s.running
					tick.Reset(keepalive)
				}
				beat = tick.C
			}
		}
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err = <-failed:
		case r := <-reports:
			err = s.report(ctx, &r)
		case <-s.paced:
			err = s.flush()
		case data := <-answer:
			done := s.running
			s.running = nil
			err = s.send(done.channel, done.cmd, data)
		case <-beat:
			err = s.beat()
		case <-changed:
			err = s.beat()
		case <-s.overdue:
			err = s.late(ctx, reports)
		case <-s.unlock:
			s.unlock = nil
		}
		if err != nil {
			return err
		}
	}
}

// report takes one report of a host.
func (s *server) report(ctx context.Context, r *Report) error {
	channel := binary.BigEndian.Uint32(r[:])
	if r[4]&initial == 0 {
		// What continues nothing is passed over, as is what a channel that was told to
		// wait sends of its message.
		if s.receiving == nil || s.receiving.channel != channel {
			return nil
		}
		if !s.receiving.next(r) {
			s.drop()
			return s.refuse(channel, errInvalidSequence)
		}
		s.overdue = time.After(messageTimeout)
		return s.complete(ctx)
	}
	m := begin(r)
	_, known := s.channels[channel]
	if s.floods(channel, known, m.cmd) {
		return nil
	}
	busy := s.running != nil || s.receiving != nil && s.receiving.channel != channel || s.unlock != nil && s.lock != channel
	switch {
	case channel == 0, channel == broadcast && m.cmd != cmdInit:
		return s.refuse(channel, errInvalidChannel)
	case !known && m.cmd != cmdInit && busy:
		return s.refuse(channel, errBusy)
	case !known && m.cmd != cmdInit:
		return s.refuse(channel, errInvalidChannel)
	case m.length > MaxMessage:
		return s.refuse(channel, errInvalidLength)
	}
	if known {
		s.use(channel)
	}
	switch {
	case m.cmd == cmdInit: // in any state
		if m.length != 8 {
			return s.refuse(channel, errInvalidLength)
		}
		return s.init(channel, m.data)
	case m.cmd == cmdCancel:
		if s.running != nil && s.running.channel == channel && s.running.cmd == cmdCBOR {
			s.running.cancel()
		}
		return nil // it has no answer of its own
	case busy:
		return s.refuse(channel, errBusy)
	case s.receiving != nil:
		s.drop()
		return s.refuse(channel, errInvalidSequence)
	}
	s.receiving, s.overdue = m, time.After(messageTimeout)
	return s.complete(ctx)
}

// late gives up what is being received, unless it is this process that was late: what
// has come by now counts.
func (s *server) late(ctx context.Context, reports <-chan Report) error {
	s.overdue = nil
	for range len(reports) {
		r := <-reports
		if err := s.report(ctx, &r); err != nil {
			return err
		}
	}
	if s.receiving == nil || s.overdue != nil {
		return nil
	}
	channel := s.receiving.channel
	s.drop()
	return s.refuse(channel, errTimeout)
}

// floods reports whether a host asks for more than can be sent to it. What it asks for
// is passed over then, but for what takes away of that; others go on.
func (s *server) floods(channel uint32, known bool, cmd byte) bool {
	waiting := 0
	for i := range s.out {
		if binary.BigEndian.Uint32(s.out[i][:]) == channel {
			waiting++
		}
	}
	switch {
	case !known:
		return len(s.out) >= maxOfStranger
	case cmd == cmdCancel, cmd == cmdInit:
		return false
	}
	return waiting >= maxOfChannel || waiting > 0 && len(s.out) >= maxOut
}

// init gives out a channel, or makes one ready for something new. One that is not
// known is that of a host who had it before this process began, or before others
// needed the place.
func (s *server) init(channel uint32, nonce []byte) error {
	given := channel
	if channel == broadcast {
		given = s.unused()
	}
	if _, known := s.channels[given]; !known {
		s.open(given)
	} else {
		if s.receiving != nil && s.receiving.channel == channel {
			s.drop()
		}
		if s.running != nil && s.running.channel == channel {
			s.abort()
		}
		s.out = slices.DeleteFunc(s.out, func(r Report) bool { return binary.BigEndian.Uint32(r[:]) == channel })
	}
	answer := append(make([]byte, 0, 17), nonce...)
	answer = binary.BigEndian.AppendUint32(answer, given)
	answer = append(answer, version, 1, 0, 0, capWink|capCBOR)
	return s.send(channel, cmdInit, answer)
}

func (s *server) use(channel uint32) {
	s.uses++
	s.channels[channel] = s.uses
}

// open adds a channel. It takes the place of the one that was used least recently, but
// for those that are in the middle of something.
func (s *server) open(channel uint32) {
	if len(s.channels) >= maxChannels {
		oldest, when := uint32(0), s.uses+1
		for channel, used := range s.channels {
			if used < when && !s.engaged(channel) {
				oldest, when = channel, used
			}
		}
		delete(s.channels, oldest)
	}
	s.use(channel)
}

// unused returns a channel that nobody has.
func (s *server) unused() uint32 {
	for {
		var b [4]byte
		rand.Read(b[:])
		channel := binary.BigEndian.Uint32(b[:])
		if _, taken := s.channels[channel]; !taken && channel != 0 && channel != broadcast {
			return channel
		}
	}
}

func (s *server) engaged(channel uint32) bool {
	return s.running != nil && s.running.channel == channel ||
		s.receiving != nil && s.receiving.channel == channel ||
		s.unlock != nil && s.lock == channel
}

func (s *server) drop() { s.receiving, s.overdue = nil, nil }

// complete answers the message that is being received, if all of it is there.
func (s *server) complete(ctx context.Context) error {
	m := s.receiving
	if !m.whole() {
		return nil
	}
	s.drop()
	switch m.cmd {
	case cmdPing:
		return s.send(m.channel, m.cmd, m.data)
	case cmdLock:
		return s.setLock(m)
	case cmdWink:
		if m.length != 0 {
			return s.refuse(m.channel, errInvalidLength)
		}
		return s.send(m.channel, m.cmd, nil) // there is no light to blink with: what is asked of the user is seen
	case cmdMessage, cmdCBOR:
		if m.length == 0 {
			return s.refuse(m.channel, errInvalidLength)
		}
		s.start(ctx, m)
		return nil
	}
	return s.refuse(m.channel, errInvalidCommand)
}

func (s *server) setLock(m *partial) error {
	if m.length != 1 {
		return s.refuse(m.channel, errInvalidLength)
	}
	if m.data[0] > maxLock {
		return s.refuse(m.channel, errInvalidParameter)
	}
	s.lock, s.unlock = m.channel, nil
	if m.data[0] > 0 {
		s.unlock = time.After(time.Duration(m.data[0]) * time.Second)
	}
	return s.send(m.channel, m.cmd, nil)
}

// start has a message answered. The token gets one at a time: one whose host has
// left it may need a moment to end. Of those that wait for that, only one still has
// its host.
func (s *server) start(ctx context.Context, m *partial) {
	wanted, leave := context.WithCancel(ctx)
	request, cancel := context.WithCancel(wanted)
	t := &transaction{
		channel: m.channel, cmd: m.cmd, cancel: cancel, leave: leave,
		answer: make(chan []byte, 1), changed: make(chan struct{}, 1),
	}
	s.running = t
	go func() {
		defer leave()
		select {
		case s.turn <- struct{}{}:
			defer func() { <-s.turn }()
		case <-wanted.Done():
			return
		}
		if wanted.Err() != nil { // both at once
			return
		}
		if m.cmd == cmdMessage {
			t.answer <- s.token.Message(request, m.channel, m.data)
			return
		}
		t.answer <- s.token.CBOR(request, m.channel, m.data, func(waits bool) {
			if t.waiting.Swap(waits) != waits {
				select {
				case t.changed <- struct{}{}:
				default: // it will be seen
				}
			}
		})
	}()
}

// abort leaves the running transaction, whose answer nobody gets.
func (s *server) abort() {
	s.running.leave()
	s.running = nil
}

func (s *server) beat() error {
	status := byte(processing)
	if s.running.waiting.Load() {
		status = upNeeded
	}
	return s.send(s.running.channel, cmdKeepalive, []byte{status})
}

func (s *server) refuse(channel uint32, code byte) error {
	return s.send(channel, cmdError, []byte{code})
}

// send has a message written after those that are on their way.
func (s *server) send(channel uint32, cmd byte, data []byte) error {
	s.out = append(s.out, frames(channel, cmd, data)...)
	return s.flush()
}

// flush writes what may go now: a few reports at once, and then one in each time of
// pace. A message that a host does not take is lost; the others are not to suffer
// from that.
func (s *server) flush() error {
	s.paced = nil
	for len(s.out) > 0 {
		now := time.Now()
		if s.due.Before(now) {
			s.due = now
		}
		if wait := s.due.Sub(now) - (burst-1)*pace; wait > 0 {
			s.paced = time.After(wait)
			return nil
		}
		s.due = s.due.Add(pace)
		r := s.out[0]
		s.out = s.out[1:]
		if err := s.transport.Write(r); err != nil {
			if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
				return err
			}
			s.log.Debug("cannot answer a host", "error", err)
			for len(s.out) > 0 && s.out[0][4]&initial == 0 {
				s.out = s.out[1:]
			}
		}
	}
	s.out = nil
	return nil
}
