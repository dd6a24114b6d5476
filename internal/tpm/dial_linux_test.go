package tpm

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDeviceErrorsSayWhatToDo(t *testing.T) {
	for err, want := range map[unix.Errno]string{
		unix.EACCES: "join the group",
		unix.EPERM:  "join the group",
		unix.EBUSY:  "use /dev/tpmrm0",
		unix.EIO:    "opening the TPM at /dev/tpm0",
	} {
		if got := deviceError("/dev/tpm0", err).Error(); !strings.Contains(got, want) {
			t.Errorf("%v: %q lacks %q", err, got, want)
		}
	}
}
