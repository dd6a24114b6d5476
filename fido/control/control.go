// Package control is a token's Unix socket: for its owner's commands, and for prompt
// agents, which run in the owner's session and ask what the token wants to know.
//
// Both ends send lines of JSON. Whoever connects sends one request. An agent's
// connection then stays open: the token sends questions and takes them back, the
// agent answers.
package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/limpet-auth/limpet/fido"
)

// Errors.
var (
	// ErrNoAgent means that nobody can ask the user.
	ErrNoAgent = errors.New("limpet: fido: no prompt agent is connected")

	// ErrElsewhere is what a user is told who does not sit at the machine.
	ErrElsewhere = errors.New("limpet: fido: the token obeys the user who sits at the machine")

	// ErrNobody is what users are told while the token is nobody's, which it is for a
	// moment whenever another user sits down.
	ErrNobody = errors.New("limpet: fido: nobody sits at the machine, as far as the token knows: try again in a moment")
)

// What is asked for.
const (
	doStatus    = "status"
	doList      = "list"
	doRemove    = "remove"
	doSetPIN    = "set-pin"
	doChangePIN = "change-pin"
	doReset     = "reset"
	doAttend    = "attend" // become an agent
)

type request struct {
	Do  string `json:"do"`
	PIN []byte `json:"pin,omitempty"`
	New []byte `json:"new,omitempty"` // PIN
	ID  []byte `json:"id,omitempty"`  // of a credential
}

type answer struct {
	Error       string            `json:"error,omitempty"` // a key of mistakes, or what happened
	Status      *fido.Status      `json:"status,omitempty"`
	Credentials []fido.Credential `json:"credentials,omitempty"`
}

// question is what an agent is told.
type question struct {
	Ask      uint64        `json:"ask,omitempty"`
	Request  *fido.Request `json:"request,omitempty"`
	Withdraw uint64        `json:"withdraw,omitempty"`
}

// verdict is what an agent says.
type verdict struct {
	Answer  uint64 `json:"answer"`
	Allowed bool   `json:"allowed"`
	Error   string `json:"error,omitempty"` // it could not ask
}

// mistakes are the errors that have a name on the wire.
var mistakes = map[string]error{
	"wrong-pin":     fido.ErrPINInvalid,
	"pin-blocked":   fido.ErrPINBlocked,
	"pin-held":      fido.ErrPINHeld,
	"pin-policy":    fido.ErrPINPolicy,
	"pin-set":       fido.ErrPINSet,
	"no-pin":        fido.ErrNoPIN,
	"not-allowed":   fido.ErrNotAllowed,
	"no-credential": fido.ErrNoSuch,
	"elsewhere":     ErrElsewhere,
	"nobody":        ErrNobody,
}

// Limits.
const (
	maxConns   = 32
	maxOfUser  = 8
	maxRequest = 16 << 10 // bytes of a line
	maxAnswer  = 8 << 20
	maxReason  = 1 << 10          // bytes of what an agent says of why it could not ask
	maxWaiting = 16               // questions, and ends of some, that an agent has yet to take
	patience   = 10 * time.Second // for a request, and for an answer to be taken
)

// Desk is where agents are, one after the other. It is the token's fido.Prompt.
type Desk struct {
	log  *slog.Logger
	user func(context.Context) (int, error)

	mu         sync.Mutex
	agents     []*agent // in the order they came
	count      uint64
	places     []*place // taken ones, in the order they were
	complained time.Time
	owner      int             // as far as Change said
	term       context.Context // of the owner
	endTerm    context.CancelCauseFunc
}

// place is a connection's.
type place struct {
	uid   int
	leave context.CancelFunc
}

// nobody is an owner whom no user is.
const nobody = -1

// NewDesk returns one without agents. User tells whose token it is now: who is asked,
// and may command it. Agents of others are kept until it is theirs.
func NewDesk(log *slog.Logger, user func(context.Context) (int, error)) *Desk {
	d := &Desk{log: log, user: user}
	d.begin(nobody)
	return d
}

func (d *Desk) begin(uid int) {
	d.owner = uid
	d.term, d.endTerm = context.WithCancelCause(context.Background())
}

// Change is for a desk whose token is another user's from now on, or nobody's, -1.
// Open questions are taken back, and commands of users end. The user gets a place
// at the socket, as root does, when others have taken them all.
func (d *Desk) Change(uid int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owner == nobody {
		d.endTerm(ErrNobody)
	} else {
		d.endTerm(ErrElsewhere)
	}
	d.begin(uid)
}

