package redisstore

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// Options say what a URL does not. The zero value means the defaults.
type Options struct {
	// Password replaces the one in the URL, which others may see in a list of
	// processes.
	Password string

	// TLS is the configuration for rediss URLs. The default verifies servers
	// against the system's authorities.
	TLS *tls.Config

	// Logger is told of a Redis that is set up to lose data. The default is
	// slog.Default().
	Logger *slog.Logger
}

const (
	maxKey   = 256
	maxValue = 64 << 10

	recordPrefix = "limpet:" // of the keys of records

	// A value read is used for at most this long. Redis says sooner when it
	// changes; this is for when the connection that says so is broken.
	maxStale = time.Second

	dialTimeout  = time.Second
	pingInterval = 500 * time.Millisecond // on an idle connection
	replyTimeout = time.Second            // after which a connection is broken
	ackTimeout   = 500 * time.Millisecond // for a replica to acknowledge a record
)

// Store is a limpet.Store, limpet.Lister and limpet.Spender in Redis. Its
// methods fail after Close.
//
// A call that cannot reach Redis, or gets no answer, fails within about two
// seconds. What it asked for may still have happened. The next call tries anew.
type Store struct {
	client     rueidis.Client
	log        *slog.Logger
	secret     string // the password, kept out of errors
	partitions [partitionCount]partition
	emptied    atomic.Uint64 // how often a Redis has said that all keys it had are gone, or could not have
	closed     atomic.Bool
}

var errClosed = errors.New("limpet: redisstore: the store is closed")

