//go:build unix

package redisstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func wantSpend(t testing.TB, s *Store, id string, expires time.Time, want bool) {
	t.Helper()
	if fresh, err := s.Spend(t.Context(), []byte(id), expires); err != nil || fresh != want {
		t.Fatalf("Spend(%s) = %v, %v; want %v", id, fresh, err, want)
	}
}

func wantUnknown(t testing.TB, s *Store, id string, expires time.Time) {
	t.Helper()
	fresh, err := s.Spend(t.Context(), []byte(id), expires)
	if err == nil || fresh || !strings.Contains(err.Error(), "cannot be known") {
		t.Fatalf("Spend(%s) = %v, %v; want that it cannot be known", id, fresh, err)
	}
}

// durable is for a Redis that is killed: by default it holds a write back while the
// disk is busy with the one before.
var durable = []string{"--appendonly", "yes", "--appendfsync", "always"}

// TestLostData: whatever way Redis forgets, or may have forgotten, no value that
// may have been spent is new, for servers that saw it happen and for those
// started since; later values are spent as ever, without a restart.
func TestLostData(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		settings []string
		lose     func(server *redisServer)
		kept     bool // records are
		early    bool // another server starts before this one has noticed
	}{
		{"flush", nil, func(r *redisServer) { r.do("flushall") }, false, false},
		{"flush, another server first", nil, func(r *redisServer) { r.do("flushall") }, false, true},
		{"restart without data", nil, func(r *redisServer) { r.kill(); r.start() }, false, false},
		{"restart without data, another server first", nil, func(r *redisServer) { r.kill(); r.start() }, false, true},
		{"restart with data", durable, func(r *redisServer) { r.kill(); r.start() }, true, false},
		{"restart with data, another server first", durable, func(r *redisServer) { r.kill(); r.start() }, true, true},
		{"scripts flushed", nil, func(r *redisServer) { r.do("script", "flush") }, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server := startRedis(t, c.settings...)
			s := openTest(t, server.url())
			expires := time.Now().Add(time.Minute)
			for i := range 300 {
				wantSpend(t, s, fmt.Sprint("id", i), expires, true)
			}
			if err := s.Put(t.Context(), "b:{session}", []byte("1"), time.Hour); err != nil {
				t.Fatal(err)
			}
			c.lose(server)
			eventually(t, "reads again", func() bool { _, _, err := s.Get(t.Context(), "nothing"); return err == nil })
			var other *Store
			if c.early {
				other = openTest(t, server.url())
			}
			for i := range 300 {
				wantUnknown(t, s, fmt.Sprint("id", i), expires)
			}
			if other == nil {
				other = openTest(t, server.url())
			}
			for i := range 300 {
				wantUnknown(t, other, fmt.Sprint("id", i), expires)
			}
			time.Sleep(maxStale)
			if _, found, err := s.Get(t.Context(), "b:{session}"); err != nil || found != c.kept {
				t.Errorf("the record is there: %v, %v; want %v", found, err, c.kept)
			}
			beyond := time.Now().Add((shortLife + 2) * time.Second)
			for i := range 300 {
				wantSpend(t, s, fmt.Sprint("beyond", i), beyond, true)
				wantSpend(t, s, fmt.Sprint("beyond", i), beyond, false)
			}
		})
	}
}

