package redisstore

import (
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

const (
	partitionCount = 128 // a divisor of the 16384 slots
	setsPerSecond  = 8   // in each partition

	// shortLife is how far ahead, in seconds, the values expire that a new epoch
	// refuses because the one before may have admitted them. A value that says
	// its time expires at most 91 s after it was spent. The rest is for clocks
	// that differ and for an old master that takes a while to notice.
	shortLife = 120

	maxHorizon = 24 * time.Hour

	epochLife = 30 * 24 * 60 * 60 // seconds that an epoch is remembered without use

	// askEvery is how often a spend asks as well whether Redis was a replica in
	// between, which takes half as long again; it does so too when Redis has been
	// filled anew, as a replica is.
	askEvery = time.Second

	replIDSize = 40 // characters
)

// noReplID is Redis's second replication ID when it was never a replica.
var noReplID = strings.Repeat("0", replIDSize)

const (
	argBegin = "begin"
	argAsk   = "ask"
)

// partition is a part of the spent values that lies in one slot.
type partition struct {
	tag      string
	epochKey string
	epoch    atomic.Pointer[epoch]
	asked    atomic.Pointer[asked]
	entering chan struct{} // has room for the one who looks for the epoch
	looks    atomic.Int64  // how often somebody has
	lookErr  error         // of the last time; belongs to who is entering
}

// asked is when an epoch was last seen to be that of this very master.
type asked struct {
	epoch   *epoch
	at      time.Time
	emptied uint64 // the store's count before
}

func (p *partition) init(tag string) {
	p.tag, p.epochKey = "{"+tag+"}", "limpet-epoch:{"+tag+"}"
	p.entering = make(chan struct{}, 1)
}

// epoch is a time in which a partition has lost nothing, see the package's
// documentation.
type epoch struct {
	record string // "1 name floor ID"
	sha    string // of its script
	floor  int64  // Unix second; what expires up to here may have been spent before
	replID string // Redis's replication ID, which is new when a replica becomes a master
}

func newEpoch(floor int64, replID string) (*epoch, error) {
	var name [12]byte
	rand.Read(name[:]) // never fails
	return parseEpoch(fmt.Sprintf("1 %s %d %s", hex.EncodeToString(name[:]), floor, replID))
}

// parseEpoch reads a record, which ends up in a script: nothing but what
// newEpoch writes will do.
func parseEpoch(record string) (*epoch, error) {
	f := strings.Split(record, " ")
	if len(f) != 4 || f[0] != "1" || len(f[1]) != 24 || len(f[3]) != replIDSize {
		return nil, errors.New("an epoch that this version does not know")
	}
	_, err := hex.DecodeString(f[1])
	floor, err2 := strconv.ParseInt(f[2], 10, 64)
	_, err3 := hex.DecodeString(f[3])
	if err != nil || err2 != nil || err3 != nil || strconv.FormatInt(floor, 10) != f[2] {
		return nil, errors.New("an epoch that this version does not know")
	}
	e := &epoch{record: record, floor: floor, replID: f[3]}
	sum := sha1.Sum([]byte(e.script()))
	e.sha = hex.EncodeToString(sum[:])
	return e, nil
}

// of reports whether the Redis that says this of itself was no replica since the
// epoch began. Redis changes its ID, and drops the second, when it has been
// without replicas for an hour (repl-backlog-ttl) as well.
func (e *epoch) of(i info) bool {
	return i["master_replid"] == e.replID || i["master_replid2"] == noReplID
}

// script returns the text that spends in this epoch and no other. Told to begin,
// it begins the epoch, if the record is still the one in the argument: running
// the text is what leaves it in the memory of this very process.
//
// KEYS: set, epoch. ARGV: fingerprint, second of expiry, nothing, "ask" or
// "begin", record before.
// Returns 1 if the value is new or the epoch begun, 0 if not, -1 if the epoch
// is another.
func (e *epoch) script() string {
	return strings.NewReplacer("RECORD", e.record, "LIFE", strconv.Itoa(epochLife), "REPLID", e.replID, "NONE", noReplID).Replace(`-- Limpet, spent values
local epoch = redis.call('GET', KEYS[2]) or ''
local same = true
if ARGV[3] then
	local info = redis.call('INFO', 'replication')
	same = string.find(info, 'master_replid:REPLID', 1, true) or string.find(info, 'master_replid2:NONE', 1, true)
end
if ARGV[3] == 'begin' then
	if epoch ~= ARGV[4] or not same then return 0 end
	redis.call('SET', KEYS[2], 'RECORD', 'EX', LIFE)
	return 1
end
if epoch ~= 'RECORD' or not same then return -1 end
local new = redis.call('SADD', KEYS[1], ARGV[1])
if new == 1 and redis.call('SCARD', KEYS[1]) == 1 then
	if tonumber(redis.call('TIME')[1]) >= tonumber(ARGV[2]) then
		redis.call('DEL', KEYS[1])
		return 0
	end
	redis.call('EXPIREAT', KEYS[1], ARGV[2])
	redis.call('EXPIRE', KEYS[2], LIFE)
end
return new`)
}

// partitionTags are hash tags whose slots lie evenly apart, so that a cluster
// of any size divides the partitions evenly.
var partitionTags = func() (tags [partitionCount]string) {
	const span = 16384 / partitionCount
	for n, missing := uint64(0), partitionCount; missing > 0; n++ {
		tag := strconv.FormatUint(n, 36)
		if at := &tags[slot(tag)/span]; *at == "" {
			*at = tag
			missing--
		}
	}
	return tags
}()

// slot is the slot of a hash tag: CRC-16/XMODEM modulo 16384.
func slot(tag string) (s uint16) {
	for i := range len(tag) {
		s ^= uint16(tag[i]) << 8
		for range 8 {
			if s&0x8000 != 0 {
				s = s<<1 ^ 0x1021
			} else {
				s <<= 1
			}
		}
	}
	return s % 16384
}

// place says where an id is remembered: fingerprint and key of the set. The bits
// that choose the key are not those of the fingerprint.
func (s *Store) place(id []byte, second int64) (p *partition, key string, fingerprint int64) {
	var room [256]byte
	sum := sha256.Sum256(append(room[:0], id...))
	p = &s.partitions[sum[8]%partitionCount]
	b := append(room[:0], p.tag...)
	b = strconv.AppendInt(b, second, 36)
	b = strconv.AppendUint(b, uint64(sum[9]%setsPerSecond), 10)
	return p, string(b), int64(binary.BigEndian.Uint64(sum[:]))
}

// Spend implements limpet.Spender. It gives an error for an id that may have
// been spent and forgotten, see the package's documentation, and for an expiry
// more than 24 hours ahead. Of values that have expired the clocks of both this
// machine and Redis decide: what has expired on one is not new.
func (s *Store) Spend(ctx context.Context, id []byte, expires time.Time) (fresh bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	now := time.Now()
	if !expires.After(now) {
		return false, nil
	}
	if expires.Sub(now) > maxHorizon {
		return false, errors.New("limpet: redisstore: an expiry more than 24 hours ahead")
	}
	// Rounded up to a second: the same expires always gives the same set.
	second := expires.Add(time.Second - 1).Unix()
	p, key, fingerprint := s.place(id, second)
	for range 4 {
		e := p.epoch.Load()
		if second <= e.floor {
			return false, fmt.Errorf("limpet: redisstore: Redis was restarted, flushed or replaced: what was spent before cannot be known for values that expire up to %v",
				time.Unix(e.floor, 0).UTC())
		}
		n, err := s.spend(ctx, p, e, key, fingerprint, second, second > now.Unix()+shortLife)
		reply, isReply := rueidis.IsRedisErr(err)
		switch {
		case isReply && reply.IsNoScript():
		case err != nil:
			return false, s.failed("spending", err)
		case n >= 0:
			return n == 1, nil
		}
		if err := s.enter(ctx, p, e, false); err != nil {
			return false, err
		}
	}
	return false, errors.New("limpet: redisstore: Redis is restarted or replaced over and over")
}

// spend is the one write, unless Redis says meanwhile that it holds other keys now:
// it does so before it answers, so the answer may be one after two failovers. Asked
// again it tells, and that the value is there then is our own doing.
func (s *Store) spend(ctx context.Context, p *partition, e *epoch, key string, fingerprint, second int64, long bool) (n int64, err error) {
	now, emptied := time.Now(), s.emptied.Load()
	last := p.asked.Load()
	ask := last == nil || last.epoch != e || last.emptied != emptied || now.Sub(last.at) >= askEvery
	n, err = s.evaluate(ctx, p, e, key, fingerprint, second, long, ask)
	if meanwhile := s.emptied.Load(); err == nil && n == 1 && !ask && meanwhile != emptied {
		var again int64
		if again, err = s.evaluate(ctx, p, e, key, fingerprint, second, long, true); again < 0 {
			n = again
		}
		ask, emptied = true, meanwhile
	}
	if ask && err == nil && n >= 0 {
		p.asked.Store(&asked{e, now, emptied})
	}
	return n, err
}

// evaluate runs the epoch's script. A long-lived value is no more durable than a
// record, and no less: it waits for a replica.
func (s *Store) evaluate(ctx context.Context, p *partition, e *epoch, key string, fingerprint, second int64, long, ask bool) (n int64, err error) {
	cmd := func(b rueidis.Builder) rueidis.Completed {
		c := b.Evalsha().Sha1(e.sha).Numkeys(2).Key(key, p.epochKey).
			Arg(strconv.FormatInt(fingerprint, 10), strconv.FormatInt(second, 10))
		if ask {
			c = c.Arg(argAsk)
		}
		return c.Build()
	}
	if !long {
		return s.client.Do(ctx, cmd(s.client.B())).AsInt64()
	}
	err = s.client.Dedicated(func(c rueidis.DedicatedClient) error {
		reply, err := s.acknowledged(ctx, c, cmd(c.B()))
		if err == nil {
			n, err = reply.AsInt64()
		}
		return err
	})
	return n, err
}

// enterAll enters the epochs of all partitions. If none has one, this is a
// Redis that has never been used, or has lost everything: no session is left
// that a value could be used in again, and nothing is refused.
func (s *Store) enterAll(ctx context.Context) error {
	missing, err := s.missingEpochs(ctx)
	if err == nil && missing > 0 && missing < partitionCount {
		// Perhaps another server is about to begin them.
		time.Sleep(300 * time.Millisecond)
		if missing, err = s.missingEpochs(ctx); missing == partitionCount {
			missing = 0 // flushed just now
		}
	}
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() {
			for n := i; n < partitionCount && errs[i] == nil; n += len(errs) {
				errs[i] = s.enter(ctx, &s.partitions[n], nil, missing == partitionCount)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err // the others say the same
		}
	}
	return nil
}

func (s *Store) missingEpochs(ctx context.Context) (missing int, err error) {
	gets := make(rueidis.Commands, partitionCount)
	for i := range gets {
		gets[i] = s.client.B().Get().Key(s.partitions[i].epochKey).Build()
	}
	for _, reply := range s.client.DoMulti(ctx, gets...) {
		switch err := reply.Error(); {
		case rueidis.IsRedisNil(err):
			missing++
		case err != nil:
			return 0, s.failed("looking for spent values", err)
		}
	}
	return missing, nil
}

// enter finds the epoch that p is in, unless somebody else has done so since
// old was found wanting, and begins one where there is none or where the one
// there was begun in another process of Redis. pristine says that nothing can
// have been spent before.
func (s *Store) enter(ctx context.Context, p *partition, old *epoch, pristine bool) error {
	looks := p.looks.Load()
	select {
	case p.entering <- struct{}{}:
		defer func() { <-p.entering }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.epoch.Load() != old {
		return nil
	}
	if p.looks.Load() != looks {
		return p.lookErr // those who wait for one that does not answer fail together
	}
	err := s.look(ctx, p, old, pristine)
	if ctx.Err() == nil {
		p.lookErr = err
		p.looks.Add(1)
	}
	return err
}

// look does the work of enter.
func (s *Store) look(ctx context.Context, p *partition, old *epoch, pristine bool) error {
	err := s.client.Dedicated(func(c rueidis.DedicatedClient) error {
		e, err := s.findEpoch(ctx, c, p, old, pristine)
		if err != nil {
			return err
		}
		// Nobody spends in an epoch that could be lost with the master: if the
		// master before this one took over again, it must know that it is not
		// in its old epoch any more. This is a write after that of the record.
		reply, err := s.acknowledged(ctx, c, c.B().Expire().Key(p.epochKey).Seconds(epochLife).Build())
		if err != nil {
			return err
		}
		if n, err := reply.AsInt64(); err != nil || n != 1 {
			return errors.New("the epoch is gone again")
		}
		p.epoch.Store(e)
		return nil
	})
	if err != nil {
		return s.failed("looking for spent values", err)
	}
	return nil
}

func (s *Store) findEpoch(ctx context.Context, c rueidis.DedicatedClient, p *partition, old *epoch, pristine bool) (*epoch, error) {
	for range 4 {
		record, err := c.Do(ctx, c.B().Get().Key(p.epochKey).Build()).ToString()
		if err != nil && !rueidis.IsRedisNil(err) {
			return nil, err
		}
		info, err := readInfo(ctx, c)
		if err != nil {
			return nil, err
		}
		var before *epoch
		if record != "" {
			if before, err = parseEpoch(record); err != nil {
				return nil, err
			}
			known, err := c.Do(ctx, c.B().ScriptExists().Sha1(before.sha).Build()).AsIntSlice()
			if err != nil {
				return nil, err
			}
			// A server that was started after Redis had lost everything may
			// have taken it for a new one. We know better.
			amiss := old != nil && before.record != old.record && before.floor == 0
			if len(known) == 1 && known[0] == 1 && !amiss && before.of(info) {
				return before, nil
			}
		}
		// Something is lost, or this process of Redis may lack something.
		if err := info.check(); err != nil {
			return nil, err
		}
		var floor int64
		if !pristine {
			floor = time.Now().Unix() + shortLife
		}
		if before != nil {
			floor = max(floor, before.floor)
		}
		e, err := newEpoch(floor, info["master_replid"])
		if err != nil {
			return nil, err
		}
		// Newer ones forget scripts that were only run when there are 500 of
		// them, anybody's. Those that were loaded they keep.
		replies := c.DoMulti(ctx, c.B().Eval().Script(e.script()).Numkeys(2).Key(p.tag, p.epochKey).Arg("", "", argBegin, record).Build(),
			c.B().ScriptLoad().Script(e.script()).Build())
		begun, err := replies[0].AsInt64()
		if err == nil {
			err = replies[1].Error()
		}
		if err != nil {
			return nil, err
		}
		if begun == 1 {
			return e, nil
		}
	}
	return nil, errors.New("the epoch changes over and over")
}
