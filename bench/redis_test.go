//go:build unix

package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/limpet-auth/limpet"
	"github.com/limpet-auth/limpet/limpettest"
	"github.com/limpet-auth/limpet/store/redisstore"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

const connections = 64 // that requests come on, at a time

// atOnce has 64 goroutines call f with values of their own for a second, and
// reports what one call costs this process and Redis.
func atOnce(b *testing.B, admin rueidis.Client, f func(ctx context.Context, id uint64) error) {
	b.Helper()
	ctx := context.Background()
	for i := range uint64(2000) { // connections, caches
		if err := f(ctx, rand.Uint64N(1<<62)|i); err != nil {
			b.Fatal(err)
		}
	}
	var calls atomic.Int64
	slowest := make([][]time.Duration, connections)
	var wg sync.WaitGroup
	own, theirs := cpuTime(), redisCPU(b, admin)
	start := time.Now()
	for i := range connections {
		wg.Go(func() {
			for n := uint64(0); time.Since(start) < time.Second; n++ {
				began := time.Now()
				if err := f(ctx, uint64(i)<<48|n|rand.Uint64N(1<<16)<<32); err != nil {
					b.Error(err)
					return
				}
				slowest[i] = append(slowest[i], time.Since(began))
			}
			calls.Add(int64(len(slowest[i])))
		})
	}
	wg.Wait()
	took, n := time.Since(start), float64(calls.Load())
	own, theirs = cpuTime()-own, redisCPU(b, admin)-theirs
	all := slices.Concat(slowest...)
	slices.Sort(all)
	b.ReportMetric(n/took.Seconds(), "calls/s")
	b.ReportMetric(float64(own.Nanoseconds())/1e3/n, "cpu-us/call")
	b.ReportMetric(theirs.Seconds()*1e6/n, "redis-cpu-us/call")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1e3, "p99-ms")
	b.ReportMetric(0, "ns/op")
}

func redisInfo(b *testing.B, c rueidis.Client, section, name string) string {
	b.Helper()
	text, err := c.Do(context.Background(), c.B().Info().Section(section).Build()).ToString()
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	b.Fatalf("Redis does not tell %s", name)
	return ""
}

func redisCPU(b *testing.B, c rueidis.Client) time.Duration {
	user, _ := strconv.ParseFloat(redisInfo(b, c, "cpu", "used_cpu_user"), 64)
	system, _ := strconv.ParseFloat(redisInfo(b, c, "cpu", "used_cpu_sys"), 64)
	return time.Duration((user + system) * float64(time.Second))
}