// TestRedisDown: calls fail soon, and succeed again when Redis is back.
func TestRedisDown(t *testing.T) {
	t.Parallel()
	server := startRedis(t, durable...)
	s := openTest(t, server.url())
	ctx := t.Context()
	if err := s.Put(ctx, "key", []byte("1"), time.Hour); err != nil {
		t.Fatal(err)
	}
	server.kill()
	time.Sleep(maxStale)
	for name, call := range calls(s) {
		start := time.Now()
		if err := call(ctx); err == nil {
			t.Errorf("%s gave no error", name)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
	server.start()
	eventually(t, "came back", func() bool {
		val, found, err := s.Get(ctx, "key")
		return err == nil && found && string(val) == "1"
	})
	if err := s.Put(ctx, "key", []byte("2"), time.Hour); err != nil {
		t.Error(err)
	}
}

func calls(s *Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Get":    func(ctx context.Context) error { _, _, err := s.Get(ctx, "key"); return err },
		"Put":    func(ctx context.Context) error { return s.Put(ctx, "key", nil, time.Hour) },
		"Add":    func(ctx context.Context) error { _, err := s.Add(ctx, "other", nil, time.Hour); return err },
		"Delete": func(ctx context.Context) error { return s.Delete(ctx, "other") },
		"List":   func(ctx context.Context) error { return s.List(ctx, "", func(string, []byte) bool { return true }) },
		"Spend": func(ctx context.Context) error {
			_, err := s.Spend(ctx, fmt.Append(nil, rand.Int64()), time.Now().Add(time.Minute))
			return err
		},
		"Spend long": func(ctx context.Context) error {
			_, err := s.Spend(ctx, fmt.Append(nil, rand.Int64()), time.Now().Add(time.Hour))
			return err
		},
	}
}

// TestPartition: a Redis that stands still without closing connections. Calls
// fail in bounded time, respect their context, and go on when it moves again,
// with nothing forgotten.
func TestPartition(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	s := openTest(t, server.url())
	expires := time.Now().Add(time.Minute)
	wantSpend(t, s, "before", expires, true)
	server.stop()
	defer server.resume()
	var wg sync.WaitGroup
	for name, call := range calls(s) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			start := time.Now()
			if err := call(ctx); err == nil {
				t.Errorf("%s gave no error", name)
			}
			if took := time.Since(start); took > 2500*time.Millisecond {
				t.Errorf("%s with a deadline of 100 ms took %v", name, took)
			}
			start = time.Now()
			if err := call(t.Context()); err == nil {
				t.Errorf("%s gave no error", name)
			}
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("%s took %v", name, took)
			}
		})
	}
	wg.Wait()
	server.resume()
	eventually(t, "came back", func() bool { return calls(s)["Spend"](t.Context()) == nil })
	wantSpend(t, s, "before", expires, false)
	for name, call := range calls(s) {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFull: a full Redis refuses, and forgets nothing.
func TestFull(t *testing.T) {
	server := startRedis(t)
	s := openTest(t, server.url())
	fill(t, s, "key")
	expires := time.Now().Add(time.Minute)
	wantSpend(t, s, "before", expires, true)
	server.do("config", "set", "maxmemory", "1")
	for name, call := range calls(s) {
		switch err := call(t.Context()); name {
		case "Get", "List", "Delete":
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		default:
			if err == nil || !strings.Contains(err.Error(), "OOM") {
				t.Errorf("%s when full: %v", name, err)
			}
		}
	}
	if fresh, err := s.Spend(t.Context(), []byte("before"), expires); fresh {
		t.Errorf("Spend when full = %v, %v", fresh, err)
	}
	server.do("config", "set", "maxmemory", "0")
	wantSpend(t, s, "before", expires, false)
	wantSpend(t, s, "after", expires, true)
}

// spent are values that were admitted.
type spent struct {
	mu sync.Mutex
	m  map[string]time.Time
}

// spendAll has clients spend new values on all stores until ctx is done, and
// returns those that were admitted. What fails was not.
func spendAll(ctx context.Context, stores []*Store) *spent {
	all := &spent{m: map[string]time.Time{}}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id, expires := fmt.Sprint("id", i, "/", n, "/", rand.Int64()), time.Now().Add(61*time.Second)
				fresh, err := stores[i%len(stores)].Spend(context.WithoutCancel(ctx), []byte(id), expires)
				if err != nil {
					time.Sleep(5 * time.Millisecond)
				} else if fresh {
					all.mu.Lock()
					all.m[id] = expires
					all.mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return all
}

// wantNoneFresh replays all values on every store.
func (a *spent) wantNoneFresh(t *testing.T, stores []*Store) (unknown int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	values := make(chan string)
	for i := range 16 {
		wg.Go(func() {
			for id := range values {
				fresh, err := stores[i%len(stores)].Spend(t.Context(), []byte(id), a.m[id])
				if fresh {
					t.Errorf("%s was admitted again", id)
				}
				if err != nil {
					mu.Lock()
					unknown++
					mu.Unlock()
				}
			}
		})
	}
	for id := range a.m {
		values <- id
	}
	close(values)
	wg.Wait()
	return unknown
}

// TestKillMaster kills a master while clients spend, twice: once as it comes,
// and once with a replica that has not received what was spent last and is
// promoted all the same. Nothing that was admitted is admitted again, and what
// is left of the cluster goes on.
func TestKillMaster(t *testing.T) {
	t.Parallel()
	cluster := startCluster(t, 1500*time.Millisecond)
	stores := []*Store{openTest(t, cluster.url()), openTest(t, cluster.url())}
	promoted := func(replica *redisServer) {
		t.Helper()
		replica.eventually("was promoted", func() bool { return strings.HasPrefix(replica.try("role"), "master") })
		// The servers learn of it, and the whole cluster answers again.
		for _, s := range stores {
			eventually(t, "found the new master", func() bool {
				_, err := s.missingEpochs(t.Context())
				return err == nil
			})
		}
	}

	// As it comes.
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(700*time.Millisecond, cluster.masters[0].kill)
	time.AfterFunc(1000*time.Millisecond, cancel)
	first := spendAll(ctx, stores)
	promoted(cluster.replicas[0])
	if err := stores[0].Put(t.Context(), "b:{anything}", []byte("1"), time.Hour); err != nil {
		t.Error(err)
	}

	// A replica that lags behind.
	lagging, dying := cluster.replicas[1], cluster.masters[1]
	lagging.stop()
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	second := spendAll(ctx, stores)
	// A record that no replica acknowledges is an error.
	key := keyIn(t, dying)
	if err := stores[0].Put(t.Context(), key, []byte("1"), time.Hour); err == nil || !strings.Contains(err.Error(), "acknowledged") {
		t.Errorf("Put with a replica that stands still: %v", err)
	}
	dying.kill()
	lagging.resume()
	promoted(lagging)
	if got := lagging.do("dbsize"); got == "0" {
		t.Error("the replica never had anything")
	}

	stores = append(stores, openTest(t, cluster.url())) // has seen nothing of it
	unknown := first.wantNoneFresh(t, stores)
	unknown += second.wantNoneFresh(t, stores)
	all := len(first.m) + len(second.m)
	t.Logf("%d values were admitted; of %d it cannot be known", all, unknown)
	if unknown == 0 || unknown == all {
		t.Errorf("of %d values of %d it cannot be known", unknown, all)
	}
	// One master was not touched: about a third goes on. Beyond the floor all do.
	fine := 0
	for i := range 300 {
		id := fmt.Sprint("new", i)
		if fresh, err := stores[i%3].Spend(t.Context(), []byte(id), time.Now().Add(time.Minute)); err == nil && fresh {
			fine++
		}
		beyond := time.Now().Add((shortLife + 1) * time.Second)
		wantSpend(t, stores[i%3], id, beyond, true)
	}
	if fine < 60 || fine > 150 {
		t.Errorf("%d of 300 new values were admitted, want about a third", fine)
	}
	// Half a list looks like a whole one.
	list := func() error {
		return stores[0].List(t.Context(), "", func(string, []byte) bool { return true })
	}
	eventually(t, "lists again", func() bool { return list() == nil })
	cluster.masters[2].stop()
	if err := list(); err == nil {
		t.Error("a list without what one master has")
	}
	cluster.masters[2].resume()
}

// keyIn returns a key whose record a master keeps.
func keyIn(t *testing.T, master *redisServer) string {
	t.Helper()
	var from, to int
	for line := range strings.Lines(master.do("cluster", "nodes")) {
		if strings.Contains(line, "myself") {
			f := strings.Fields(line)
			fmt.Sscanf(f[len(f)-1], "%d-%d", &from, &to)
		}
	}
	for i := 0; ; i++ {
		tag := fmt.Sprint(i)
		if n := int(slot(tag)); n >= from && n <= to {
			return "b:{" + tag + "}"
		}
	}
}

// TestBackAndForth: a master that is replaced and takes over again, the same
// process with the same connections, is not in its old epoch.
func TestBackAndForth(t *testing.T) {
	t.Parallel()
	cluster := startCluster(t, 1500*time.Millisecond)
	stores := []*Store{openTest(t, cluster.url()), openTest(t, cluster.url())}
	idle := openTest(t, cluster.url())
	a, b := cluster.masters[0], cluster.replicas[0]
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for _, next := range []*redisServer{b, a} {
			time.Sleep(400 * time.Millisecond)
			next.try("cluster", "failover", "takeover")
			time.Sleep(1200 * time.Millisecond)
		}
	}()
	all := spendAll(ctx, stores)
	a.eventually("was master again", func() bool { return strings.HasPrefix(a.do("role"), "master") })
	eventually(t, "found the new master", func() bool { _, err := idle.missingEpochs(t.Context()); return err == nil })
	unknown := all.wantNoneFresh(t, append(stores, idle))
	t.Logf("%d values were admitted; of %d it cannot be known", len(all.m), unknown)
}

// TestBackUnseen: a master that was replaced by a replica which lacked what was
// spent last, and takes over again before anybody has spent on that one.
func TestBackUnseen(t *testing.T) {
	t.Parallel()
	a, b := startRedis(t), startRedis(t)
	s := openTest(t, a.url())
	other := openTest(t, a.url())
	b.follow(a)
	expires := time.Now().Add(time.Minute)
	wantSpend(t, s, "before", expires, true)
	b.do("replicaof", "127.0.0.1", "1") // cut off
	wantSpend(t, s, "lost", expires, true)
	b.do("replicaof", "no", "one")
	a.follow(b)
	a.do("replicaof", "no", "one")
	wantUnknown(t, s, "lost", expires)
	wantUnknown(t, other, "lost", expires)
	wantUnknown(t, openTest(t, a.url()), "lost", expires)
}

// TestReplicaGone: Redis takes another replication ID when its replica has been
// gone for long, and has lost nothing.
func TestReplicaGone(t *testing.T) {
	t.Parallel()
	a, b := startRedis(t, "--repl-backlog-ttl", "1"), startRedis(t)
	s := openTest(t, a.url())
	b.follow(a)
	id := func() string {
		_, id, _ := strings.Cut(a.do("info", "replication"), "master_replid:")
		return id[:replIDSize]
	}
	expires, before := time.Now().Add(time.Minute), id()
	wantSpend(t, s, "before", expires, true)
	b.do("replicaof", "no", "one")
	a.eventually("took another ID", func() bool { return id() != before })
	time.Sleep(askEvery)
	wantSpend(t, s, "before", expires, false)
	s = openTest(t, a.url()) // which finds the epoch
	for i := range 300 {
		wantSpend(t, s, fmt.Sprint("after", i), expires, true)
	}
}

// TestSentinelFailover kills the master of a sentinel set-up while clients spend.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	master, replica, url := startSentinels(t)
	stores := []*Store{openTest(t, url), openTest(t, url)}
	if err := stores[0].Put(t.Context(), "b:{session}", []byte("revoked"), time.Hour); err != nil {
		t.Fatal(err)
	}
	replica.stop()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, master.kill)
	time.AfterFunc(350*time.Millisecond, cancel)
	all := spendAll(ctx, stores)
	replica.resume()
	replica.eventually("was promoted", func() bool { return strings.HasPrefix(replica.try("role"), "master") })
	for _, s := range stores {
		eventually(t, "found the new master", func() bool {
			val, found, err := s.Get(t.Context(), "b:{session}")
			return err == nil && found && string(val) == "revoked"
		})
	}
	stores = append(stores, openTest(t, url))
	if unknown := all.wantNoneFresh(t, stores); unknown != len(all.m) || unknown == 0 {
		t.Errorf("of %d values of %d it cannot be known", unknown, len(all.m))
	}
	beyond := time.Now().Add((shortLife + 2) * time.Second)
	for i := range 100 {
		wantSpend(t, stores[i%3], fmt.Sprint("beyond", i), beyond, true)
		wantSpend(t, stores[i%2], fmt.Sprint("beyond", i), beyond, false)
	}
}