// Open connects to the Redis at url; see the package's documentation for its
// forms. It fails if Redis cannot be reached, is older than 7.0, evicts keys, or
// is a cluster where url says none. opts may be nil. No error contains the
// password.
func Open(ctx context.Context, url string, opts *Options) (*Store, error) {
	if opts == nil {
		opts = new(Options)
	}
	o, err := parseURL(url, opts)
	if err != nil {
		return nil, err
	}
	s := &Store{log: opts.Logger, secret: o.Password}
	if s.log == nil {
		s.log = slog.Default()
	}
	o.Dialer.Timeout = dialTimeout
	o.Dialer.KeepAlive = pingInterval
	o.ConnWriteTimeout = replyTimeout
	o.Sentinel.Dialer = o.Dialer
	o.Sentinel.TopologyRefreshInterval = time.Second
	o.ClusterOption.ShardsRefreshInterval = time.Second
	o.ClusterOption.MaxMovedRedirections = 5
	o.DisableRetry = true // the caller's client tries again, and knows whom it keeps waiting
	// Measured in bench: fewer connections and fuller packets, for little delay.
	if o.ForceSingleClient || o.Sentinel.MasterSet != "" {
		o.PipelineMultiplex = -1
	}
	o.MaxFlushDelay = 20 * time.Microsecond
	o.ReadBufferEachConn, o.WriteBufferEachConn = 64<<10, 64<<10
	o.BlockingPoolCleanup = time.Minute
	o.ClientName = "limpet"
	o.OnInvalidations = func(keys []rueidis.RedisMessage) {
		if keys == nil { // all, or the connection has ended
			s.emptied.Add(1)
		}
	}
	if s.client, err = rueidis.NewClient(o); err != nil {
		return nil, s.failed("connecting", err)
	}
	for i, tag := range partitionTags {
		s.partitions[i].init(tag)
	}
	if err := s.check(ctx, o.ForceSingleClient); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.enterAll(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the connections. What waits for an answer fails.
func (s *Store) Close() error {
	if s.closed.CompareAndSwap(false, true) {
		s.client.Close()
	}
	return nil
}

// failed wraps an error of Redis or of the way there. Redis repeats in some
// errors what it was sent, which may be a password.
func (s *Store) failed(doing string, err error) error {
	switch {
	case s.closed.Load():
		return errClosed
	case s.secret != "" && strings.Contains(err.Error(), s.secret):
		return fmt.Errorf("limpet: redisstore: %s: an error that repeats the password", doing)
	case strings.HasPrefix(err.Error(), "NOAUTH"): // and then speaks of HELLO
		return fmt.Errorf("limpet: redisstore: %s: this Redis wants a password, and there is none", doing)
	}
	return fmt.Errorf("limpet: redisstore: %s: %w", doing, err)
}

// check refuses a Redis that would forget what must be remembered, and warns of
// one that might.
func (s *Store) check(ctx context.Context, single bool) error {
	masters, unreachable := s.masters(ctx)
	if len(masters) == 0 {
		return unreachable
	}
	for addr, node := range masters {
		info, err := readInfo(ctx, node)
		if err != nil {
			return s.failed("asking "+addr+" for its settings", err)
		}
		if err := info.check(); err != nil {
			return fmt.Errorf("limpet: redisstore: %s: %w", addr, err)
		}
		if single && info["cluster_enabled"] == "1" {
			return fmt.Errorf("limpet: redisstore: %s is part of a cluster: its URL begins with redis-cluster:// or rediss-cluster://", addr)
		}
		if info["aof_enabled"] == "0" && setting(ctx, node, "save") == "" {
			s.log.WarnContext(ctx, "limpet: this Redis keeps nothing on disk: a restart ends all sessions, and in mode prefer lets their tokens in as unbound ones; set appendonly yes",
				"redis", addr)
		}
		if info["cluster_enabled"] == "0" && info["connected_slaves"] != "0" && setting(ctx, node, "min-replicas-to-write") == "0" {
			s.log.WarnContext(ctx, "limpet: this Redis goes on alone when it is cut off from its replicas: after a failover there can be two of it; set min-replicas-to-write 1",
				"redis", addr)
		}
	}
	return nil
}

// masters returns the nodes that are masters now, by address. The error says
// that there may be more: a node does not answer.
func (s *Store) masters(ctx context.Context) (masters map[string]rueidis.Client, unreachable error) {
	masters = make(map[string]rueidis.Client)
	for addr, node := range s.client.Nodes() {
		role, err := node.Do(ctx, node.B().Role().Build()).ToArray()
		if err != nil {
			unreachable = s.failed("asking "+addr+" for its role", err)
			continue
		}
		if name, _ := role[0].ToString(); name == "master" {
			masters[addr] = node
		}
	}
	if len(masters) == 0 && unreachable == nil {
		unreachable = errors.New("limpet: redisstore: there is no master")
	}
	return masters, unreachable
}

// info is what Redis tells of itself.
type info map[string]string

type doer interface {
	B() rueidis.Builder
	Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult
}

func readInfo(ctx context.Context, node doer) (info, error) {
	text, err := node.Do(ctx, node.B().Info().Section("server", "memory", "persistence", "replication", "cluster").Build()).ToString()
	if err != nil {
		return nil, err
	}
	i := make(info)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			i[name] = value
		}
	}
	return i, nil
}

func (i info) check() error {
	if version := i["redis_version"]; len(version) < 2 || version[0] < '7' && version[1] == '.' {
		return fmt.Errorf("version %s of Redis is too old: 7.0 or newer is needed, which keeps scripts out of its data", version)
	}
	if policy := i["maxmemory_policy"]; policy != "noeviction" {
		return fmt.Errorf("this Redis evicts keys when its memory is full (maxmemory-policy %s), and a spent value that is evicted can be used again: set maxmemory-policy noeviction", policy)
	}
	return nil
}

// setting returns a setting of Redis, "?" where it may not be asked for.
func setting(ctx context.Context, node rueidis.Client, name string) string {
	m, err := node.Do(ctx, node.B().ConfigGet().Parameter(name).Build()).AsStrMap()
	if err != nil {
		return "?"
	}
	return m[name]
}

// A record is its value after the time it expires, in milliseconds of Unix time.
// Redis lets it expire as well. This is for the reader: to ask for a key's
// lifetime along with it would take five commands where two do.
const headerSize = 8

