package prompt

import (
	"os"

	"golang.org/x/sys/unix"
)

// flush forgets what was typed on a terminal and has not been read. What is none has
// nothing to forget.
func flush(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.IoctlSetInt(int(fd), unix.TCFLSH, unix.TCIFLUSH) })
	}
}
