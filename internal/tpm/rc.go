package tpm

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Words says in words what a failure means and what to do about it. doing is
// what was tried. Nothing failed if err is nil.
func Words(doing string, err error) error {
	var (
		rc   tpm2.TPMRC
		link *LinkError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &link):
		return fmt.Errorf("%s: the connection to the TPM failed: %w", doing, err)
	case errors.As(err, &rc):
		if advice := advice(rc); advice != "" {
			return fmt.Errorf("%s: %s: %w", doing, advice, err)
		}
	case !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
		// Neither the connection failed nor did the TPM answer with a code.
		return fmt.Errorf("%s: the TPM's answer does not verify: it was altered on the way or the TPM is faulty: %w", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// advice maps the response codes that a person can do something about (TPM 2.0
// Library Part 2, 6.6). TPMRC.Is ignores which handle, parameter or session a
// code names.
func advice(rc tpm2.TPMRC) string {
	switch {
	case rc.Is(tpm2.TPMRCLockout):
		return "the TPM is locked after too many wrong passwords: wait until it opens again (tpm2_getcap properties-variable shows how long), or reset it with tpm2_dictionarylockout"
	case rc.Is(tpm2.TPMRCBadAuth), rc.Is(tpm2.TPMRCAuthFail):
		return "the TPM asks for a password that this program does not have"
	case rc.Is(tpm2.TPMRCRetry), rc.Is(tpm2.TPMRCYielded):
		return "the TPM is busy and stayed so: try again"
	case rc.Is(tpm2.TPMRCTesting):
		return "the TPM is still testing itself: try again"
	case OutOfObjects(rc):
		return "other programs fill the TPM's memory for keys: use /dev/tpmrm0, which shares the TPM, or end them"
	case OutOfSessions(rc):
		return "other programs hold all of the TPM's sessions: use /dev/tpmrm0, which shares the TPM, or end them"
	case rc == tpm2.TPMRCFailure:
		return "the TPM is in failure mode: restart the machine; if that does not help, the chip is broken"
	case rc == tpm2.TPMRCInitialize, rc == tpm2.TPMRCReboot:
		return "the TPM was not started up: restart the machine"
	case rc == tpm2.TPMRCUpgrade:
		return "the TPM is amid a firmware upgrade: finish it and restart the machine"
	case rc == tpm2.TPMRCNVUnavailable, rc == tpm2.TPMRCNVRate:
		return "the TPM cannot write its memory now: try again"
	case rc.Is(tpm2.TPMRCHierarchy), rc == tpm2.TPMRCDisabled:
		return "the TPM's owner hierarchy is switched off in the firmware's settings"
	case rc == badTag:
		return "this is a TPM 1.2, and only TPM 2.0 will do"
	}
	return ""
}

// badTag is TPM_RC_BAD_TAG, the TPM 1.2 code that a TPM 1.2 answers to a
// command for TPM 2.0.
const badTag tpm2.TPMRC = 0x01e

// OutOfObjects tells whether the TPM has no room for another object.
func OutOfObjects(err error) bool {
	return errors.Is(err, tpm2.TPMRCObjectMemory) || errors.Is(err, tpm2.TPMRCObjectHandles) || errors.Is(err, tpm2.TPMRCMemory)
}

// OutOfSessions tells whether the TPM has no room for another session.
func OutOfSessions(err error) bool {
	return errors.Is(err, tpm2.TPMRCSessionMemory) || errors.Is(err, tpm2.TPMRCSessionHandles) || errors.Is(err, tpm2.TPMRCContextGap)
}

// Stale tells whether a handle that was good is not any more: the TPM was
// reset, slept, or another program flushed what is ours. A session or key that
// took the place of ours fails the authorization. Not TPM_RC_AUTH_FAIL: that one
// the TPM counts towards its lockout.
func Stale(err error) bool {
	var rc tpm2.TPMRC
	if !errors.As(err, &rc) {
		return false
	}
	if rc >= tpm2.TPMRCReferenceH0 && rc <= tpm2.TPMRCReferenceS6 {
		return true
	}
	var format1 tpm2.TPMFmt1Error
	if !errors.As(err, &format1) || rc.Is(tpm2.TPMRCAuthFail) {
		return false
	}
	session, _ := format1.Session()
	return session || rc.Is(tpm2.TPMRCHandle)
}

// Rejected tells whether the TPM answered TPM2_Load that the key itself is not
// good: TPM_RC_INTEGRITY for a key of another seed, others for a damaged file.
func Rejected(err error) bool {
	var format1 tpm2.TPMFmt1Error
	if !errors.As(err, &format1) {
		return false
	}
	parameter, _ := format1.Parameter()
	return parameter
}