// within returns ctx until the token is another user's, when term is over. It is called
// before user, so that no change is between them.
func (d *Desk) within(ctx context.Context) (inner, term context.Context, end context.CancelFunc) {
	d.mu.Lock()
	term = d.term
	d.mu.Unlock()
	inner, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(term, func() { cancel(context.Cause(term)) })
	return inner, term, func() {
		stop()
		cancel(nil)
	}
}

type agent struct {
	uid  int
	conn net.Conn
	out  chan question // on their way, lest anybody wait for an agent that does not read
	gone chan struct{}

	mu      sync.Mutex
	waiting map[uint64]chan verdict
}

// Ask asks by the user's agent that came last; if that goes away, by the one before
// it. The answer of who is not the user any more does not count.
func (d *Desk) Ask(ctx context.Context, r fido.Request) (bool, error) {
	ctx, _, cancel := d.within(ctx)
	defer cancel()
	for {
		uid, err := d.user(ctx)
		if err != nil {
			return false, err
		}
		d.mu.Lock()
		d.count++
		n, a := d.count, (*agent)(nil)
		for _, b := range d.agents {
			if b.uid == uid {
				a = b
			}
		}
		d.mu.Unlock()
		if a == nil {
			return false, ErrNoAgent
		}
		v, err := a.ask(ctx, n, r)
		switch {
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case err != nil:
			d.leave(a)
		case v.Error != "":
			return false, fmt.Errorf("limpet: fido: the prompt agent could not ask: %s", v.Error)
		case v.Allowed:
			if now, err := d.user(ctx); err != nil || now != uid {
				return false, errors.Join(ErrElsewhere, err)
			}
			return true, nil
		default:
			return false, nil
		}
	}
}

func (a *agent) ask(ctx context.Context, n uint64, r fido.Request) (v verdict, err error) {
	answered := make(chan verdict, 1)
	a.mu.Lock()
	a.waiting[n] = answered
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.waiting, n)
		a.mu.Unlock()
	}()
	gone := errors.New("gone")
	select {
	case a.out <- question{Ask: n, Request: &r}:
	case <-a.gone:
		return v, gone
	case <-ctx.Done():
		return v, ctx.Err()
	}
	select {
	case v := <-answered:
		return v, nil
	case <-a.gone:
		return v, gone
	case <-ctx.Done():
	}
	select {
	case a.out <- question{Withdraw: n}:
	default:
		a.conn.Close()
	}
	return v, ctx.Err()
}

// tell sends the agent its questions, until it goes or does not take them.
func (a *agent) tell() {
	for {
		select {
		case q := <-a.out:
			if send(a.conn, q) != nil {
				a.conn.Close()
				return
			}
		case <-a.gone:
			return
		}
	}
}

func send(conn net.Conn, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	whole := append(line, '\n')
	conn.SetWriteDeadline(time.Now().Add(patience))
	_, err = conn.Write(whole)
	clear(whole)
	clear(line) // there may be a PIN in it
	return err
}

func (d *Desk) leave(a *agent) {
	a.conn.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.agents = slices.DeleteFunc(d.agents, func(b *agent) bool { return a == b })
}

// attend keeps an agent until it goes.
func (d *Desk) attend(ctx context.Context, conn net.Conn, uid int, lines *bufio.Scanner) {
	a := &agent{uid: uid, conn: conn, out: make(chan question, maxWaiting), gone: make(chan struct{}), waiting: make(map[uint64]chan verdict)}
	d.mu.Lock()
	d.agents = append(d.agents, a) // first: an agent that hears of it is there
	d.mu.Unlock()
	var telling sync.WaitGroup
	defer telling.Wait()
	defer d.leave(a)
	defer close(a.gone)
	if send(conn, answer{}) != nil {
		return
	}
	telling.Go(a.tell)
	level := slog.LevelDebug // anybody can come and go as often as they like
	if owner, err := d.user(ctx); uid == 0 || err == nil && uid == owner {
		level = slog.LevelInfo
	}
	d.log.Log(ctx, level, "a prompt agent is there", "user", uid)
	defer d.log.Log(ctx, level, "a prompt agent has gone", "user", uid)
	conn.SetReadDeadline(time.Time{})
	for lines.Scan() {
		var v verdict
		if json.Unmarshal(lines.Bytes(), &v) != nil {
			return
		}
		a.mu.Lock()
		if answered := a.waiting[v.Answer]; answered != nil {
			delete(a.waiting, v.Answer)
			answered <- v
		}
		a.mu.Unlock()
	}
}

