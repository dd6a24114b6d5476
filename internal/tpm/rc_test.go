package tpm

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

func TestWords(t *testing.T) {
	rcs := []struct {
		rc    tpm2.TPMRC
		words string // "" for none of our own
	}{
		{tpm2.TPMRCLockout, "wait"},
		{tpm2.TPMRCBadAuth | 0x800 | 0x100, "password"}, // session 1
		{tpm2.TPMRCAuthFail | 0x800 | 0x200, "password"},
		{tpm2.TPMRCRetry, "try again"},
		{tpm2.TPMRCYielded, "try again"},
		{tpm2.TPMRCTesting, "testing itself"},
		{tpm2.TPMRCObjectMemory, "/dev/tpmrm0"},
		{tpm2.TPMRCObjectHandles, "/dev/tpmrm0"},
		{tpm2.TPMRCMemory, "/dev/tpmrm0"},
		{tpm2.TPMRCSessionMemory, "sessions"},
		{tpm2.TPMRCSessionHandles, "sessions"},
		{tpm2.TPMRCContextGap, "sessions"},
		{tpm2.TPMRCFailure, "restart"},
		{tpm2.TPMRCInitialize, "started up"},
		{tpm2.TPMRCReboot, "started up"},
		{tpm2.TPMRCUpgrade, "firmware"},
		{tpm2.TPMRCNVRate, "try again"},
		{tpm2.TPMRCNVUnavailable, "try again"},
		{tpm2.TPMRCHierarchy | 0x100, "switched off"},
		{tpm2.TPMRCDisabled, "switched off"},
		{0x1e, "TPM 1.2"},
		{tpm2.TPMRCScheme | 0x40 | 0x100, ""},
	}
	for _, tt := range rcs {
		err := Words("signing", tt.rc)
		if !errors.Is(err, tt.rc) || !strings.Contains(err.Error(), tt.words) || !strings.HasPrefix(err.Error(), "signing: ") {
			t.Errorf("%#x: %v", uint32(tt.rc), err)
		}
		if tt.words == "" && err.Error() != "signing: "+tt.rc.Error() {
			t.Errorf("%#x: %v", uint32(tt.rc), err)
		}
		if strings.Contains(err.Error(), "does not verify") {
			t.Errorf("%#x: a code of the TPM is told as a wrong answer: %v", uint32(tt.rc), err)
		}
	}
	if err := Words("signing", &LinkError{io.ErrUnexpectedEOF}); !strings.Contains(err.Error(), "connection") || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if err := Words("signing", errors.New("incorrect authorization HMAC")); !strings.Contains(err.Error(), "altered") {
		t.Error(err)
	}
}