func encodeRecord(val []byte, ttl time.Duration) string {
	now := time.Now().UnixMilli()
	rec := make([]byte, headerSize, headerSize+len(val))
	binary.BigEndian.PutUint64(rec, uint64(now+milliseconds(ttl)))
	return rueidis.BinaryString(append(rec, val...))
}

// decodeRecord returns the value in rec. found is false if it has expired.
func decodeRecord(rec []byte) (val []byte, found bool, err error) {
	if len(rec) < headerSize {
		return nil, false, errors.New("a record is damaged")
	}
	if int64(binary.BigEndian.Uint64(rec)) <= time.Now().UnixMilli() {
		return nil, false, nil
	}
	return rec[headerSize:len(rec):len(rec)], true, nil
}

// milliseconds rounds up: a lifetime is never nothing.
func milliseconds(d time.Duration) int64 {
	const ms = int64(time.Millisecond)
	return (int64(min(d, math.MaxInt64-time.Millisecond)) + ms - 1) / ms
}

// Get implements limpet.Store. What it returns is at most a second old, however
// broken the connections are, and usually as old as a message takes from Redis.
func (s *Store) Get(ctx context.Context, key string) (val []byte, found bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	if key == "" || len(key) > maxKey {
		return nil, false, nil
	}
	var rec []byte
	end := time.Now().Add(replyTimeout)
	for {
		rec, err = s.client.DoCache(ctx, s.client.B().Get().Key(recordPrefix+key).Cache().ToStaticTTL(), maxStale).AsBytes()
		// Those who read a key at a time share an answer, and the error of the one
		// who has asked: that it has given up is nothing to the others.
		theirs := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
		if !theirs || ctx.Err() != nil || time.Now().After(end) {
			break
		}
	}
	switch {
	case rueidis.IsRedisNil(err):
		return nil, false, nil
	case err != nil:
		return nil, false, s.failed("reading", err)
	}
	if val, found, err = decodeRecord(rec); err != nil {
		return nil, false, s.failed("reading", err)
	}
	return val, found, nil
}

// Put implements limpet.Store. If the master has replicas, one of them has
// acknowledged the record when Put returns; else it is an error.
func (s *Store) Put(ctx context.Context, key string, val []byte, ttl time.Duration) error {
	if err := checkRecord(ctx, key, val, ttl); err != nil {
		return err
	}
	_, err := s.write(ctx, key, func(b rueidis.Builder) rueidis.Completed {
		return b.Set().Key(recordPrefix + key).Value(encodeRecord(val, ttl)).PxMilliseconds(milliseconds(ttl)).Build()
	})
	return err
}

// Add implements limpet.Store, acknowledged like Put.
func (s *Store) Add(ctx context.Context, key string, val []byte, ttl time.Duration) (added bool, err error) {
	if err := checkRecord(ctx, key, val, ttl); err != nil {
		return false, err
	}
	return s.write(ctx, key, func(b rueidis.Builder) rueidis.Completed {
		return b.Set().Key(recordPrefix + key).Value(encodeRecord(val, ttl)).Nx().PxMilliseconds(milliseconds(ttl)).Build()
	})
}

// Delete implements limpet.Store, acknowledged like Put.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if key == "" || len(key) > maxKey {
		return nil
	}
	_, err := s.write(ctx, key, func(b rueidis.Builder) rueidis.Completed {
		return b.Del().Key(recordPrefix + key).Build()
	})
	return err
}

func checkRecord(ctx context.Context, key string, val []byte, ttl time.Duration) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case key == "" || len(key) > maxKey:
		return fmt.Errorf("limpet: redisstore: a key of %d bytes; 1 to %d are allowed", len(key), maxKey)
	case len(val) > maxValue:
		return fmt.Errorf("limpet: redisstore: a value of %d bytes; at most %d are allowed", len(val), maxValue)
	case ttl <= 0:
		return errors.New("limpet: redisstore: a lifetime that is not positive")
	}
	return nil
}

