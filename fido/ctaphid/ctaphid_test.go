package ctaphid

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// wire is a transport in memory.
type wire struct {
	toToken, toHost chan Report
	closed          chan struct{}
	once            sync.Once
}

func newWire() *wire {
	return &wire{toToken: make(chan Report), toHost: make(chan Report, 1000), closed: make(chan struct{})}
}

func (w *wire) Read() (r Report, err error) {
	select {
	case r := <-w.toToken:
		return r, nil
	case <-w.closed:
		return r, net.ErrClosed
	}
}

func (w *wire) Write(r Report) error {
	select {
	case w.toHost <- r:
		return nil
	case <-w.closed:
		return net.ErrClosed
	}
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// echo is a token that answers with the request. One that begins with 'w' waits for
// its user until it is cancelled, one that begins with 's' ends a second after that.
type echo struct{ cancelled, running int }

func (e *echo) Message(_ context.Context, _ uint32, request []byte) []byte { return request }

func (e *echo) CBOR(ctx context.Context, _ uint32, request []byte, waiting func(bool)) []byte {
	if e.running++; e.running != 1 {
		panic("two at once")
	}
	defer func() { e.running-- }()
	if request[0] == 'w' || request[0] == 's' {
		waiting(true)
		<-ctx.Done()
		e.cancelled++
		if request[0] == 's' {
			time.Sleep(time.Second)
		}
		return []byte("cancelled")
	}
	return request
}

// host is a host's end of a wire.
type host struct {
	t *testing.T
	*wire
	token echo
}

// plug runs f with a token, in a time of its own.
func plug(t *testing.T, f func(h *host)) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{t: t, wire: newWire()}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- Serve(ctx, h.wire, &h.token, quiet) }()
		f(h)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func (h *host) send(reports ...Report) {
	for _, r := range reports {
		h.toToken <- r
	}
	synctest.Wait()
}

// want expects reports, and no more than those.
func (h *host) want(what string, want ...Report) {
	h.t.Helper()
	synctest.Wait()
	for i, w := range want {
		select {
		case got := <-h.toHost:
			if got != w {
				h.t.Fatalf("%s: report %d is\n%x, want\n%x", what, i, got, w)
			}
		default:
			h.t.Fatalf("%s: only %d reports of %d", what, i, len(want))
		}
	}
	select {
	case got := <-h.toHost:
		h.t.Fatalf("%s: another report: %x", what, got)
	default:
	}
}

func (h *host) wantError(what string, channel uint32, code byte) {
	h.t.Helper()
	h.want(what, frames(channel, cmdError, []byte{code})...)
}

// next is the next report that is not a sign of life.
func (h *host) next() (r Report) {
	for r = <-h.toHost; r[4] == initial|cmdKeepalive; r = <-h.toHost {
	}
	return r
}

// channel has the token give out a channel.
func (h *host) channel() uint32 {
	h.t.Helper()
	nonce := []byte("12345678")
	h.send(frames(broadcast, cmdInit, nonce)...)
	r := h.next()
	if !bytes.Equal(r[:15], append([]byte{0xff, 0xff, 0xff, 0xff, initial | cmdInit, 0, 17}, nonce...)) || !bytes.Equal(r[19:24], []byte{2, 1, 0, 0, 5}) {
		h.t.Fatalf("INIT: %x", r)
	}
	return binary.BigEndian.Uint32(r[15:])
}

func TestMessages(t *testing.T) {
	plug(t, func(h *host) {
		c := h.channel()
		for _, n := range []int{0, 1, firstData, firstData + 1, firstData + nextData, 1000, MaxMessage} {
			data := bytes.Repeat([]byte{7}, n)
			h.send(frames(c, cmdPing, data)...)
			time.Sleep(time.Duration(n/nextData) * pace)
			h.want("ping", frames(c, cmdPing, data)...)
		}
		for _, cmd := range []byte{cmdMessage, cmdCBOR} {
			h.send(frames(c, cmd, []byte("question"))...)
			h.want("answer", frames(c, cmd, []byte("question"))...)
		}
		h.send(frames(c, cmdWink, nil)...)
		h.want("wink", frames(c, cmdWink, nil)...)
		h.send(frames(c, cmdInit, []byte("abcdefgh"))...)
		r := <-h.toHost
		if binary.BigEndian.Uint32(r[:]) != c || !bytes.Equal(r[7:15], []byte("abcdefgh")) || binary.BigEndian.Uint32(r[15:]) != c {
			t.Errorf("INIT on a channel: %x", r)
		}
	})
}

