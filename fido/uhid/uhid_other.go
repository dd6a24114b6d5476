//go:build !linux

package uhid

import (
	"errors"

	"github.com/limpet-auth/limpet/fido/ctaphid"
)

// Open fails: only Linux has such devices.
func Open() (ctaphid.Transport, error) {
	return nil, errors.New("limpet: uhid: only Linux has /dev/uhid")
}
