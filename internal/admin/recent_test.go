package admin

import (
	"encoding/json"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/proof"
)

// TestHistory: counts are differences of totals, half an hour of them are kept, and
// a kind that comes late has none before.
func TestHistory(t *testing.T) {
	totals := map[kind]uint64{{limpet.Admitted, ""}: 0}
	r := NewRecent(func(yield func(limpet.Result, proof.Reason, uint64)) {
		for k, n := range totals {
			yield(k.result, k.reason, n)
		}
	})
	if h := r.history(); len(h.Series) != 0 || h.Span != 5 {
		t.Errorf("at first: %+v", h)
	}
	now := r.started
	step := func(admitted, refused uint64) {
		totals[kind{limpet.Admitted, ""}] += admitted
		if refused > 0 {
			totals[kind{limpet.Refused, proof.Required}] += refused
		}
		now = now.Add(span)
		r.step(now)
	}
	find := func(result limpet.Result) series {
		for _, s := range r.history().Series {
			if s.Result == result {
				return s
			}
		}
		t.Fatalf("no %s", result)
		return series{}
	}
	step(3, 0)
	step(0, 2)
	step(5, 1)
	if a := find(limpet.Admitted); a.Total != 8 || len(a.Counts) != 3 || a.Counts[0] != 3 || a.Counts[1] != 0 || a.Counts[2] != 5 {
		t.Errorf("%+v", a)
	}
	if f := find(limpet.Refused); f.Total != 3 || f.Reason != proof.Required || f.Counts[0] != 0 || f.Counts[1] != 2 || f.Counts[2] != 1 {
		t.Errorf("%+v", f)
	}
	for range spans - 2 {
		step(1, 0)
	}
	a, f := find(limpet.Admitted), find(limpet.Refused)
	if len(a.Counts) != spans || a.Counts[0] != 0 || a.Counts[1] != 5 || a.Counts[spans-1] != 1 || f.Total != 3 || f.Counts[1] != 1 || f.Counts[2] != 0 {
		t.Errorf("after half an hour: %v, %v", a.Counts[:3], f.Counts[:3])
	}
	if until := r.history().Until; until != now.Unix() {
		t.Errorf("until %d, want %d", until, now.Unix())
	}
}

// TestSeen: a session is seen when it is admitted or bound, and nobody else is.
func TestSeen(t *testing.T) {
	r := NewRecent(nothing)
	id, other := limpet.ID{1, 2, 3}, limpet.ID{1, 2, 3, 4, 5, 6, 7, 8, 9}
	see := func(id limpet.ID, result limpet.Result, by limpet.Format) {
		r.Decided(t.Context(), &limpet.Decision{Result: result, Format: by, Session: id})
	}
	for _, result := range []limpet.Result{limpet.Refused, limpet.WouldRefuse, limpet.BrokenOff, limpet.Revoked, limpet.Rebound} {
		see(id, result, limpet.RFC9421)
	}
	see(limpet.ID{}, limpet.Admitted, limpet.NoProof)
	for _, id := range []limpet.ID{id, {}} {
		if at, via := r.of(id); at != 0 || via != "" {
			t.Errorf("seen: %d %s", at, via)
		}
	}
	see(id, limpet.Bound, limpet.RFC9421)
	later := r.started.Add(time.Hour)
	r.step(later)
	see(other, limpet.Admitted, limpet.DPoP)
	if at, via := r.of(id); at != r.started.Unix() || via != limpet.RFC9421 {
		t.Errorf("%d %q", at, via)
	}
	if at, via := r.of(other); at != later.Unix() || via != limpet.DPoP {
		t.Errorf("%d %q", at, via)
	}
	see(id, limpet.Admitted, "a format of the future")
	if at, via := r.of(id); at != later.Unix() || via != "" {
		t.Errorf("%d %q", at, via)
	}
	// Those of one line are not taken for each other; when it is full the one that was
	// seen first is forgotten.
	twins := make([]limpet.ID, places+1)
	for i := range twins {
		twins[i] = limpet.ID{byte(i + 1), 0xff, 7: 0xff}
		r.step(later.Add(time.Duration(i) * time.Minute))
		see(twins[i], limpet.Admitted, limpet.HWSign)
		see(twins[i], limpet.Admitted, limpet.HWSign)
	}
	for i, id := range twins {
		want := later.Add(time.Duration(i) * time.Minute).Unix()
		if i == 0 {
			want = 0
		}
		if at, _ := r.of(id); at != want {
			t.Errorf("twin %d: %d, want %d", i, at, want)
		}
	}
	if at, _ := r.of(limpet.ID{100, 0xff, 7: 0xff}); at != 0 {
		t.Errorf("seen, when others were: %d", at)
	}
}