func TestRefusals(t *testing.T) {
	plug(t, func(h *host) {
		c := h.channel()
		long := frames(c, cmdPing, nil)[0]
		binary.BigEndian.PutUint16(long[5:], MaxMessage+1)
		for _, test := range []struct {
			what    string
			report  Report
			channel uint32
			code    byte
		}{
			{"an unknown channel", frames(c+1, cmdPing, nil)[0], c + 1, errInvalidChannel},
			{"channel 0", frames(0, cmdPing, nil)[0], 0, errInvalidChannel},
			{"INIT on channel 0", frames(0, cmdInit, make([]byte, 8))[0], 0, errInvalidChannel},
			{"a message on the broadcast channel", frames(broadcast, cmdPing, nil)[0], broadcast, errInvalidChannel},
			{"too long", long, c, errInvalidLength},
			{"an unknown command", frames(c, 0x55, nil)[0], c, errInvalidCommand},
			{"what tokens alone send", frames(c, cmdKeepalive, []byte{1})[0], c, errInvalidCommand},
			{"INIT, short", frames(c, cmdInit, make([]byte, 7))[0], c, errInvalidLength},
			{"INIT, long", frames(broadcast, cmdInit, make([]byte, 9))[0], broadcast, errInvalidLength},
			{"WINK with data", frames(c, cmdWink, []byte{1})[0], c, errInvalidLength},
			{"LOCK without time", frames(c, cmdLock, nil)[0], c, errInvalidLength},
			{"LOCK too long", frames(c, cmdLock, []byte{11})[0], c, errInvalidParameter},
			{"an empty request", frames(c, cmdCBOR, nil)[0], c, errInvalidLength},
			{"an empty message", frames(c, cmdMessage, nil)[0], c, errInvalidLength},
		} {
			h.send(test.report)
			h.wantError(test.what, test.channel, test.code)
		}
		// What continues nothing, and a cancellation of nothing, have no answer.
		h.send(frames(c, cmdPing, make([]byte, 100))[1])
		h.send(frames(c, cmdCancel, nil)...)
		h.want("nothing")
	})
}

func TestSequence(t *testing.T) {
	plug(t, func(h *host) {
		c := h.channel()
		ping := frames(c, cmdPing, make([]byte, 200))
		h.send(ping[0], ping[2])
		h.wantError("a report left out", c, errInvalidSequence)
		h.send(ping[1])
		h.want("the rest of it")
		h.send(ping[0], ping[1], ping[1])
		h.wantError("a report twice", c, errInvalidSequence)
		h.send(ping[0], frames(c, cmdPing, nil)[0])
		h.wantError("a message within a message", c, errInvalidSequence)
		h.send(ping...)
		h.want("whole", ping...)
	})
}

func TestMessageTimeout(t *testing.T) {
	plug(t, func(h *host) {
		c := h.channel()
		ping := frames(c, cmdPing, make([]byte, 200))
		h.send(ping[0])
		time.Sleep(messageTimeout - time.Millisecond)
		h.send(ping[1])
		time.Sleep(messageTimeout - time.Millisecond)
		h.want("in time")
		time.Sleep(2 * time.Millisecond)
		h.wantError("late", c, errTimeout)
		h.send(ping[2])
		h.want("after that")
		h.send(ping...)
		h.want("whole", ping...)
	})
}

// slow is a wire whose hosts take reports slowly.
type slow struct{ *wire }

func (s slow) Write(r Report) error {
	time.Sleep(10 * time.Millisecond)
	return s.wire.Write(r)
}