func newRueidis(b *testing.B, addr string, tune func(*rueidis.ClientOption)) rueidis.Client {
	b.Helper()
	o := rueidis.ClientOption{InitAddress: []string{addr}, ForceSingleClient: true, ReadBufferEachConn: 64 << 10, WriteBufferEachConn: 64 << 10}
	if tune != nil {
		tune(&o)
	}
	c, err := rueidis.NewClient(o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c
}

func newRedisStore(b *testing.B, addr string) *redisstore.Store {
	b.Helper()
	s, err := redisstore.Open(context.Background(), "redis://"+addr, &redisstore.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

func spendID(id uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 8, 16), id) }

// script is as much work for Redis as the store's.
const script = `if redis.call('GET', KEYS[2]) then return -1 end
local new = redis.call('SADD', KEYS[1], ARGV[1])
if new == 1 and redis.call('SCARD', KEYS[1]) == 1 then redis.call('EXPIREAT', KEYS[1], ARGV[2]) end
return new`

// BenchmarkRedis measures on a redis-server on the loopback interface.
func BenchmarkRedis(b *testing.B) {
	ctx := context.Background()
	set := func(c rueidis.Client) func(context.Context, uint64) error {
		return func(ctx context.Context, id uint64) error {
			return c.Do(ctx, c.B().Set().Key("n:"+strconv.FormatUint(id, 36)).Value("").Nx().PxMilliseconds(60_000).Build()).Error()
		}
	}
	run := func(name string, f func(b *testing.B, addr string) func(context.Context, uint64) error) {
		b.Run(name, func(b *testing.B) {
			addr := limpettest.Redis(b)
			atOnce(b, newRueidis(b, addr, nil), f(b, addr))
		})
	}
	for _, c := range []struct {
		name string
		tune func(*rueidis.ClientOption)
	}{
		{"rueidis", nil},
		{"rueidis/one-connection", func(o *rueidis.ClientOption) { o.PipelineMultiplex = -1 }},
		{"rueidis/always-pipelining", func(o *rueidis.ClientOption) { o.AlwaysPipelining = true }},
		{"rueidis/flush-delay-20us", func(o *rueidis.ClientOption) { o.MaxFlushDelay = 20 * time.Microsecond }},
		{"rueidis/tuned", func(o *rueidis.ClientOption) {
			o.PipelineMultiplex, o.MaxFlushDelay = -1, 20*time.Microsecond
		}},
	} {
		run("set/"+c.name, func(b *testing.B, addr string) func(context.Context, uint64) error {
			return set(newRueidis(b, addr, c.tune))
		})
	}
	pool := func(b *testing.B, addr string) *goredis.Client {
		c := goredis.NewClient(&goredis.Options{Addr: addr, PoolSize: connections})
		b.Cleanup(func() { c.Close() })
		return c
	}
	pipeliner := func(b *testing.B, addr string) *goredis.AutoPipeliner {
		p, err := pool(b, addr).AutoPipeline()
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { p.Close() })
		return p
	}
	run("set/go-redis", func(b *testing.B, addr string) func(context.Context, uint64) error {
		c := pool(b, addr)
		return func(ctx context.Context, id uint64) error {
			return c.SetNX(ctx, "n:"+strconv.FormatUint(id, 36), "", time.Minute).Err()
		}
	})
	run("set/go-redis/auto-pipeline", func(b *testing.B, addr string) func(context.Context, uint64) error {
		c := pipeliner(b, addr)
		return func(ctx context.Context, id uint64) error {
			return c.SetNX(ctx, "n:"+strconv.FormatUint(id, 36), "", time.Minute).Err()
		}
	})
	bucket := func(id uint64) (key, epoch, value, second string) {
		tag := "{" + strconv.FormatUint(id%1024, 36) + "}"
		return tag + "abcdef", "none:" + tag, strconv.FormatUint(id, 10), strconv.FormatInt(time.Now().Unix()+60, 10)
	}
	sha := func(b *testing.B, addr string) string {
		c := newRueidis(b, addr, nil)
		sha, err := c.Do(ctx, c.B().ScriptLoad().Script(script).Build()).ToString()
		if err != nil {
			b.Fatal(err)
		}
		return sha
	}
	run("script/rueidis", func(b *testing.B, addr string) func(context.Context, uint64) error {
		c, sha := newRueidis(b, addr, nil), sha(b, addr)
		return func(ctx context.Context, id uint64) error {
			key, epoch, value, second := bucket(id)
			return c.Do(ctx, c.B().Evalsha().Sha1(sha).Numkeys(2).Key(key, epoch).Arg(value, second).Build()).Error()
		}
	})
	run("script/go-redis/auto-pipeline", func(b *testing.B, addr string) func(context.Context, uint64) error {
		c, sha := pipeliner(b, addr), sha(b, addr)
		return func(ctx context.Context, id uint64) error {
			key, epoch, value, second := bucket(id)
			return c.EvalSha(ctx, sha, []string{key, epoch}, value, second).Err()
		}
	})
	run("limpet/spend", func(b *testing.B, addr string) func(context.Context, uint64) error {
		s := newRedisStore(b, addr)
		return func(ctx context.Context, id uint64) error {
			_, err := s.Spend(ctx, spendID(id), time.Now().Add(time.Minute))
			return err
		}
	})
	// What a proven request asks of the store: binding, ephemeral key, nonce.
	run("limpet/request", func(b *testing.B, addr string) func(context.Context, uint64) error {
		s := newRedisStore(b, addr)
		var keys [connections][2]string
		for i := range keys {
			keys[i] = [2]string{fmt.Sprintf("b:{%043d}", i), fmt.Sprintf("e:{%043d}0", i)}
			for _, key := range keys[i] {
				if err := s.Put(ctx, key, make([]byte, 200), time.Hour); err != nil {
					b.Fatal(err)
				}
			}
		}
		return func(ctx context.Context, id uint64) error {
			for _, key := range keys[id>>48%connections] {
				if _, found, err := s.Get(ctx, key); err != nil || !found {
					return fmt.Errorf("found %v: %w", found, err)
				}
			}
			_, err := s.Spend(ctx, spendID(id), time.Now().Add(time.Minute))
			return err
		}
	})
	run("limpet/get-not-in-memory", func(b *testing.B, addr string) func(context.Context, uint64) error {
		s := newRedisStore(b, addr)
		return func(ctx context.Context, id uint64) error {
			_, _, err := s.Get(ctx, fmt.Sprintf("b:{%043d}", id))
			return err
		}
	})
	run("limpet/put", func(b *testing.B, addr string) func(context.Context, uint64) error {
		s := newRedisStore(b, addr)
		return func(ctx context.Context, id uint64) error {
			return s.Put(ctx, fmt.Sprintf("b:{%043d}", id), make([]byte, 200), time.Hour)
		}
	})
	b.Run("limpet/get", func(b *testing.B) {
		addr := limpettest.Redis(b)
		s := newRedisStore(b, addr)
		if err := s.Put(ctx, "key", make([]byte, 200), time.Hour); err != nil {
			b.Fatal(err)
		}
		const cached, uncached = 300_000, 10_000
		start := cpuTime()
		for range cached {
			if _, found, err := s.Get(ctx, "key"); err != nil || !found {
				b.Fatal(found, err)
			}
		}
		b.ReportMetric(float64((cpuTime()-start).Nanoseconds())/cached, "cpu-ns/get")
		b.ReportMetric(0, "ns/op")
	})
}

