// Package boltstore keeps a guard's records in one file, for one process.
//
// # Records
//
// The file is a bbolt database, made with mode 0600. What Put, Add and Delete
// acknowledge is on the medium; calls that wait at the same time share one
// fsync. Expired records are absent at once and removed from the file a few
// with each commit. The file does not shrink; its room is used again. A disk
// that fills up gives errors and changes nothing.
//
// Each record carries a checksum. A file that does not look right is refused
// when it is opened, or the call that finds the damage fails. Nothing is
// repaired by guessing: a binding lost in silence would let a stolen session
// pass as one that was never bound.
//
// # Spent values
//
// A spent value stays spent after the process is killed, and after power loss,
// without an fsync for each. There are two kinds.
//
// A short-lived value (up to 120 seconds ahead) goes to a table in memory and,
// before it is reported as new, with one write to a journal: PATH.spent0 and
// PATH.spent1, in turns, 16 bytes a value, each begun anew when all it holds
// has expired. The kernel has the write from then on, whatever becomes of the
// process, so a process started since reads back exactly what was spent. Power
// loss takes the journal's end with it. For that the database holds a
// watermark: no value that expires after it is admitted before it has been
// raised, durably, by some seconds more than needed. If the journal is from
// another boot of the machine, or is missing or damaged, values that expire at
// or before the watermark cannot be judged: Spend gives an error for them, for
// about two minutes. A store closed in order seals its journal, and is spared
// this. On systems other than Linux, where the boot cannot be told, each start
// after a crash counts as another boot.
//
// A longer-lived value (a delegation spent once in its lease, say) would raise
// the watermark so far that a power loss closed the door for a lease. There are
// few of those. Each goes to the database, and is durable before it is reported
// as new.
//
// Going back to an old copy of these files brings back the sessions revoked
// since and forgets what was spent since.
package boltstore