// Serve answers those who connect, and closes the listener when ctx is done.
// Commands are the user's and root's. There are 32 places, of which no user gets
// more than 8; see [Desk.Change] for whom others make room.
func (d *Desk) Serve(ctx context.Context, l net.Listener, token *fido.Token) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	serving, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("limpet: fido: control socket: %w", err)
		}
		if err != nil {
			d.log.Warn("limpet: fido: control socket", "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		inner, leave := context.WithCancel(serving)
		p := &place{leave: leave}
		if p.uid, err = peer(conn); err == nil {
			err = d.enter(p)
		}
		if err != nil {
			leave()
			conn.Close()
			d.complain(err)
			continue
		}
		conns.Go(func() {
			defer d.exit(p)
			d.handle(inner, conn, p.uid, token)
		})
	}
}

// complain logs a refusal now and then: anybody can connect as often as they like.
func (d *Desk) complain(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.complained) > time.Minute {
		d.complained = time.Now()
		d.log.Warn("limpet: fido: refused at the control socket", "error", err)
	}
}

func (d *Desk) handle(ctx context.Context, conn net.Conn, uid int, token *fido.Token) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	lines := bufio.NewScanner(conn)
	buffer := make([]byte, maxRequest) // all of it, lest copies be left of a PIN that came in parts
	lines.Buffer(buffer, len(buffer))
	var r request
	if !lines.Scan() {
		clear(buffer)
		return
	}
	err := json.Unmarshal(lines.Bytes(), &r)
	clear(lines.Bytes())
	defer clear(r.PIN)
	defer clear(r.New)
	if err != nil {
		return
	}
	if r.Do == doAttend {
		d.attend(ctx, conn, uid, lines)
		return
	}
	term := context.Background()
	if uid != 0 {
		var cancel context.CancelFunc
		ctx, term, cancel = d.within(ctx)
		defer cancel()
	}
	if owner, err := d.user(ctx); uid != 0 && (err != nil || uid != owner) {
		d.complain(errors.Join(fmt.Errorf("user %d does not sit at the machine", uid), err))
		told := "elsewhere"
		if err != nil {
			told = "nobody"
		}
		send(conn, answer{Error: told})
		return
	}
	// Who hangs up does not want it any more.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn.SetReadDeadline(time.Time{})
	go func() {
		defer cancel()
		lines.Scan()
		clear(buffer)
	}()
	send(conn, do(ctx, term, token, &r))
}

// enter gives a connection its place. When all are taken, the owner and root get that of
// whoever of the others has been there longest.
func (d *Desk) enter(p *place) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := 0
	for _, q := range d.places {
		if q.uid == p.uid {
			before++
		}
	}
	if before == maxOfUser {
		return fmt.Errorf("user %d has too many connections", p.uid)
	}
	if len(d.places) == maxConns {
		other := func(q *place) bool { return q.uid != 0 && q.uid != d.owner }
		if other(p) {
			return errors.New("all places are taken")
		}
		oldest := slices.IndexFunc(d.places, other) // there is one: two users do not fill the places
		d.places[oldest].leave()
		d.places = slices.Delete(d.places, oldest, oldest+1)
	}
	d.places = append(d.places, p)
	return nil
}

func (d *Desk) exit(p *place) {
	p.leave()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.places = slices.DeleteFunc(d.places, func(q *place) bool { return p == q })
}

// do answers a command. What fails after the term says why that is over.
func do(ctx, term context.Context, token *fido.Token, r *request) (a answer) {
	var err error
	switch r.Do {
	case doStatus:
		var s fido.Status
		s, err = token.Status(ctx)
		a.Status = &s
	case doList:
		a.Credentials, err = token.List(ctx, r.PIN)
	case doRemove:
		err = token.Remove(ctx, r.PIN, r.ID)
	case doSetPIN:
		err = token.SetPIN(ctx, r.New)
	case doChangePIN:
		err = token.ChangePIN(ctx, r.PIN, r.New)
	case doReset:
		err = token.Reset(ctx)
	default:
		err = errors.New("limpet: fido: the token does not know this command")
	}
	if err == nil {
		return a
	}
	if term.Err() != nil {
		err = context.Cause(term)
	} else if errors.Is(err, context.Canceled) {
		err = context.Cause(ctx)
	}
	for name, mistake := range mistakes {
		if errors.Is(err, mistake) {
			return answer{Error: name}
		}
	}
	return answer{Error: err.Error()}
}

func scanner(conn net.Conn, limit int) *bufio.Scanner {
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, limit)
	return lines
}
