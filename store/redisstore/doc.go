// Package redisstore keeps a guard's records and spent values in Redis, for any
// number of servers. Redis is 7.0 or newer, or Valkey: one process, one with
// replicas that sentinels watch over, or a cluster.
//
//	redis://[USER[:PASSWORD]@]HOST[:PORT][/DATABASE]
//	redis-sentinel://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]...]/NAME[/DATABASE]
//	redis-cluster://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]...]
//
// With rediss in place of redis, TLS is used. USER and PASSWORD are
// percent-encoded and go to Redis, not to the sentinels. NAME is what the
// sentinels call the master. Connections must lead to Redis itself: a proxy that
// mixes the commands of several clients will not do.
//
// # Records
//
// A record is the key limpet:KEY, with a lifetime. A KEY with a part in braces
// lies where Redis puts that part: all records of a session in one slot.
//
// Get answers from memory where it can (RESP3 client-side caching): Redis sends
// word of a change, so another server's revocation is seen in the time a message
// takes. Nothing read is used for longer than a second after it was asked for,
// so that this bound holds as well when the connection that would bring word is
// dead and does not say so. A store sees what it wrote itself at once.
//
// Put, Add and Delete, if the master has replicas, return when one of them has
// the change (WAIT), else with an error. So a revocation is not lost with the
// master, if its one replica is promoted, or of several, as Redis does it, the
// one that has received most. What is on disk when Redis says so is a matter of
// its appendfsync.
//
// # Spent values
//
// A value is a 64-bit fingerprint in a set. It is spent in one write, and that
// one touches one slot. There are 8 sets in each of 128 partitions for each
// second that values expire in, and each is gone in that second. The partitions
// lie evenly apart in the slots. Below 512 fingerprints Redis keeps a set as a
// sorted array, 9 bytes a value in all; one that holds a single value takes 120.
// That is up to 500,000 values a second; set-max-intset-entries of Redis
// raises it. An honest value meets its own fingerprint in its set by chance once
// in 10^16.
//
// Fingerprints are not spread by session, as records are: a request whose
// records are in memory sends Redis the one write and nothing else, so it
// touches one slot either way, while sets of one session's values would hold few
// each, and a set of one costs as much as twelve values in a full one.
//
// # Failover
//
// Redis acknowledges a write before its replicas have it, and before it is on
// disk. After a failover or a restart, values that were spent last may be
// missing, and a replay of one would be new. What must hold is: a value is
// reported as new only if Redis has lost nothing since the value could first
// have been spent.
//
// Each partition is in an epoch. It has a record, which lies in Redis beside the
// sets, and a script, the text of which contains that record. The script adds a
// fingerprint to its set only if the record is its own. Redis keeps scripts in
// the memory of the process that has run them, and since 7.0 neither copies them
// to replicas nor saves them. So one EVALSHA asks two things, in the same
// instant that it spends the value:
//
//   - Is this still the same process? A promoted replica, a restarted master
//     and a node that a slot was moved to do not know the script.
//   - Is it still the same data? After a flush the record is missing, and when
//     the process has been a replica of another in between, it is another one.
//
// If not, the value is not spent. The next server to come begins a new epoch:
// it compares and swaps the record, which holds what of the past is uncertain, a
// second 120 seconds ahead. In the new epoch values that expire up to then are
// refused with an error, which a guard turns into 503. A value that says its
// time expires 61 seconds after that, so nobody who could have been spent
// before is admitted, with a margin of 29 seconds, and of new values those
// that are made a minute later are. Until then the values of one master, one
// in three of a cluster with three, are refused; those of the others are not.
//
// Before a server uses an epoch it has waited for a replica, if there is one, to
// have the epoch's record. So a master that was replaced, without being stopped,
// and takes over again, has that record, and its own old script fails. If nobody
// has spent in between, there is no such record; therefore the script also
// contains the replication ID of its Redis, which changes when a replica becomes
// a master, and a server has it compare that as well (INFO, which the user that
// servers log in as must be allowed): once a second, and when Redis has sent word
// that it holds other keys now. It sends that when it is filled anew as a replica,
// on each connection and before any answer that follows, or the connection has
// ended, which counts as the same.
//
// The margin is also for the seconds in which an old master, cut off from the
// others, does not know yet that it was replaced. In a cluster these are about
// cluster-node-timeout, 15 s by default. With sentinels they have no end, unless
// min-replicas-to-write is 1; Open warns if it is not.
//
// A value that expires more than 120 seconds ahead (on the hw-sign wire those
// that say no time, until the lease of their key ends) is as durable as a
// record: it waits for a replica, and survives a failover. If Redis is restarted
// and its disk lacks the last second, such a value can be used again in its
// lease. Use appendfsync always where that matters.
//
// A Redis without any epoch is taken for a new one when a store is opened, and
// nothing is refused. If all was lost at a time when no server ran, bindings and
// ephemeral keys are lost with it, and there is no session left to use a spent
// value in.
package redisstore