// TestMessageTimeoutOfOthers: what other hosts send, however much, gives nobody more
// time, and what came while the token was late counts.
func TestMessageTimeoutOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{t: t, wire: newWire()}
		done := make(chan error)
		go func() { done <- Serve(t.Context(), slow{h.wire}, &h.token, quiet) }()
		a, b := h.channel(), h.channel()
		ping := frames(a, cmdPing, make([]byte, 200))
		h.send(ping[0])
		flooded := make(chan struct{})
		go func() {
			defer close(flooded)
			for {
				select {
				case h.toToken <- frames(b, cmdPing, nil)[0]:
					time.Sleep(100 * time.Microsecond)
				case <-h.closed:
					return
				}
			}
		}()
		defer func() {
			h.Close()
			<-done
			<-flooded
		}()
		time.Sleep(messageTimeout - 20*time.Millisecond)
		h.toToken <- ping[1]
		want := frames(a, cmdError, []byte{errTimeout})[0]
		start := time.Now()
		for h.next() != want {
			if time.Since(start) > time.Minute { // what waits takes a few seconds
				t.Fatal("never late")
			}
		}
		if waited := time.Since(start); waited < messageTimeout {
			t.Errorf("late after %v", waited)
		}
	})
}

// TestBusy: one host's message does not disturb another's.
func TestBusy(t *testing.T) {
	plug(t, func(h *host) {
		a, b := h.channel(), h.channel()
		ping := frames(a, cmdPing, make([]byte, 100))
		h.send(ping[0])
		h.send(frames(b, cmdPing, make([]byte, 100))...)
		h.wantError("while another's message comes in", b, errBusy)
		c := h.channel() // also then
		h.send(ping[1])
		h.want("the first one", ping...)

		h.send(frames(a, cmdCBOR, []byte("wait"))...)
		h.want("waiting", frames(a, cmdKeepalive, []byte{upNeeded})...)
		for _, channel := range []uint32{a, b, c} {
			h.send(frames(channel, cmdPing, nil)...)
			h.wantError("while another waits", channel, errBusy)
		}
		h.send(frames(c+1, cmdPing, nil)...)
		h.wantError("an unknown one while another waits", c+1, errBusy)
		h.send(frames(b, cmdCancel, nil)...)
		h.want("another's cancellation")
		h.send(frames(a, cmdCancel, nil)...)
		h.want("cancelled", frames(a, cmdCBOR, []byte("cancelled"))...)
		h.send(frames(b, cmdPing, nil)...)
		h.want("then", frames(b, cmdPing, nil)...)
	})
}

func TestKeepalive(t *testing.T) {
	plug(t, func(h *host) {
		c := h.channel()
		h.send(frames(c, cmdCBOR, []byte("wait"))...)
		time.Sleep(time.Second)
		n := 0
		synctest.Wait()
		for len(h.toHost) > 0 {
			if r := <-h.toHost; r != frames(c, cmdKeepalive, []byte{upNeeded})[0] {
				t.Fatalf("%x", r)
			}
			n++
		}
		if n < 10 || n > 11 {
			t.Errorf("%d keepalives in a second", n)
		}
		h.send(frames(c, cmdCancel, nil)...)
		h.want("cancelled", frames(c, cmdCBOR, []byte("cancelled"))...)
	})
}

// TestInitAborts: INIT on its own channel frees a host of what it began.
func TestInitAborts(t *testing.T) {
	plug(t, func(h *host) {
		c := h.channel()
		again := frames(c, cmdInit, make([]byte, 8))
		answer := frames(c, cmdInit, binary.BigEndian.AppendUint32(make([]byte, 8), c))[0]
		copy(answer[5:], []byte{0, 17})
		copy(answer[19:], []byte{2, 1, 0, 0, 5})
		ping := frames(c, cmdPing, make([]byte, 100))
		h.send(ping[0])
		h.send(again...)
		h.want("in a message", answer)
		h.send(ping[1])
		h.want("its rest")

		// The request is over for the host at once, and for the token a second later.
		h.send(frames(c, cmdCBOR, []byte("slow"))...)
		h.want("waiting", frames(c, cmdKeepalive, []byte{upNeeded})...)
		h.send(again...)
		h.want("in a request", answer)
		h.send(frames(c, cmdCBOR, []byte("next"))...)
		h.want("while the token ends the last one")
		time.Sleep(150 * time.Millisecond)
		h.want("alive", slices.Repeat(frames(c, cmdKeepalive, []byte{processing}), len(h.toHost))...)
		time.Sleep(time.Second)
		synctest.Wait()
		var last Report
		for len(h.toHost) > 0 {
			last = <-h.toHost
		}
		if last != frames(c, cmdCBOR, []byte("next"))[0] || h.token.cancelled != 1 {
			t.Errorf("%x, %d cancelled", last, h.token.cancelled)
		}
	})
}