// write changes the record of key and waits until a replica has the change.
// done is false if Redis answered nil: the record was there before.
func (s *Store) write(ctx context.Context, key string, cmd func(rueidis.Builder) rueidis.Completed) (done bool, err error) {
	err = s.client.Dedicated(func(c rueidis.DedicatedClient) error {
		reply, err := s.acknowledged(ctx, c, cmd(c.B()))
		done = err == nil && !reply.IsNil()
		return err
	})
	if err != nil {
		return false, s.failed("writing", err)
	}
	// Redis has sent word of the change on the connection that Get reads on. An
	// answer on that connection comes after it, so this store, at least, sees
	// what it wrote.
	if err := s.client.Do(ctx, s.client.B().Exists().Key(recordPrefix+key).Build()).Error(); err != nil {
		return false, s.failed("writing", err)
	}
	return done, nil
}

// acknowledged runs a write and, if the master has replicas, waits for one of
// them to have it. A reply of nil, which changed nothing, needs no waiting.
func (s *Store) acknowledged(ctx context.Context, c rueidis.DedicatedClient, cmd rueidis.Completed) (rueidis.RedisMessage, error) {
	replies := c.DoMulti(ctx, cmd, c.B().Role().Build())
	reply, err := replies[0].ToMessage()
	if rueidis.IsRedisNil(err) {
		return reply, nil
	}
	if err != nil {
		return reply, err
	}
	role, err := replies[1].ToArray()
	if err != nil {
		return reply, err
	}
	if !hasReplica(role) {
		return reply, nil
	}
	n, err := c.Do(ctx, c.B().Wait().Numreplicas(1).Timeout(ackTimeout.Milliseconds()).Build()).AsInt64()
	if err == nil && n < 1 {
		err = errors.New("no replica has acknowledged it")
	}
	return reply, err
}

// hasReplica reports whether a master's answer to ROLE names a replica that has
// ever acknowledged something. One that has not is still loading its first copy.
func hasReplica(role []rueidis.RedisMessage) bool {
	if len(role) < 3 {
		return false
	}
	replicas, _ := role[2].ToArray()
	for _, replica := range replicas {
		if f, _ := replica.AsStrSlice(); len(f) == 3 && f[2] != "0" {
			return true
		}
	}
	return false
}

// List implements limpet.Lister. It scans the keys of every master, some
// hundred at a time, and remembers a hash of those it has found so as to find
// none twice: about 30 bytes each. A master looks at about a million keys a
// second, whatever the prefix.
func (s *Store) List(ctx context.Context, prefix string, yield func(key string, val []byte) bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	masters, unreachable := s.masters(ctx)
	if unreachable != nil {
		return unreachable // half a list looks like a whole one
	}
	seen := newKeySet()
	pattern := globEscaper.Replace(recordPrefix+prefix) + "*"
	for _, node := range masters {
		for cursor, more := uint64(0), true; more; more = cursor != 0 {
			page, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match(pattern).Count(scanCount).Build()).AsScanEntry()
			if err != nil {
				return s.failed("listing", err)
			}
			cursor = page.Cursor
			gets := make(rueidis.Commands, 0, len(page.Elements))
			keys := page.Elements[:0]
			for _, key := range page.Elements {
				if seen.add(key) {
					keys = append(keys, key)
					gets = append(gets, node.B().Get().Key(key).Build())
				}
			}
			for i, reply := range node.DoMulti(ctx, gets...) {
				rec, err := reply.AsBytes()
				if rueidis.IsRedisNil(err) {
					continue
				}
				var val []byte
				var found bool
				if err == nil {
					val, found, err = decodeRecord(rec)
				}
				if err != nil {
					return s.failed("listing", err)
				}
				if found && !yield(keys[i][len(recordPrefix):], val) {
					return nil
				}
			}
		}
	}
	return nil
}

const scanCount = 512

var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)
