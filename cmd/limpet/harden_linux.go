package main

import "golang.org/x/sys/unix"

// harden keeps keys out of core files and away from debuggers of the same user.
// Where that is not allowed the program goes on without.
func harden() {
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