func TestLock(t *testing.T) {
	plug(t, func(h *host) {
		a, b := h.channel(), h.channel()
		lock := func(seconds byte) {
			t.Helper()
			h.send(frames(a, cmdLock, []byte{seconds})...)
			h.want("lock", frames(a, cmdLock, nil)...)
		}
		ping := func(what string, channel uint32, ok bool) {
			t.Helper()
			h.send(frames(channel, cmdPing, nil)...)
			if ok {
				h.want(what, frames(channel, cmdPing, nil)...)
			} else {
				h.wantError(what, channel, errBusy)
			}
		}
		lock(2)
		ping("its holder", a, true)
		ping("another", b, false)
		h.channel()
		time.Sleep(1900 * time.Millisecond)
		ping("just before its end", b, false)
		lock(1)
		time.Sleep(900 * time.Millisecond)
		ping("prolonged", b, false)
		time.Sleep(200 * time.Millisecond)
		ping("over", b, true)
		lock(10)
		lock(0)
		ping("given up", b, true)
	})
}

// TestChannels: the channel that was used least recently goes, and none in the middle
// of something.
func TestChannels(t *testing.T) {
	plug(t, func(h *host) {
		busy, old, used := h.channel(), h.channel(), h.channel()
		h.send(frames(busy, cmdCBOR, []byte("wait"))...)
		h.want("waiting", frames(busy, cmdKeepalive, []byte{upNeeded})...)
		for range maxChannels - 3 {
			h.channel()
		}
		h.send(frames(used, cmdInit, make([]byte, 8))...)
		h.next()
		h.channel()
		time.Sleep(burst * pace)
		h.send(frames(busy, cmdCancel, nil)...)
		h.want("still there", frames(busy, cmdCBOR, []byte("cancelled"))...)
		h.send(frames(old, cmdPing, nil)...)
		h.wantError("gone", old, errInvalidChannel)
		h.send(frames(old, cmdInit, make([]byte, 8))...)
		if r := <-h.toHost; r[4] != initial|cmdInit || binary.BigEndian.Uint32(r[15:]) != old {
			t.Errorf("INIT of a channel that is gone: %x", r)
		}
		h.send(frames(old, cmdPing, nil)...)
		h.want("back", frames(old, cmdPing, nil)...)
		h.send(frames(used, cmdPing, nil)...)
		h.want("still there", frames(used, cmdPing, nil)...)
	})
}

// TestServeEnds: a transport that fails ends a request that is being answered.
func TestServeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{t: t, wire: newWire()}
		done := make(chan error)
		go func() { done <- Serve(t.Context(), h.wire, &h.token, quiet) }()
		c := h.channel()
		h.send(frames(c, cmdCBOR, []byte("wait"))...)
		h.wire.Close()
		if err := <-done; err == nil || h.token.cancelled != 1 || h.token.running != 0 {
			t.Errorf("%v, %d cancelled, %d running", err, h.token.cancelled, h.token.running)
		}
	})
}

// kernel is a device as Linux has it: of what is not read in time it keeps 31 reports
// for the token and 63 for a host. It takes a moment for each that the token writes.
type kernel struct {
	*wire
	t *testing.T
}

func (k *kernel) Write(r Report) error {
	time.Sleep(time.Millisecond / 2)
	select {
	case k.toHost <- r:
	case <-k.closed:
		return net.ErrClosed
	default:
		k.t.Errorf("a host lost %x", r[:8])
	}
	return nil
}

// send writes without a pause, as hosts do.
func (k *kernel) send(reports ...Report) {
	for _, r := range reports {
		select {
		case k.toToken <- r:
		default:
			k.t.Errorf("the token lost %x", r[:8])
		}
		synctest.Wait()
	}
}