// BenchmarkRedisBytes measures what Redis allocates.
func BenchmarkRedisBytes(b *testing.B) {
	b.Run("session", redisSessionBytes)
	for _, rate := range []int{100, 1_000, 10_000, 50_000, 100_000, 400_000} {
		b.Run(fmt.Sprint("rate=", rate), func(b *testing.B) { redisBytes(b, rate) })
	}
}

// redisBytes spends what a steady rate leaves live in a number of seconds, and
// reports what Redis has allocated for one value. Beside it, where there are
// not too many, a key of its own for each.
func redisBytes(b *testing.B, rate int) {
	ctx := context.Background()
	addr := limpettest.Redis(b)
	s := newRedisStore(b, addr)
	admin := newRueidis(b, addr, nil)
	memory := func() float64 { return redisMemory(b, admin) }
	seconds := max(2, min(80, 200_000/rate)) // few enough to be short-lived
	n := rate * seconds
	each := func(f func(ctx context.Context, i int) error) {
		var wg sync.WaitGroup
		for worker := range connections {
			wg.Go(func() {
				for i := worker; i < n; i += connections {
					if err := f(ctx, i); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	base := time.Now().Add(35 * time.Second).Truncate(time.Second)
	if _, err := s.Spend(ctx, spendID(1<<60), base); err != nil {
		b.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	before := memory()
	each(func(ctx context.Context, i int) error {
		fresh, err := s.Spend(ctx, spendID(uint64(i)), base.Add(time.Duration(i%seconds)*time.Second))
		if err == nil && !fresh {
			err = fmt.Errorf("%d was refused", i)
		}
		return err
	})
	time.Sleep(300 * time.Millisecond)
	b.ReportMetric((memory()-before)/float64(n), "B/nonce")
	b.ReportMetric(0, "ns/op")
	if rate == 50_000 { // it is the same for all
		before = memory()
		each(func(ctx context.Context, i int) error {
			key := strconv.FormatUint(rand.Uint64(), 36) + strconv.FormatUint(rand.Uint64(), 36)
			return admin.Do(ctx, admin.B().Set().Key(key).Value("").Nx().PxMilliseconds(100_000).Build()).Error()
		})
		time.Sleep(300 * time.Millisecond)
		b.ReportMetric((memory()-before)/float64(n), "B/own-key")
	}
}

// redisMemory is what Redis has allocated, but for its clients: what those have it
// finds out in turns, and lets go of after a second or two.
func redisMemory(b *testing.B, c rueidis.Client) float64 {
	time.Sleep(3 * time.Second)
	all, _ := strconv.ParseFloat(redisInfo(b, c, "memory", "used_memory"), 64)
	clients, _ := strconv.ParseFloat(redisInfo(b, c, "memory", "mem_clients_normal"), 64)
	return all - clients
}

// redisSessionBytes has users log in and introduce an ephemeral key each.
func redisSessionBytes(b *testing.B) {
	const sessions = 4000 // of one device, which remembers so many delegations
	addr := limpettest.Redis(b)
	admin := newRueidis(b, addr, nil)
	guard, err := limpet.New(limpet.Config{Session: limpet.Bearer(), Store: newRedisStore(b, addr), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	app := guard.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	device, pub := newKey(b)
	empty := redisMemory(b, admin)
	together(sessions, func(i int) { bind(b, guard, pub, i) })
	bound := redisMemory(b, admin)
	together(sessions, func(i int) { introduce(b, app, device, fmt.Sprint("token", i)) })
	key, err := admin.Do(b.Context(), admin.B().Arbitrary("EVAL").Args("return redis.call('KEYS', 'limpet:e:*')[1]", "0").Build()).ToString()
	if err != nil {
		b.Fatal(err)
	}
	ephemeral, err := admin.Do(b.Context(), admin.B().MemoryUsage().Key(key).Build()).AsInt64()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric((bound-empty)/sessions, "B/session")
	b.ReportMetric(float64(ephemeral), "B/ephemeral-key")
	b.ReportMetric(0, "ns/op")
}
