package limpettest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
)

// Store runs the suite that every limpet.Store has to pass, with what it says
// of limpet.Lister, limpet.Spender and limpet.Versioner where the store offers them. open returns
// an empty store and cleans up after it; it is called once for each subtest, in
// parallel. The suite takes a few seconds, for lifetimes to run out.
func Store(t *testing.T, open func(t *testing.T) limpet.Store) {
	run := func(name string, test func(*testing.T, limpet.Store)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
	run("Absent", testAbsent)
	run("PutGet", testPutGet)
	run("Bounds", testBounds)
	run("OwnCopy", testOwnCopy)
	run("Add", testAdd)
	run("AddOneWinner", testAddOneWinner)
	run("Expiry", testExpiry)
	run("ExpiryReplaced", testExpiryReplaced)
	run("Cancelled", testCancelled)
	run("Concurrent", testConcurrent)
	run("Version", testVersion)
	run("List", testList)
	run("ListYieldCalls", testListYieldCalls)
	run("Spend", testSpend)
	run("SpendOneWinner", testSpendOneWinner)
	run("SpendExpiry", testSpendExpiry)
	run("SpendApart", testSpendApart)
}

// DurableStore runs what a store that outlives its process has to pass as well.
// Each call of reopen returns a store on the same medium, which is empty at
// first. The suite closes one, through io.Closer, before it opens the next.
func DurableStore(t *testing.T, reopen func(t *testing.T) limpet.Store) {
	s := reopen(t)
	again := func() {
		t.Helper()
		if err := s.(io.Closer).Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		s = reopen(t)
	}
	put(t, s, "kept", "1", time.Hour)
	put(t, s, "replaced", "1", time.Hour)
	put(t, s, "replaced", "2", time.Hour)
	put(t, s, "deleted", "1", time.Hour)
	remove(t, s, "deleted")
	put(t, s, "brief", "1", brief)
	briefEnd := time.Now().Add(brief)
	add(t, s, "added", "1", time.Hour, true)
	expires := map[string]time.Time{}
	if sp, ok := s.(limpet.Spender); ok {
		for i, d := range []time.Duration{brief, 30 * time.Second, 90 * time.Second, 15 * time.Minute, 2 * time.Hour} {
			id := fmt.Sprint("id", i)
			expires[id] = time.Now().Add(d)
			spend(t, sp, id, expires[id], true)
		}
	}
	for range 3 {
		again()
		want(t, s, "kept", "1")
		want(t, s, "replaced", "2")
		absent(t, s, "deleted")
		add(t, s, "added", "2", time.Hour, false)
		for id, e := range expires {
			spend(t, s.(limpet.Spender), id, e, false)
		}
	}
	time.Sleep(time.Until(briefEnd))
	absent(t, s, "brief")
	again()
	absent(t, s, "brief")
	if l, ok := s.(limpet.Lister); ok {
		wantList(t, l, "", "added", "kept", "replaced")
	}
}

// brief is a lifetime to see the end of.
const brief = 300 * time.Millisecond

func put(t *testing.T, s limpet.Store, key, val string, ttl time.Duration) {
	t.Helper()
	if err := s.Put(t.Context(), key, []byte(val), ttl); err != nil {
		t.Fatalf("Put(%.20q): %v", key, err)
	}
}

func add(t *testing.T, s limpet.Store, key, val string, ttl time.Duration, want bool) {
	t.Helper()
	if added, err := s.Add(t.Context(), key, []byte(val), ttl); err != nil || added != want {
		t.Fatalf("Add(%.20q) = %v, %v; want %v", key, added, err, want)
	}
}

func remove(t *testing.T, s limpet.Store, key string) {
	t.Helper()
	if err := s.Delete(t.Context(), key); err != nil {
		t.Fatalf("Delete(%.20q): %v", key, err)
	}
}

func want(t *testing.T, s limpet.Store, key, val string) {
	t.Helper()
	got, found, err := s.Get(t.Context(), key)
	if err != nil || !found || string(got) != val {
		t.Fatalf("Get(%.20q) = %.40q, %v, %v; want %.40q", key, got, found, err, val)
	}
}

func absent(t *testing.T, s limpet.Store, key string) {
	t.Helper()
	if got, found, err := s.Get(t.Context(), key); err != nil || found || got != nil {
		t.Fatalf("Get(%.20q) = %.40q, %v, %v; want it absent", key, got, found, err)
	}
}

func spend(t *testing.T, s limpet.Spender, id string, expires time.Time, want bool) {
	t.Helper()
	if fresh, err := s.Spend(t.Context(), []byte(id), expires); err != nil || fresh != want {
		t.Fatalf("Spend(%q, in %v) = %v, %v; want %v", id, time.Until(expires), fresh, err, want)
	}
}

func wantList(t *testing.T, l limpet.Lister, prefix string, keys ...string) {
	t.Helper()
	var got []string
	err := l.List(t.Context(), prefix, func(key string, _ []byte) bool {
		got = append(got, key)
		return true
	})
	slices.Sort(got)
	if err != nil || !slices.Equal(got, keys) {
		t.Fatalf("List(%q) = %.200q, %v; want %.200q", prefix, got, err, keys)
	}
}

func testAbsent(t *testing.T, s limpet.Store) {
	absent(t, s, "nothing")
	remove(t, s, "nothing")
	put(t, s, "nothing", "1", time.Hour)
	remove(t, s, "nothing")
	absent(t, s, "nothing")
	remove(t, s, "nothing")
}

func testPutGet(t *testing.T, s limpet.Store) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, val := range []string{"", "1", string(all), ""} {
		put(t, s, "a", val, time.Hour)
		want(t, s, "a", val)
	}
	if err := s.Put(t.Context(), "nil", nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	want(t, s, "nil", "")
	// Keys near each other are not each other.
	keys := []string{"A", "aa", "a ", " a", "a/b", "a:b", "a*", "{a}", "~!@#$%^&()[]|\\;'\"<>,.?"}
	for _, key := range keys {
		absent(t, s, key)
		put(t, s, key, "value of "+key, time.Hour)
	}
	for _, key := range keys {
		want(t, s, key, "value of "+key)
	}
	want(t, s, "a", "")
}

func testBounds(t *testing.T, s limpet.Store) {
	ctx := t.Context()
	long, big := strings.Repeat("k", 256), strings.Repeat("v", 64<<10)
	put(t, s, long, big, math.MaxInt64)
	want(t, s, long, big)
	for _, c := range []struct {
		name string
		key  string
		val  string
		ttl  time.Duration
	}{
		{"empty key", "", "1", time.Hour},
		{"long key", long + "k", "1", time.Hour},
		{"big value", "other", big + "v", time.Hour},
		{"no lifetime", "other", "1", 0},
		{"negative lifetime", "other", "1", -time.Second},
		{"big value over another", long, big + "v", time.Hour},
		{"no lifetime over another", long, "1", 0},
	} {
		if err := s.Put(ctx, c.key, []byte(c.val), c.ttl); err == nil {
			t.Errorf("%s: Put gave no error", c.name)
		}
		if added, err := s.Add(ctx, c.key, []byte(c.val), c.ttl); err == nil || added {
			t.Errorf("%s: Add = %v, %v; want an error", c.name, added, err)
		}
	}
	want(t, s, long, big)
	absent(t, s, "other")
}

func testOwnCopy(t *testing.T, s limpet.Store) {
	buf := []byte("first")
	if err := s.Put(t.Context(), "put", buf, time.Hour); err != nil {
		t.Fatal(err)
	}
	copy(buf, "xxxxx")
	want(t, s, "put", "first")
	copy(buf, "first")
	if _, err := s.Add(t.Context(), "added", buf, time.Hour); err != nil {
		t.Fatal(err)
	}
	copy(buf, "xxxxx")
	want(t, s, "added", "first")

	// What Get returned stays as it was.
	got, _, _ := s.Get(t.Context(), "put")
	put(t, s, "put", "other", time.Hour)
	remove(t, s, "put")
	for i := range 50 {
		put(t, s, fmt.Sprint("put", i), "other", time.Hour)
	}
	if string(got) != "first" {
		t.Errorf("a value changed after Get, to %q", got)
	}
}

func testAdd(t *testing.T, s limpet.Store) {
	add(t, s, "a", "1", time.Hour, true)
	add(t, s, "a", "2", time.Hour, false)
	want(t, s, "a", "1")
	put(t, s, "a", "3", time.Hour)
	add(t, s, "a", "4", time.Hour, false)
	want(t, s, "a", "3")
	remove(t, s, "a")
	add(t, s, "a", "5", time.Hour, true)
	want(t, s, "a", "5")
	add(t, s, "empty", "", time.Hour, true)
	add(t, s, "empty", "1", time.Hour, false)
	want(t, s, "empty", "")
}

func testAddOneWinner(t *testing.T, s limpet.Store) {
	for round := range 5 {
		key := fmt.Sprint("key", round)
		var winners atomic.Int64
		var winner atomic.Pointer[string]
		together(64, func(i int) {
			val := fmt.Sprint("value", i)
			added, err := s.Add(t.Context(), key, []byte(val), time.Hour)
			if err != nil {
				t.Error(err)
			}
			if added {
				winners.Add(1)
				winner.Store(&val)
			}
		})
		if n := winners.Load(); n != 1 {
			t.Fatalf("%d of 64 concurrent calls of Add returned true", n)
		}
		want(t, s, key, *winner.Load())
	}
}

// together runs f n times at once.
func together(n int, f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}

func testExpiry(t *testing.T, s limpet.Store) {
	before := time.Now()
	put(t, s, "put", "1", brief)
	add(t, s, "added", "1", brief, true)
	put(t, s, "long", "1", time.Hour)
	_, found, err := s.Get(t.Context(), "put")
	if err != nil || !found && time.Since(before) < brief {
		t.Fatalf("Get within the lifetime = %v, %v", found, err)
	}
	time.Sleep(brief + 10*time.Millisecond)
	absent(t, s, "put")
	absent(t, s, "added")
	if l, ok := s.(limpet.Lister); ok {
		wantList(t, l, "", "long")
	}
	add(t, s, "added", "2", time.Hour, true)
	want(t, s, "added", "2")
	remove(t, s, "put")
	put(t, s, "put", "2", time.Hour)
	want(t, s, "put", "2")
	want(t, s, "long", "1")
}

func testExpiryReplaced(t *testing.T, s limpet.Store) {
	put(t, s, "longer", "1", brief)
	put(t, s, "longer", "2", time.Hour)
	put(t, s, "shorter", "1", time.Hour)
	put(t, s, "shorter", "2", brief)
	put(t, s, "again", "1", brief)
	remove(t, s, "again")
	add(t, s, "again", "2", time.Hour, true)
	put(t, s, "refused", "1", brief)
	s.Add(t.Context(), "refused", []byte("2"), time.Hour) // does not lengthen
	time.Sleep(brief + 10*time.Millisecond)
	for i := range 100 { // gives the store occasion to clear up
		put(t, s, fmt.Sprint("other", i), "1", time.Hour)
	}
	want(t, s, "longer", "2")
	absent(t, s, "shorter")
	want(t, s, "again", "2")
	absent(t, s, "refused")
}

func testCancelled(t *testing.T, s limpet.Store) {
	put(t, s, "a", "1", time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, found, err := s.Get(ctx, "a"); err == nil || found {
		t.Errorf("Get = %v, %v; want an error", found, err)
	}
	if err := s.Put(ctx, "a", []byte("2"), time.Hour); err == nil {
		t.Error("Put gave no error")
	}
	if added, err := s.Add(ctx, "b", []byte("2"), time.Hour); err == nil || added {
		t.Errorf("Add = %v, %v; want an error", added, err)
	}
	if err := s.Delete(ctx, "a"); err == nil {
		t.Error("Delete gave no error")
	}
	want(t, s, "a", "1")
	absent(t, s, "b")
	if l, ok := s.(limpet.Lister); ok {
		if err := l.List(ctx, "", func(string, []byte) bool { return true }); err == nil {
			t.Error("List gave no error")
		}
	}
	if sp, ok := s.(limpet.Spender); ok {
		expires := time.Now().Add(time.Minute)
		if fresh, err := sp.Spend(ctx, []byte("id"), expires); err == nil || fresh {
			t.Errorf("Spend = %v, %v; want an error", fresh, err)
		}
		spend(t, sp, "id", expires, true)
	}
}

// testConcurrent has readers and writers on few keys. A value is one byte
// repeated, so that a torn one shows.
func testConcurrent(t *testing.T, s limpet.Store) {
	together(16, func(i int) {
		for n := range 50 {
			key := fmt.Sprint("key", n%3)
			var err error
			switch i % 4 {
			case 0:
				err = s.Put(t.Context(), key, bytes.Repeat([]byte{byte(n)}, 100+n), time.Hour)
			case 1:
				err = s.Delete(t.Context(), key)
			default:
				var val []byte
				val, _, err = s.Get(t.Context(), key)
				if len(val) > 0 && (len(val) != 100+int(val[0]) || bytes.Count(val, val[:1]) != len(val)) {
					t.Errorf("a torn value: %x", val)
				}
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
}

func testVersion(t *testing.T, s limpet.Store) {
	versions, ok := s.(limpet.Versioner)
	if !ok || versions.Version(s, "key") == nil {
		return
	}
	if versions.Version(&struct{ limpet.Store }{s}, "key") != nil {
		t.Error("there are versions for a store that embeds this one")
	}
	last := uint64(0)
	grows := func(what string, change func()) {
		t.Helper()
		before := versions.Version(s, "key").Load()
		change()
		if last = versions.Version(s, "key").Load(); last <= before {
			t.Errorf("%s: version %d after %d", what, last, before)
		}
	}
	grows("Add", func() { add(t, s, "key", "1", time.Hour, true) })
	grows("Put", func() { put(t, s, "key", "2", time.Hour) })
	grows("Put of the same", func() { put(t, s, "key", "2", time.Hour) })
	grows("Delete", func() { remove(t, s, "key") })
	grows("Put of a new one", func() { put(t, s, "key", "3", brief) })
	time.Sleep(brief + 10*time.Millisecond)
	grows("Add in place of a dead one", func() { add(t, s, "key", "4", time.Hour, true) })
	want(t, s, "key", "4")
	if now := versions.Version(s, "key").Load(); now != last {
		t.Errorf("Get: version %d after %d", now, last)
	}

	// Whoever has read since a version, and finds it the same, has read what is there.
	var done atomic.Int64 // the last of all values that were put
	put(t, s, "count", "0", time.Hour)
	together(8, func(i int) {
		if i == 0 {
			defer done.Store(100) // lest the others go on when this one fails
			for n := int64(1); n <= 100; n++ {
				put(t, s, "count", fmt.Sprint(n), time.Hour)
				done.Store(n)
			}
			return
		}
		for done.Load() < 100 {
			version := versions.Version(s, "count").Load()
			val, found, err := s.Get(t.Context(), "count")
			if err != nil || !found {
				t.Errorf("Get = %v, %v", found, err)
				return
			}
			read, err := strconv.ParseInt(string(val), 10, 64)
			if err != nil {
				t.Error(err)
			}
			for range 100 {
				least := done.Load()
				if versions.Version(s, "count").Load() == version && read < least {
					t.Errorf("%d is the value by its version, when %d was put", read, least)
					return
				}
			}
		}
	})
}

func testList(t *testing.T, s limpet.Store) {
	l, ok := s.(limpet.Lister)
	if !ok {
		t.Skip("not a limpet.Lister")
	}
	wantList(t, l, "")
	var many []string
	for i := range 600 {
		many = append(many, fmt.Sprintf("many/%03d", i))
	}
	together(30, func(i int) {
		for _, key := range many[i*20 : i*20+20] {
			if err := s.Put(t.Context(), key, []byte("value of "+key), time.Hour); err != nil {
				t.Error(err)
			}
		}
	})
	for _, key := range []string{"a", "a/1", "a/2", "b*", "man"} {
		put(t, s, key, "value of "+key, time.Hour)
	}
	wantList(t, l, "a", "a", "a/1", "a/2")
	wantList(t, l, "a/", "a/1", "a/2")
	wantList(t, l, "a/2", "a/2")
	wantList(t, l, "b*", "b*")
	wantList(t, l, "*")
	wantList(t, l, "c")
	wantList(t, l, "many/", many...)
	n := 0
	err := l.List(t.Context(), "", func(key string, val []byte) bool {
		if string(val) != "value of "+key {
			t.Errorf("List gives %q the value %q", key, val)
		}
		n++
		return true
	})
	if err != nil || n != 605 {
		t.Errorf("List of all gave %d records, %v; want 605", n, err)
	}
	n = 0
	err = l.List(t.Context(), "many/", func(string, []byte) bool { n++; return n < 3 })
	if err != nil || n != 3 {
		t.Errorf("List went on to %d after yield returned false at 3, %v", n, err)
	}
}

func testListYieldCalls(t *testing.T, s limpet.Store) {
	l, ok := s.(limpet.Lister)
	if !ok {
		t.Skip("not a limpet.Lister")
	}
	for i := range 20 {
		put(t, s, fmt.Sprint("user/", i), "1", time.Hour)
	}
	err := l.List(t.Context(), "user/", func(key string, _ []byte) bool {
		want(t, s, key, "1")
		remove(t, s, key)
		put(t, s, "gone/"+key, "1", time.Hour)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	wantList(t, l, "user/")
}

func testSpend(t *testing.T, s limpet.Store) {
	sp, ok := s.(limpet.Spender)
	if !ok {
		t.Skip("not a limpet.Spender")
	}
	now := time.Now()
	buf := make([]byte, 16)
	for round := range 2 {
		for i := range 1000 {
			// One buffer for all: the store keeps none of it.
			binary.BigEndian.PutUint64(buf[8:], uint64(i))
			expires := now.Add(time.Minute + time.Duration(i%25)*time.Second)
			if i%250 == 0 {
				expires = now.Add(time.Hour)
			}
			fresh, err := sp.Spend(t.Context(), buf, expires)
			if err != nil || fresh != (round == 0) {
				t.Fatalf("round %d: Spend = %v, %v", round, fresh, err)
			}
		}
	}
	spend(t, sp, "past", now.Add(-time.Second), false)
	spend(t, sp, "past", now, false)
	spend(t, sp, "past", time.Time{}, false)
	// An id of no bytes and a long one are ids as well.
	for _, id := range []string{"", strings.Repeat("i", 1000)} {
		spend(t, sp, id, now.Add(time.Minute), true)
		spend(t, sp, id, now.Add(time.Minute), false)
	}
	// The same id with another expiry breaks the promise; it does not free
	// what is spent.
	spend(t, sp, "id", now.Add(time.Minute), true)
	sp.Spend(t.Context(), []byte("id"), now.Add(2*time.Minute))
	sp.Spend(t.Context(), []byte("id"), now.Add(30*time.Second))
	spend(t, sp, "id", now.Add(time.Minute), false)
}

func testSpendOneWinner(t *testing.T, s limpet.Store) {
	sp, ok := s.(limpet.Spender)
	if !ok {
		t.Skip("not a limpet.Spender")
	}
	for round, life := range []time.Duration{time.Minute, time.Minute, 90 * time.Second, time.Hour, time.Hour} {
		expires := time.Now().Add(life)
		var winners atomic.Int64
		together(64, func(int) {
			fresh, err := sp.Spend(t.Context(), fmt.Append(nil, "id", round), expires)
			if err != nil {
				t.Error(err)
			}
			if fresh {
				winners.Add(1)
			}
		})
		if n := winners.Load(); n != 1 {
			t.Errorf("%d of 64 concurrent calls of Spend returned true", n)
		}
	}
}

// testSpendExpiry: a value stays spent to its end and is not new after it.
func testSpendExpiry(t *testing.T, s limpet.Store) {
	sp, ok := s.(limpet.Spender)
	if !ok {
		t.Skip("not a limpet.Spender")
	}
	expires := time.Now().Add(1500 * time.Millisecond)
	spend(t, sp, "id", expires, true)
	for time.Until(expires) > -1200*time.Millisecond {
		spend(t, sp, "id", expires, false)
		time.Sleep(50 * time.Millisecond)
	}
	spend(t, sp, "never seen", expires, false)
	spend(t, sp, "id", time.Now().Add(time.Minute), true)
}

// testSpendApart: spent values and records do not meet.
func testSpendApart(t *testing.T, s limpet.Store) {
	sp, ok := s.(limpet.Spender)
	if !ok {
		t.Skip("not a limpet.Spender")
	}
	expires := time.Now().Add(time.Minute)
	spend(t, sp, "id", expires, true)
	absent(t, s, "id")
	add(t, s, "id", "1", time.Hour, true)
	remove(t, s, "id")
	spend(t, sp, "id", expires, false)
	put(t, s, "key", "1", time.Hour)
	spend(t, sp, "key", expires, true)
	want(t, s, "key", "1")
	if l, ok := s.(limpet.Lister); ok {
		wantList(t, l, "", "key")
	}
}
