//go:build unix

package redisstore

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/limpettest"
)

var quiet = &Options{Logger: slog.New(slog.DiscardHandler)}

func openTest(t testing.TB, url string) *Store {
	t.Helper()
	s, err := Open(t.Context(), url, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	t.Parallel()
	server := startRedis(t, "--databases", "64")
	var database atomic.Int64
	limpettest.Store(t, func(t *testing.T) limpet.Store {
		return openTest(t, fmt.Sprint(server.url(), "/", database.Add(1)))
	})
	t.Run("Durable", func(t *testing.T) {
		url := fmt.Sprint(server.url(), "/", database.Add(1))
		limpettest.DurableStore(t, func(t *testing.T) limpet.Store { return openTest(t, url) })
	})
}

func TestStoreOnCluster(t *testing.T) {
	t.Parallel()
	cluster := startCluster(t, 15*time.Second)
	var one sync.Mutex // at a time: a cluster has no databases
	open := func(t *testing.T) *Store {
		one.Lock()
		t.Cleanup(one.Unlock)
		cluster.flush()
		return openTest(t, cluster.url())
	}
	limpettest.Store(t, func(t *testing.T) limpet.Store { return open(t) })
	t.Run("Durable", func(t *testing.T) {
		first := open(t)
		limpettest.DurableStore(t, func(t *testing.T) limpet.Store {
			s := first
			if first = nil; s == nil {
				s = openTest(t, cluster.url())
			}
			return s
		})
	})
	t.Run("OneSlot", func(t *testing.T) { testOneSlot(t, cluster, open(t)) })
	t.Run("TTL", func(t *testing.T) {
		s := open(t)
		fill(t, s, "key")
		wantTTLs(t, cluster.masters...)
	})
}

// testOneSlot: a session's records lie in one slot, a spent value with what its
// spending asks for in one, and a request whose records are in memory is one
// command to one node.
func testOneSlot(t *testing.T, cluster *redisCluster, s *Store) {
	ctx, node := t.Context(), cluster.masters[0]
	session := "{47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU}"
	slots := map[string]bool{}
	keys := []string{"b:" + session, "e:" + session + "0", "e:" + session + "7", "n:" + session + "x"}
	for _, key := range keys {
		slots[node.do("cluster", "keyslot", recordPrefix+key)] = true
		if err := s.Put(ctx, key, []byte("1"), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if len(slots) != 1 {
		t.Errorf("a session's records lie in %d slots", len(slots))
	}
	for i := range 100 {
		p, key, _ := s.place(fmt.Append(nil, i), time.Now().Unix())
		if a, b := node.do("cluster", "keyslot", key), node.do("cluster", "keyslot", p.epochKey); a != b {
			t.Fatalf("%s lies in slot %s and %s in %s", key, a, p.epochKey, b)
		}
	}
	request := func(i int) {
		for _, key := range keys[:2] {
			if _, found, err := s.Get(ctx, key); err != nil || !found {
				t.Fatal(found, err)
			}
		}
		wantSpend(t, s, fmt.Sprint("id", i), time.Now().Add(time.Minute), true)
	}
	request(0)
	before := commands(cluster.masters)
	request(1)
	after := commands(cluster.masters)
	total := 0
	for name, n := range after {
		if n -= before[name]; n > 0 {
			total += n
			if !strings.HasPrefix(name, "evalsha") {
				t.Errorf("%d of %s", n, name)
			}
		}
	}
	if total != 1 {
		t.Errorf("a request took %d commands of Redis, want 1", total)
	}
}

// commands counts what clients have asked for, by command.
func commands(servers []*redisServer) map[string]int {
	counts := map[string]int{}
	for _, s := range servers {
		for _, m := range regexp.MustCompile(`cmdstat_(\S+):calls=(\d+)`).FindAllStringSubmatch(s.do("info", "commandstats"), -1) {
			switch m[1] {
			case "info", "ping", "cluster|slots", "cluster|shards", "replconf", "role", // of the test, the client's upkeep and the replicas
				"sadd", "scard", "get", "expire", "expireat", "time": // of the script, or of reads that are not in memory
				if m[1] != "get" {
					continue
				}
				m[1] = "evalsha's get"
			}
			n := 0
			fmt.Sscan(m[2], &n)
			if m[1] != "evalsha's get" {
				counts[m[1]] += n
			}
		}
	}
	return counts
}

// fill leaves something of every kind in the store.
func fill(t *testing.T, s *Store, name string) {
	t.Helper()
	for i := range 50 {
		key := fmt.Sprint(name, i)
		if err := s.Put(t.Context(), key, []byte("1"), time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Add(t.Context(), "added"+key, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
		wantSpend(t, s, key, time.Now().Add(time.Minute), true)
		wantSpend(t, s, "long"+key, time.Now().Add(time.Hour), true)
	}
}

// wantTTLs checks that every key goes of itself some day.
func wantTTLs(t *testing.T, servers ...*redisServer) {
	t.Helper()
	n := 0
	for _, s := range servers {
		out := s.do("eval", `local n = 0
			for _, key in ipairs(redis.call('KEYS', '*')) do
				if redis.call('PTTL', key) < 0 then return 'forever: ' .. key end
				n = n + 1
			end
			return tostring(n)`, "0")
		if strings.Contains(out, "forever") {
			t.Error(out)
		}
		add := 0
		fmt.Sscan(strings.Trim(out, `"`), &add)
		n += add
	}
	if n < partitionCount+150 {
		t.Errorf("looked at %d keys only", n)
	}
}

func TestTTL(t *testing.T) {
	server := startRedis(t)
	fill(t, openTest(t, server.url()), "key")
	wantTTLs(t, server)
}

// TestRevokeIsSeen: what one server writes another sees at once, though it has
// the old value in memory; within a second if the connection that would tell it
// so is dead without saying so.
func TestRevokeIsSeen(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	pipe := startPipe(t, server.addr())
	here, there := openTest(t, "redis://"+pipe.addr), openTest(t, server.url())
	ctx := t.Context()
	var slowest time.Duration
	for i := range 50 {
		key := fmt.Sprintf("b:{session%d}", i)
		for _, val := range []string{"bound", "revoked"} {
			if err := there.Put(ctx, key, []byte(val), time.Hour); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			for {
				got, _, err := here.Get(ctx, key)
				if err != nil {
					t.Fatal(err)
				}
				if string(got) == val {
					break
				}
				if time.Since(start) > time.Second {
					t.Fatalf("%q is seen a second after %q was written", got, val)
				}
			}
			slowest = max(slowest, time.Since(start))
		}
	}
	t.Logf("seen after at most %v", slowest)
	pipe.hold()
	if err := there.Put(ctx, "b:{session0}", []byte("other"), time.Hour); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for time.Since(start) < 2500*time.Millisecond {
		asked := time.Now()
		got, found, err := here.Get(ctx, "b:{session0}")
		if err == nil && (!found || string(got) != "other") && asked.Sub(start) > time.Second {
			t.Fatalf("%q was read %v after it was replaced", got, asked.Sub(start))
		}
		if took := time.Since(asked); took > 3*time.Second {
			t.Errorf("a read took %v", took)
		}
		time.Sleep(time.Millisecond)
	}
	pipe.release()
	eventually(t, "reads again", func() bool {
		got, found, err := here.Get(ctx, "b:{session0}")
		return err == nil && found && string(got) == "other"
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("the store never %s", what)
}

// pipe passes connections on, and can hold all of them without closing one.
type pipe struct {
	addr string
	mu   sync.RWMutex
}

func startPipe(t *testing.T, to string) *pipe {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &pipe{addr: l.Addr().String()}
	pass := func(to, from net.Conn) {
		defer to.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			p.mu.RLock()
			to.Write(buf[:n])
			p.mu.RUnlock()
		}
	}
	go func() {
		for {
			here, err := l.Accept()
			if err != nil {
				return
			}
			there, err := net.Dial("tcp", to)
			if err != nil {
				here.Close()
				continue
			}
			go pass(here, there)
			go pass(there, here)
		}
	}()
	return p
}

func (p *pipe) hold()    { p.mu.Lock() }
func (p *pipe) release() { p.mu.Unlock() }

// TestTwoServersOneWinner: two servers that admit one nonce at the same instant.
func TestTwoServersOneWinner(t *testing.T) {
	server := startRedis(t)
	stores := [2]*Store{openTest(t, server.url()), openTest(t, server.url())}
	var wg sync.WaitGroup
	for worker := range 32 {
		wg.Go(func() {
			for try := worker; try < 10_000; try += 32 {
				id, expires := fmt.Append(nil, "id", try), time.Now().Add(time.Minute)
				var winners atomic.Int64
				start := make(chan struct{})
				var both sync.WaitGroup
				for _, s := range stores {
					both.Go(func() {
						<-start
						fresh, err := s.Spend(t.Context(), id, expires)
						if err != nil {
							t.Error(err)
						}
						if fresh {
							winners.Add(1)
						}
					})
				}
				close(start)
				both.Wait()
				if n := winners.Load(); n != 1 {
					t.Errorf("%d winners of %s", n, id)
				}
			}
		})
	}
	wg.Wait()
}

func TestOpenRefuses(t *testing.T) {
	for _, policy := range []string{"allkeys-lru", "volatile-ttl", "allkeys-random"} {
		server := startRedis(t, "--maxmemory-policy", policy)
		_, err := Open(t.Context(), server.url(), quiet)
		if err == nil || !strings.Contains(err.Error(), policy) || !strings.Contains(err.Error(), "set maxmemory-policy noeviction") {
			t.Errorf("%s: %v", policy, err)
		}
	}
	server := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", fmt.Sprint(freePort(t)))
	if _, err := Open(t.Context(), server.url(), quiet); err == nil || !strings.Contains(err.Error(), "redis-cluster://") {
		t.Errorf("a cluster's node: %v", err)
	}
	if _, err := Open(t.Context(), fmt.Sprint("redis://127.0.0.1:", freePort(t)), quiet); err == nil {
		t.Error("no error where nobody listens")
	}
}

// TestACL: the rights that docs/operations.md asks for are enough.
func TestACL(t *testing.T) {
	doc, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rights := regexp.MustCompile("`(~limpet:[^`]*)`").FindSubmatch(doc)
	if rights == nil {
		t.Fatal("docs/operations.md does not say which")
	}
	server := startRedis(t)
	server.do(append([]string{"acl", "setuser", "limpet", "on", ">password"}, strings.Fields(string(rights[1]))...)...)
	server.do("acl", "setuser", "default", "off")
	s, err := Open(t.Context(), "redis://limpet@"+server.addr(), &Options{Password: "password", Logger: quiet.Logger})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fill(t, s, "key")
	for name, call := range calls(s) {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWarnings(t *testing.T) {
	opened := func(server *redisServer) string {
		var log bytes.Buffer
		s, err := Open(t.Context(), server.url(), &Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		return log.String()
	}
	master := startRedis(t)
	if log := opened(master); !strings.Contains(log, "keeps nothing on disk") || !strings.Contains(log, "level=WARN") {
		t.Errorf("no persistence, logged: %s", log)
	}
	master.do("config", "set", "save", "60 1")
	if log := opened(master); log != "" {
		t.Errorf("snapshots, logged: %s", log)
	}
	startRedis(t, "--replicaof", "127.0.0.1 "+fmt.Sprint(master.port))
	master.eventually("had a replica", func() bool { return strings.Contains(master.do("info", "replication"), "lag=0") })
	if log := opened(master); !strings.Contains(log, "min-replicas-to-write") {
		t.Errorf("a replica, logged: %s", log)
	}
}

func TestNoGoroutinesLeft(t *testing.T) {
	server := startRedis(t)
	before := runtime.NumGoroutine()
	for i := range 3 {
		s, err := Open(t.Context(), server.url(), quiet)
		if err != nil {
			t.Fatal(err)
		}
		fill(t, s, fmt.Sprint("key", i, "/"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Get(t.Context(), "key1"); err == nil {
			t.Error("a closed store reads")
		}
		if _, err := s.Spend(t.Context(), []byte("x"), time.Now().Add(time.Minute)); err == nil {
			t.Error("a closed store spends")
		}
		if err := s.Put(t.Context(), "x", nil, time.Hour); err == nil {
			t.Error("a closed store writes")
		}
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Errorf("%d goroutines, %d before\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
}

// TestSharedRead: who gives up while several wait for the same record fails alone.
func TestSharedRead(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	s := openTest(t, server.url())
	if err := s.Put(t.Context(), "key", []byte("1"), time.Hour); err != nil {
		t.Fatal(err)
	}
	server.stop()
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, _, err := s.Get(ctx, "key"); first <- err }()
	time.Sleep(50 * time.Millisecond)
	second := make(chan error, 1)
	go func() { _, _, err := s.Get(t.Context(), "key"); second <- err }()
	time.Sleep(50 * time.Millisecond)
	cancel()
	if err := <-first; err == nil {
		t.Error("a read that was given up gave no error")
	}
	server.resume()
	if err := <-second; err != nil {
		t.Errorf("a read that nobody gave up: %v", err)
	}
}