// TestSeenAmongStrangers: tokens that somebody makes up have no session forgotten.
func TestSeenAmongStrangers(t *testing.T) {
	s := newServer(t)
	id, nameless := s.bind("token", "alice", nil), s.bind("another", "", nil)
	began, _ := s.recent.of(id)
	s.recent.step(time.Unix(began, 0).Add(time.Minute))
	ask := func(token string) {
		r := &limpet.Request{Message: proof.Message{Method: "GET", Path: "/"}, Token: token}
		if _, err := s.Check(t.Context(), r, limpet.Rule{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	ask("another")
	for i := range places * 2 * rows {
		ask(strconv.Itoa(i))
	}
	for id, want := range map[limpet.ID]int64{id: began, nameless: began + 60} {
		if at, _ := s.recent.of(id); at != want {
			t.Errorf("seen %d, want %d", at, want)
		}
	}
}

// TestSeenOfMany: of as many as a busy server has, few are forgotten.
func TestSeenOfMany(t *testing.T) {
	r := NewRecent(nothing)
	const many = 100_000
	id := func(i int) limpet.ID { return limpet.Bearer().ID(strconv.Itoa(i)) }
	for i := range many {
		r.Decided(t.Context(), &limpet.Decision{Result: limpet.Admitted, User: "alice", Session: id(i)})
	}
	forgotten := 0
	for i := range many {
		if at, _ := r.of(id(i)); at == 0 {
			forgotten++
		}
	}
	if forgotten == 0 || forgotten > many/100 {
		t.Errorf("%d of %d are forgotten", forgotten, many)
	} else {
		t.Logf("%d of %d are forgotten", forgotten, many)
	}
}

// Decisions are told to Recent on every request.
func TestSeenAllocatesNothing(t *testing.T) {
	r, d := NewRecent(nothing), &limpet.Decision{Result: limpet.Admitted, Session: limpet.ID{1}}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() { r.Decided(ctx, d) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestStatus(t *testing.T) {
	s := newServer(t)
	status := func() (got status) {
		t.Helper()
		code, body := s.ask("GET", "/status")
		if err := json.Unmarshal([]byte(body), &got); code != 200 || err != nil {
			t.Fatalf("%d %s", code, body)
		}
		return got
	}
	if st := status(); st.Service != "limpet-test" || st.Version != "v1" || st.Started == 0 || st.Store.Kind != "mem" || st.Store.State != "well" || st.TPM.State != "unused" {
		t.Errorf("%+v", st)
	}
	var well error
	s.tpm.Store(&well)
	s.store.down.Store(true)
	if st := status(); st.Store.State != "failing" || st.TPM.State != "well" {
		t.Errorf("%+v", st)
	}
	bad := errors.New("the TPM is on fire at 10.0.0.1")
	s.tpm.Store(&bad)
	if st := status(); st.TPM.State != "failing" {
		t.Errorf("%+v", st)
	}
	s.store.down.Store(false)
	s.bind("token", "alice", nil)
	if code, body := s.ask("GET", "/sessions"); code != 200 || !json.Valid([]byte(body)) {
		t.Errorf("%d %s", code, body)
	} else {
		var seen session
		if json.Unmarshal([]byte(body), &seen); seen.Seen == 0 || seen.Via != limpet.NoProof {
			t.Errorf("%s", body)
		}
	}
}
