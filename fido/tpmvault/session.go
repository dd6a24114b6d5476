package tpmvault

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/limpet-auth/limpet/internal/tpm"
)

const nonceSize = 16 // bytes

// session is an HMAC or policy session, salted with the storage key: only the TPM
// that has it can take part. Sessions of go-tpm have one authValue and one
// direction of encryption for life, so each PIN and each kind of command would
// cost a session of its own; one of these serves all.
type session struct {
	handle      tpm2.TPMHandle
	key         []byte
	nonceCaller []byte
	nonceTPM    []byte
}

// startSession starts a session of a kind, tpm2.TPMSEHMAC or tpm2.TPMSEPolicy.
func startSession(t transport.TPM, kind tpm2.TPMSE, srk *storageKey) (*session, error) {
	encapsulation, err := tpm2.ImportEncapsulationKey(srk.public)
	if err != nil {
		return nil, err
	}
	salt, encrypted, err := tpm2.CreateEncryptedSalt(rand.Reader, encapsulation)
	if err != nil {
		return nil, err
	}
	defer clear(salt)
	s := &session{nonceCaller: make([]byte, nonceSize)}
	rand.Read(s.nonceCaller)
	rsp, err := tpm2.StartAuthSession{
		TPMKey:        srk.handle,
		Bind:          tpm2.TPMRHNull,
		NonceCaller:   tpm2.TPM2BNonce{Buffer: s.nonceCaller},
		EncryptedSalt: tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
		SessionType:   kind,
		Symmetric: tpm2.TPMTSymDef{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		AuthHash: tpm2.TPMAlgSHA256,
	}.Execute(t)
	if err != nil {
		return nil, tpm.Words("starting a session", err)
	}
	s.handle = tpm2.TPMHandle(rsp.SessionHandle.HandleValue())
	s.nonceTPM = rsp.NonceTPM.Buffer
	s.key = tpm2.KDFa(crypto.SHA256, salt, "ATH", s.nonceTPM, s.nonceCaller, 8*sha256.Size)
	return s, nil
}

// use is a session for one command: a tpm2.Session.
type use struct {
	*session
	auth    []byte // authValue of what it authorizes, if that has one and the session proves it
	after   []byte // authValue that the command gives it, if it does
	in, out bool   // encrypt the first parameter of the command, of the answer
}

func (s *session) with(auth []byte) use { return use{session: s, auth: auth} }

// secret is with, for a command whose first parameter is a secret.
func (s *session) secret(auth []byte) use { return use{session: s, auth: auth, in: true} }

func (use) Init(transport.TPM) error           { return nil }
func (use) CleanupFailure(transport.TPM) error { return nil }
func (u use) NonceTPM() tpm2.TPM2BNonce        { return tpm2.TPM2BNonce{Buffer: u.nonceTPM} }
func (u use) Handle() tpm2.TPMHandle           { return u.handle }
func (u use) IsDecryption() bool               { return u.in } // the words are the TPM's
func (u use) IsEncryption() bool               { return u.out }

func (u use) NewNonceCaller() error {
	u.session.nonceCaller = make([]byte, nonceSize)
	rand.Read(u.session.nonceCaller)
	return nil
}

// Authorize computes the HMAC of a command (TPM 2.0 Library Part 1, 19.6).
func (u use) Authorize(cc tpm2.TPMCC, parms, addNonces []byte, names []tpm2.TPM2BName, _ int) (*tpm2.TPMSAuthCommand, error) {
	h := sha256.New()
	binary.Write(h, binary.BigEndian, cc)
	for _, name := range names {
		h.Write(name.Buffer)
	}
	h.Write(parms)
	attrs := tpm2.TPMASession{ContinueSession: true, Decrypt: u.in, Encrypt: u.out}
	return &tpm2.TPMSAuthCommand{
		Handle:        u.handle,
		Nonce:         tpm2.TPM2BNonce{Buffer: u.nonceCaller},
		Attributes:    attrs,
		Authorization: tpm2.TPM2BData{Buffer: u.mac(u.auth, h.Sum(nil), u.nonceCaller, u.nonceTPM, addNonces, attrs)},
	}, nil
}

// Validate checks the HMAC of an answer.
func (u use) Validate(rc tpm2.TPMRC, cc tpm2.TPMCC, parms []byte, _ []tpm2.TPM2BName, _ int, auth *tpm2.TPMSAuthResponse) error {
	u.session.nonceTPM = auth.Nonce.Buffer
	h := sha256.New()
	binary.Write(h, binary.BigEndian, rc)
	binary.Write(h, binary.BigEndian, cc)
	h.Write(parms)
	value := u.auth
	if u.after != nil {
		value = u.after
	}
	if !auth.Attributes.ContinueSession ||
		!hmac.Equal(auth.Authorization.Buffer, u.mac(value, h.Sum(nil), u.nonceTPM, u.nonceCaller, nil, auth.Attributes)) {
		return errors.New("incorrect authorization HMAC")
	}
	return nil
}

func (u use) mac(auth, digest, newer, older, addNonces []byte, attrs tpm2.TPMASession) []byte {
	h := hmac.New(sha256.New, append(bytes.Clone(u.key), auth...))
	h.Write(digest)
	h.Write(newer)
	h.Write(older)
	h.Write(addNonces)
	var bits byte = 1 << 0 // continueSession (TPM 2.0 Library Part 2, 8.4)
	if attrs.Decrypt {
		bits |= 1 << 5
	}
	if attrs.Encrypt {
		bits |= 1 << 6
	}
	h.Write([]byte{bits})
	return h.Sum(nil)
}

// Encrypt encrypts the first parameter of a command in place, Decrypt decrypts
// that of an answer (TPM 2.0 Library Part 1, 21).
func (u use) Encrypt(parameter []byte) error {
	if !u.in {
		return nil
	}
	block, iv, err := u.cfb(u.nonceCaller, u.nonceTPM)
	if err != nil {
		return err
	}
	cipher.NewCFBEncrypter(block, iv).XORKeyStream(parameter, parameter) //lint:ignore SA1019 what the TPM has; the HMAC is over it
	return nil
}

func (u use) Decrypt(parameter []byte) error {
	if !u.out {
		return nil
	}
	block, iv, err := u.cfb(u.nonceTPM, u.nonceCaller)
	if err != nil {
		return err
	}
	cipher.NewCFBDecrypter(block, iv).XORKeyStream(parameter, parameter) //lint:ignore SA1019 as above
	return nil
}

func (u use) cfb(newer, older []byte) (cipher.Block, []byte, error) {
	const key = 16
	b := tpm2.KDFa(crypto.SHA256, append(bytes.Clone(u.key), u.auth...), "CFB", newer, older, 8*(key+aes.BlockSize))
	block, err := aes.NewCipher(b[:key])
	return block, b[key:], err
}

// nvChangeAuth is TPM2_NV_ChangeAuth (TPM 2.0 Library Part 3, 31.15), which
// go-tpm does not have.
func nvChangeAuth(t transport.TPM, index tpm2.NamedHandle, u use) error {
	const cc = tpm2.TPMCCNVChangeAuth
	u.NewNonceCaller()
	parms := binary.BigEndian.AppendUint16(nil, uint16(len(u.after)))
	parms = append(parms, u.after...)
	if err := u.Encrypt(parms[2:]); err != nil {
		return err
	}
	auth, err := u.Authorize(cc, parms, nil, []tpm2.TPM2BName{index.Name}, 0)
	if err != nil {
		return err
	}
	area := tpm2.Marshal(auth)
	command := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTSessions))
	command = binary.BigEndian.AppendUint32(command, uint32(10+4+4+len(area)+len(parms)))
	command = binary.BigEndian.AppendUint32(command, uint32(cc))
	command = binary.BigEndian.AppendUint32(command, uint32(index.Handle))
	command = binary.BigEndian.AppendUint32(command, uint32(len(area)))
	command = append(append(command, area...), parms...)
	response, err := t.Send(command)
	if err != nil {
		return err
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])); rc != tpm2.TPMRCSuccess {
		return rc
	}
	// A header, the size of no parameters, and the session's part.
	if len(response) < 14 || binary.BigEndian.Uint32(response[10:]) != 0 {
		return errors.New("the answer has another form")
	}
	answer, err := tpm2.Unmarshal[tpm2.TPMSAuthResponse](response[14:])
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return u.Validate(tpm2.TPMRCSuccess, cc, nil, nil, 0, answer)
}