// TestScriptsStay: scripts are loaded, which newer versions of Redis never forget,
// and not only run.
func TestScriptsStay(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	openTest(t, server.url())
	if stats := server.do("info", "commandstats"); !strings.Contains(stats, "cmdstat_script|load:calls="+strconv.Itoa(partitionCount)+",") {
		t.Errorf("scripts were not loaded:\n%s", stats)
	}
}

// TestSlotsMove has redis-cli move a master's slots to another, and half of them
// back, while clients spend, read and write. No value is admitted twice, records
// stay, and all of it goes on without a restart.
func TestSlotsMove(t *testing.T) {
	t.Parallel()
	cluster := startCluster(t, 5*time.Second)
	stores := []*Store{openTest(t, cluster.url()), openTest(t, cluster.url())}
	from, to := cluster.masters[0], cluster.masters[1]
	var keys []string
	for i := range 60 {
		keys = append(keys, fmt.Sprint("b:{", i, "}"))
		if err := stores[0].Put(t.Context(), keys[i], []byte(keys[i]), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var moved sync.WaitGroup
	moved.Go(func() {
		defer cancel()
		time.Sleep(200 * time.Millisecond)
		for _, way := range [][2]*redisServer{{from, to}, {to, from}} {
			out := ""
			for range 50 { // until all nodes know of the slots that moved before
				out = from.try("--cluster", "reshard", from.addr(), "--cluster-from", way[0].do("cluster", "myid"), "--cluster-to", way[1].do("cluster", "myid"),
					"--cluster-slots", "600", "--cluster-yes", "--cluster-pipeline", "100")
				if !strings.Contains(out, "Nodes don't agree") {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			if strings.Contains(out, "ERR") || !strings.Contains(out, "Moving slot") {
				t.Errorf("resharding: %s", out)
			}
		}
		time.Sleep(200 * time.Millisecond)
	})
	moved.Go(func() { // what is read is right or an error
		for n := 0; ctx.Err() == nil; n++ {
			key := keys[n%len(keys)]
			if val, found, err := stores[n%2].Get(t.Context(), key); err == nil && (!found || string(val) != key) {
				t.Errorf("%s is %q, found %v", key, val, found)
			}
			time.Sleep(200 * time.Microsecond)
		}
	})
	all := spendAll(ctx, stores)
	moved.Wait()
	stores = append(stores, openTest(t, cluster.url()))
	unknown := all.wantNoneFresh(t, stores)
	t.Logf("%d values were admitted; of %d it cannot be known", len(all.m), unknown)
	if unknown == 0 || unknown > len(all.m)/2 {
		t.Errorf("of %d of %d values it cannot be known", unknown, len(all.m))
	}
	for i, s := range stores {
		for _, key := range keys {
			if val, found, err := s.Get(t.Context(), key); err != nil || !found || string(val) != key {
				t.Errorf("%s is %q, %v, %v", key, val, found, err)
			}
			if err := s.Put(t.Context(), key, []byte(key), time.Hour); err != nil {
				t.Error(err)
			}
		}
		beyond := time.Now().Add((shortLife + 2) * time.Second)
		for n := range 300 {
			wantSpend(t, s, fmt.Sprint("beyond", i, n), beyond, true)
		}
	}
}

// TestConnectionsEnd: connections that end, as idle ones do, are no reason to refuse
// what goes over others at the time.
func TestConnectionsEnd(t *testing.T) {
	t.Parallel()
	s := openTest(t, startRedis(t).url())
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			s.emptied.Add(1)
			time.Sleep(20 * time.Microsecond)
		}
	})
	for i := range 8 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id, expires := fmt.Append(nil, "id", i, "/", n), time.Now().Add(time.Minute)
				for _, want := range []bool{true, false} {
					if fresh, err := s.Spend(t.Context(), id, expires); err != nil || fresh != want {
						t.Errorf("Spend = %v, %v; want %v", fresh, err, want)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// TestTwoFailoversAtOnce: a master that is replaced and takes over again within a
// moment, without what was spent last.
func TestTwoFailoversAtOnce(t *testing.T) {
	t.Parallel()
	a, b := startRedis(t), startRedis(t)
	s := openTest(t, a.url())
	b.follow(a)
	expires := time.Now().Add(time.Minute)
	for round := range 3 {
		b.do("replicaof", "127.0.0.1", "1") // cut off
		for i := range 300 {
			s.Spend(t.Context(), fmt.Append(nil, "lost", round, i), expires) // admitted or not
		}
		script := "redis-cli -p %[2]d replicaof no one; redis-cli -p %[1]d replicaof 127.0.0.1 %[2]d; " +
			"while ! redis-cli -p %[1]d info replication | grep -q link_status:up; do :; done; redis-cli -p %[1]d replicaof no one"
		began := time.Now()
		if out, err := exec.Command("sh", "-c", fmt.Sprintf(script, a.port, b.port)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		took := time.Since(began)
		for i := range 300 {
			if fresh, _ := s.Spend(t.Context(), fmt.Append(nil, "lost", round, i), expires); fresh {
				t.Errorf("a value is admitted again after two failovers in %v", took)
				break
			}
		}
		t.Logf("two failovers in %v", took)
		b.follow(a)
	}
}