// TestKernelQueues: nothing is lost of the longest messages, both ways and at the
// same time, by a host that reads a report in each millisecond; and while one goes
// out others are heard.
func TestKernelQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &kernel{newWire(), t}
		k.toToken, k.toHost = make(chan Report, 31), make(chan Report, 63)
		token := new(echo)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- Serve(ctx, k, token, quiet) }()
		channel := func() uint32 {
			k.send(frames(broadcast, cmdInit, make([]byte, 8))...)
			r := <-k.toHost
			return binary.BigEndian.Uint32(r[15:])
		}
		want := func(what string, want ...Report) {
			t.Helper()
			for i, w := range want {
				time.Sleep(time.Millisecond)
				got := <-k.toHost
				for got[4] == initial|cmdKeepalive && got != w {
					got = <-k.toHost
				}
				if got != w {
					t.Fatalf("%s: report %d is\n%x, want\n%x", what, i, got, w)
				}
			}
		}
		a, b := channel(), channel()
		long := bytes.Repeat([]byte("long"), MaxMessage/4)
		pingA, pingB := frames(a, cmdPing, long), frames(b, cmdPing, long)
		k.send(pingA...)
		k.send(pingB...) // while the first is answered
		want("the first", pingA...)
		want("the second", pingB...)

		k.send(pingA...)
		k.send(frames(b, cmdCBOR, []byte("wait"))...)
		want("a long answer", pingA...)
		want("then", frames(b, cmdKeepalive, []byte{upNeeded})...)
		k.send(pingA[:1]...)
		want("while it waits", frames(a, cmdError, []byte{errBusy})...)
		k.send(frames(b, cmdCancel, nil)...)
		want("cancelled", frames(b, cmdCBOR, []byte("cancelled"))...)

		k.send(pingA...)
		want("the beginning", pingA[:20]...)
		k.send(frames(a, cmdInit, []byte("abcdefgh"))...)
		for r := range k.toHost { // those that were on their way
			if r[4] == initial|cmdInit {
				break
			}
			if r[4] > 60 {
				t.Fatal("the answer goes on after INIT")
			}
		}
		time.Sleep(time.Second)
		if n := len(k.toHost); n > 0 {
			t.Errorf("%d reports after INIT", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestFlood: hosts that ask for more than can be sent do not keep another from being
// heard and answered.
func TestFlood(t *testing.T) {
	plug(t, func(h *host) {
		c, other := h.channel(), h.channel()
		calm := make(chan struct{})
		var floods sync.WaitGroup
		// A report that the token does not take soon is lost.
		offer := func(reports ...Report) {
			for _, r := range reports {
				select {
				case h.toToken <- r:
				case <-time.After(30 * time.Microsecond):
				}
			}
		}
		floods.Go(func() {
			for {
				select {
				case <-calm:
					return
				default:
				}
				offer(frames(broadcast, cmdInit, make([]byte, 8))[0], frames(other, cmdPing, []byte("ping"))[0])
				time.Sleep(500 * time.Microsecond)
			}
		})
		var heard []Report
		floods.Go(func() {
			for {
				select {
				case r := <-h.toHost:
					if binary.BigEndian.Uint32(r[:]) == c {
						heard = append(heard, r)
					}
				case <-calm:
					return
				}
			}
		})
		time.Sleep(time.Second)
		ping := frames(c, cmdPing, make([]byte, 1200))
		for range 10 {
			offer(ping...)
			time.Sleep(100 * time.Millisecond)
		}
		close(calm)
		floods.Wait()
		if want := slices.Repeat(ping, 10); !slices.Equal(heard, want) {
			t.Errorf("%d reports of %d", len(heard), len(want))
		}
	})
}

// TestAbandoned: a host that begins and leaves again and again has one request wait,
// beside the one that the token has.
func TestAbandoned(t *testing.T) {
	plug(t, func(h *host) {
		c := h.channel()
		h.send(frames(c, cmdCBOR, []byte("slow"))...)
		h.send(frames(c, cmdInit, make([]byte, 8))...)
		synctest.Wait()
		before := runtime.NumGoroutine()
		for range 300 {
			h.send(frames(c, cmdCBOR, []byte("next"))...)
			h.send(frames(c, cmdInit, make([]byte, 8))...)
			time.Sleep(time.Millisecond)
			for len(h.toHost) > 0 {
				<-h.toHost
			}
		}
		synctest.Wait()
		if now := runtime.NumGoroutine(); now > before+2 {
			t.Errorf("%d goroutines, before it were %d", now, before)
		}
		// One that is cancelled while it waits has its answer when the token can give it.
		h.send(frames(c, cmdCBOR, []byte("wait"))...)
		h.send(frames(c, cmdCancel, nil)...)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		var last Report
		for len(h.toHost) > 0 {
			last = <-h.toHost
		}
		if last != frames(c, cmdCBOR, []byte("cancelled"))[0] {
			t.Errorf("%x", last)
		}
	})
}

func TestDatagrams(t *testing.T) {
	if _, err := ListenDatagrams(netip.MustParseAddrPort("0.0.0.0:0")); err == nil {
		t.Error("reached from other machines")
	}
	d, err := ListenDatagrams(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Serve(ctx, d, new(echo), quiet) }()
	dial := func() (conn net.Conn, channel uint32) {
		conn, err := net.Dial("udp", d.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		conn.Write([]byte("short"))
		conn.Write(make([]byte, 65))
		init := frames(broadcast, cmdInit, make([]byte, 8))[0]
		conn.Write(init[:])
		var r Report
		if _, err := io.ReadFull(conn, r[:]); err != nil {
			t.Fatal(err)
		}
		return conn, binary.BigEndian.Uint32(r[15:])
	}
	// Each host gets what is its own.
	one, a := dial()
	two, b := dial()
	for range 3 {
		for conn, channel := range map[net.Conn]uint32{one: a, two: b} {
			ping := frames(channel, cmdPing, []byte("ping"))[0]
			conn.Write(ping[:])
			var r Report
			if _, err := io.ReadFull(conn, r[:]); err != nil || r != ping {
				t.Fatalf("%v, %x", err, r)
			}
		}
	}
	for i := range uint32(10 * maxChannels) {
		d.remember(i, netip.MustParseAddrPort("127.0.0.1:1"))
	}
	if len(d.hosts) > 2*maxChannels+1 || len(d.order) != len(d.hosts) {
		t.Errorf("%d hosts are remembered", len(d.hosts))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestDatagramsAgain: once Serve has returned, its address is free.
func TestDatagramsAgain(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.0.1:0")
	for range 300 {
		d, err := ListenDatagrams(at)
		if err != nil {
			t.Fatal(err)
		}
		at = d.Addr()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- Serve(ctx, d, new(echo), quiet) }()
		time.Sleep(10 * time.Microsecond) // Read has begun, mostly
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzServe: whatever hosts send, each report that comes back is part of a message
// of the protocol, and a host that begins properly is served afterwards.
func FuzzServe(f *testing.F) {
	for _, reports := range [][]Report{
		frames(broadcast, cmdInit, make([]byte, 8)), frames(1, cmdPing, make([]byte, 100)), frames(1, cmdCBOR, []byte("question")),
		frames(1, cmdCancel, nil), frames(1, cmdLock, []byte{1}), frames(1, cmdMessage, []byte("question")),
	} {
		var b []byte
		for _, r := range reports {
			b = append(b, r[:]...)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		plug(t, func(h *host) {
			c := h.channel()
			for len(b) >= 5 && len(b) < 100*ReportSize {
				var r Report
				b = b[copy(r[:], b):]
				if channel := binary.BigEndian.Uint32(r[:]); channel == 1 {
					binary.BigEndian.PutUint32(r[:], c)
				}
				h.send(r)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			var m *partial
			for len(h.toHost) > 0 {
				r := <-h.toHost
				switch {
				case r[4]&initial != 0:
					m = begin(&r)
				case m == nil || !m.next(&r):
					t.Fatalf("out of sequence: %x", r)
				}
				if m.length > MaxMessage {
					t.Fatalf("too long: %x", r)
				}
				if m.whole() {
					m = nil
				}
			}
			time.Sleep(maxLock * time.Second)
			h.send(frames(c, cmdInit, make([]byte, 8))...)
			for len(h.toHost) > 0 {
				<-h.toHost
			}
			h.send(frames(c, cmdPing, []byte("ping"))...)
			h.want("afterwards", frames(c, cmdPing, []byte("ping"))...)
		})
	})
}
