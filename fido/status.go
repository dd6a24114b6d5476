package fido

import "fmt"

// status is a CTAP2 status code (CTAP 2.1, section 8.2).
type status byte

const (
	ok                         status = 0x00
	statusInvalidCommand       status = 0x01
	statusInvalidParameter     status = 0x02
	statusInvalidLength        status = 0x03
	statusInvalidSequence      status = 0x04
	statusUnexpectedType       status = 0x11
	statusInvalidCBOR          status = 0x12
	statusMissingParameter     status = 0x14
	statusLimitExceeded        status = 0x15
	statusLargeBlobFull        status = 0x18
	statusCredentialExcluded   status = 0x19
	statusUnsupportedAlgorithm status = 0x26
	statusOperationDenied      status = 0x27
	statusKeyStoreFull         status = 0x28
	statusUnsupportedOption    status = 0x2b
	statusInvalidOption        status = 0x2c
	statusCancelled            status = 0x2d
	statusNoCredentials        status = 0x2e
	statusUserTimeout          status = 0x2f
	statusNotAllowed           status = 0x30
	statusPINInvalid           status = 0x31
	statusPINBlocked           status = 0x32
	statusPINAuthInvalid       status = 0x33
	statusPINAuthBlocked       status = 0x34
	statusPINNotSet            status = 0x35
	statusPINRequired          status = 0x36 // PUAT_REQUIRED
	statusPINPolicy            status = 0x37
	statusUVBlocked            status = 0x3c
	statusIntegrity            status = 0x3d
	statusInvalidSubcommand    status = 0x3e
	statusUVInvalid            status = 0x3f
	statusUnauthorized         status = 0x40
	statusOther                status = 0x7f
)

func (s status) Error() string { return fmt.Sprintf("limpet: fido: status %#02x", byte(s)) }
