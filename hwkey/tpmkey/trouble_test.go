//go:build unix

package tpmkey_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/limpettest"
)

// Other programs fill the TPM while keys are in use.
func TestFullOfObjects(t *testing.T) {
	b := newBus(t)
	ks := open(t, b.Dial)
	first, second := create(t, ks, hwkey.ECDSAP256), create(t, ks, hwkey.ECDSAP256)
	foreign := []tpm2.TPMHandle{b.loadForeign(t)} // now the TPM is full
	for range 3 {
		sign(t, first)
		sign(t, second)
	}
	third := create(t, ks, hwkey.ECDSAP256) // needs room for a parent
	sign(t, third)
	sign(t, first)

	// Nothing but theirs: an error in words, after some patience.
	ks.Close()
	ks = open(t, b.Dial)
	first = create(t, ks, hwkey.ECDSAP256)
	first.Close()
	foreign = foreign[:0] // Dial reset the TPM
	for range 3 {
		foreign = append(foreign, b.loadForeign(t))
	}
	_, err := ks.Load(t.Context(), first.Info().ID)
	wantWords(t, err, "other programs", "/dev/tpmrm0")
	if errors.Is(err, hwkey.ErrLost) {
		t.Errorf("error %v says the key is lost", err)
	}

	// They end while we wait.
	time.AfterFunc(100*time.Millisecond, func() {
		for _, h := range foreign {
			b.flushForeign(t, h)
		}
	})
	if first, err = ks.Load(t.Context(), first.Info().ID); err != nil {
		t.Fatal(err)
	}
	sign(t, first)
}

func TestFullOfSessions(t *testing.T) {
	b := newBus(t)
	var foreign []tpm2.TPMHandle
	full := false
	ks := open(t, func(ctx context.Context) (io.ReadWriteCloser, error) {
		rw, err := b.Dial(ctx)
		if err == nil && !full {
			full = true
			for range 3 {
				foreign = append(foreign, b.startForeign(t))
			}
		}
		return rw, err
	})
	_, err := ks.Create(t.Context(), hwkey.CreateOptions{})
	wantWords(t, err, "sessions", "/dev/tpmrm0")
	if objects, _ := b.loaded(t); len(objects) != 0 {
		t.Errorf("%d objects stay loaded after the failure", len(objects))
	}
	time.AfterFunc(100*time.Millisecond, func() { b.flushForeign(t, foreign[0]) })
	sign(t, create(t, ks, hwkey.ECDSAP256))
}

// Both kinds of keys want a session each. One does for both where others hold
// the rest, and none of theirs is missing.
func TestOneSessionForTwoKinds(t *testing.T) {
	b := newBus(t)
	ks := open(t, b.Dial)
	ks.Describe(t.Context()) // connects
	for range 2 {
		b.startForeign(t)
	}
	key, hmacKey := signingKeys.create(t, ks), hmacKeys.create(t, ks)
	for range 3 {
		key.mustWork(t)
		hmacKey.mustWork(t)
	}
	if _, sessions := b.loaded(t); len(sessions) != 3 {
		t.Errorf("%d sessions loaded, want theirs and one of ours", len(sessions))
	}
	b.startForeignFails(t)
}

// What a program left in an swtpm when it was killed does not block the next.
func TestLeftovers(t *testing.T) {
	addr := limpettest.SoftTPMAt(t, "unix")
	conn, err := net.Dial("unix", strings.TrimPrefix(addr, "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	b := &bus{new(limpettest.TPMBus)}
	b.Tap(conn)
	for range 3 {
		b.loadForeign(t)
		b.startForeign(t)
	}
	conn.Close()
	ks := tpmkey.New(tpmkey.Config{Addr: addr, Dir: filepath.Join(t.TempDir(), "keys")})
	defer ks.Close()
	sign(t, create(t, ks, hwkey.ECDSAP256))
}

// Nothing stays loaded after Close, or after calls that failed or were
// cancelled in the middle.
func TestNothingStaysLoaded(t *testing.T) {
	b := newBus(t)
	ks := open(t, b.Dial)
	for range 3 {
		sign(t, create(t, ks, hwkey.ECDSAP256))
		hmacKeys.create(t, ks).mustWork(t)
	}
	for _, cc := range []tpm2.TPMCC{tpm2.TPMCCCreate, tpm2.TPMCCLoad, tpm2.TPMCCContextLoad, tpm2.TPMCCStartAuthSession} {
		ctx, cancel := context.WithCancel(t.Context())
		b.Command = func(got tpm2.TPMCC, _ []byte) []byte {
			if got == cc {
				cancel()
			}
			return nil
		}
		ks.Create(ctx, hwkey.CreateOptions{})
		ks.CreateHMAC(ctx, "")
		cancel()
		b.Command = func(got tpm2.TPMCC, _ []byte) []byte {
			if got == cc {
				return answer(tpm2.TPMRCFailure)
			}
			return nil
		}
		ks.Create(t.Context(), hwkey.CreateOptions{})
		ks.CreateHMAC(t.Context(), "")
		b.Command = nil
	}
	key := create(t, ks, hwkey.ECDSAP256)
	sign(t, key)
	key.Close()
	objects, sessions := b.loaded(t)
	if len(objects) > 2 || len(sessions) > 2 {
		t.Errorf("%d objects and %d sessions loaded, want at most 2 and 2", len(objects), len(sessions))
	}
	// The TPM's own view just before the connection is closed.
	flushed := make(chan bool, 1)
	b.Response = func(cc tpm2.TPMCC, r []byte) []byte {
		if cc == tpm2.TPMCCFlushContext && binary.BigEndian.Uint32(r[6:]) != 0 {
			t.Error("flushed what was not loaded")
		}
		select {
		case flushed <- true:
		default:
		}
		return r
	}
	ks.Close()
	if len(flushed) == 0 {
		t.Error("Close flushed nothing")
	}
}

func TestBusyTPM(t *testing.T) {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting} {
		t.Run(rc.Error(), func(t *testing.T) {
			t.Parallel()
			b := newBus(t)
			count := 0
			b.Command = func(tpm2.TPMCC, []byte) []byte {
				if count++; count%4 != 0 { // three refusals before each success
					return answer(rc)
				}
				return nil
			}
			ks := open(t, b.Dial)
			key := create(t, ks, hwkey.ECDSAP256)
			sign(t, key)

			b.Command = func(tpm2.TPMCC, []byte) []byte { return answer(rc) }
			start := time.Now()
			_, err := key.Sign(nil, make([]byte, 32), crypto.SHA256)
			wantWords(t, err, "try again")
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("gave up after %v", d)
			}
			b.Command = nil
			sign(t, key)
		})
	}
}

func TestOwnerPassword(t *testing.T) {
	b := newBus(t)
	ks := open(t, b.Dial)
	create(t, ks, hwkey.ECDSAP256)
	_, err := tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: []byte("owner")},
	}.Execute(b)
	if err != nil {
		t.Fatal(err)
	}
	ks.Close()
	_, err = ks.Create(t.Context(), hwkey.CreateOptions{})
	wantWords(t, err, "owner password", "tpm2_evictcontrol")
	_, findings, err := hwkey.Auto(t.Context(), tpmkey.Candidate(tpmkey.Config{Dir: t.TempDir(), Dial: b.Dial}))
	if !errors.Is(err, hwkey.ErrNoKeystore) || !strings.Contains(findings[0].Reason, "owner password") {
		t.Errorf("findings %v, error %v", findings, err)
	}

	// With the storage key that the advice makes, no password is asked.
	ks = open(t, b.Dial)
	ks.Describe(t.Context()) // connects
	persist(t, b, []byte("owner"), tpm2.ECCSRKTemplate)
	sign(t, create(t, ks, hwkey.ECDSAP256))
}

// persist makes a primary key and makes it persistent as the SRK.
func persist(t *testing.T, b *bus, auth []byte, template tpm2.TPMTPublic) {
	t.Helper()
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(auth)},
		InPublic:      tpm2.New2B(template),
	}.Execute(b)
	if err != nil {
		t.Fatal(err)
	}
	evict(t, b, auth, rsp.ObjectHandle, rsp.Name)
	b.flushForeign(t, rsp.ObjectHandle)
}

// evict makes an object persistent as the SRK, or ends that.
func evict(t *testing.T, b *bus, auth []byte, h tpm2.TPMHandle, name tpm2.TPM2BName) {
	t.Helper()
	_, err := tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(auth)},
		ObjectHandle:     &tpm2.NamedHandle{Handle: h, Name: name},
		PersistentHandle: 0x81000001,
	}.Execute(b)
	if err != nil {
		t.Fatal(err)
	}
}

func TestPersistentParent(t *testing.T) {
	h2 := tpm2.ECCSRKTemplate
	h2.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	signing := tpm2.ECCSRKTemplate
	signing.ObjectAttributes.NoDA = false
	tests := []struct {
		name     string
		template tpm2.TPMTPublic
		used     bool
		survives bool // the keys, when the persistent key is removed
	}{
		{"ECC H-2", h2, true, true},
		{"ECC of another template", tpm2.ECCSRKTemplate, true, false},
		{"RSA", tpm2.RSASRKTemplate, true, false},
		{"counts towards lockout", signing, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBus(t)
			ks := open(t, b.Dial)
			ks.Describe(t.Context())
			persist(t, b, nil, tt.template)
			ks.Close()
			before := ks.Commands()
			key := create(t, ks, hwkey.ECDSAP256)
			sign(t, key)
			if made := ks.Commands()["CreatePrimary"] > before["CreatePrimary"]; made == tt.used {
				t.Errorf("made a primary key: %v, used the SRK: %v", made, tt.used)
			}
			if d, err := ks.Describe(t.Context()); err != nil || d.SRK != tt.used {
				t.Errorf("described with SRK %v, error %v", d.SRK, err)
			}
			if !tt.used {
				return
			}
			rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81000001)}.Execute(b)
			if err != nil {
				t.Fatal(err)
			}
			evict(t, b, nil, 0x81000001, rsp.Name)
			key.Close()
			ks.Close()
			again, err := ks.Load(t.Context(), key.Info().ID)
			if tt.survives {
				if err != nil {
					t.Fatal(err)
				}
				sign(t, again)
			} else if !errors.Is(err, hwkey.ErrLost) {
				t.Errorf("error %v, want ErrLost", err)
			}
		})
	}
}

// A TPM in lockout goes on signing with our keys.
func TestLockout(t *testing.T) {
	b := newBus(t)
	ks := open(t, b.Dial)
	key := create(t, ks, hwkey.ECDSAP256)
	hmacKey := hmacKeys.create(t, ks)
	// Another program's key, which does count, and one wrong password too many.
	template := tpm2.ECCSRKTemplate
	template.ObjectAttributes.NoDA = false
	foreign, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")}}},
		InPublic: tpm2.New2B(template),
	}.Execute(b)
	if err != nil {
		t.Fatal(err)
	}
	// TPM2_DictionaryAttackParameters, Part 3, 25.3: one try, 1000 s, 1000 s.
	rsp, err := b.Send([]byte("\x80\x02\x00\x00\x00\x27\x00\x00\x01\x3a\x40\x00\x00\x0a" +
		"\x00\x00\x00\x09\x40\x00\x00\x09\x00\x00\x00\x00\x00" + "\x00\x00\x00\x01\x00\x00\x03\xe8\x00\x00\x03\xe8"))
	if err != nil || binary.BigEndian.Uint32(rsp[6:]) != 0 {
		t.Fatalf("answer %x, error %v", rsp, err)
	}
	for range 5 { // the first failures may be counted late
		_, err = tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: foreign.ObjectHandle, Name: foreign.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))},
			InPublic:     tpm2.New2B(tpm2.ECCSRKTemplate),
		}.Execute(b)
	}
	if !errors.Is(err, tpm2.TPMRCLockout) {
		t.Fatalf("error %v, want the lockout", err)
	}
	b.flushForeign(t, foreign.ObjectHandle)
	d, err := ks.Describe(t.Context())
	if err != nil || !d.Lockout.Active || d.Lockout.Failures < 1 || d.Lockout.Max != 1 || d.Lockout.Interval != 1000*time.Second {
		t.Errorf("lockout described as %+v, error %v", d.Lockout, err)
	}
	sign(t, key)
	sign(t, create(t, ks, hwkey.ECDSAP256))
	hmacKey.mustWork(t)
	hmacKeys.create(t, ks)

	b.Command = func(cc tpm2.TPMCC, _ []byte) []byte {
		if cc == tpm2.TPMCCSign || cc == tpm2.TPMCCHMAC {
			return answer(tpm2.TPMRCLockout)
		}
		return nil
	}
	_, err = key.Sign(nil, make([]byte, 32), crypto.SHA256)
	wantWords(t, err, "locked", "wait")
	wantWords(t, hmacKey.use(), "locked", "wait")
}

// Not every TPM has TPM2_HMAC or takes long messages. One that computes wrongly
// is found when a secret is imported and not by the peer.
func TestPoorHMAC(t *testing.T) {
	b := newBus(t)
	dir := t.TempDir()
	ks := openDir(t, dir, b.Dial)
	b.Command = func(cc tpm2.TPMCC, _ []byte) []byte {
		if cc == tpm2.TPMCCHMAC {
			return answer(tpm2.TPMRCCommandCode)
		}
		return nil
	}
	_, err := ks.CreateHMAC(t.Context(), "")
	wantWords(t, err, "does not have TPM2_HMAC")
	if !errors.Is(err, hwkey.ErrUnsupported) {
		t.Errorf("error %v, want ErrUnsupported", err)
	}
	b.Command = nil
	ks.Close()

	// TPM_PT_INPUT_BUFFER, Part 2, 6.13, after its tag and a value of 1024.
	b.Response = func(cc tpm2.TPMCC, r []byte) []byte {
		if cc == tpm2.TPMCCGetCapability {
			return bytes.Replace(r, []byte{0, 0, 1, 0x0d, 0, 0, 4, 0}, []byte{0, 0, 1, 0x0d, 0, 0, 2, 0}, 1)
		}
		return r
	}
	key, err := ks.CreateHMAC(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := key.HMAC(t.Context(), make([]byte, 512)); err != nil {
		t.Error(err)
	}
	_, err = key.HMAC(t.Context(), make([]byte, 513))
	wantWords(t, err, "513 bytes", "at most 512")
	b.Response = nil

	// What the TPM got is not what it is tried against.
	secret := bytes.Clone(hmacSecret)
	b.Command = func(cc tpm2.TPMCC, _ []byte) []byte {
		if cc == tpm2.TPMCCLoad {
			secret[0] ^= 1
		}
		return nil
	}
	_, err = ks.ImportHMAC(t.Context(), secret, "")
	wantWords(t, err, "trial HMAC", "wrong")
	b.Command = nil
	if infos, err := ks.List(t.Context()); err != nil || len(infos) != 1 {
		t.Errorf("List is %v, error %v; want the one good key", infos, err)
	}
}

// Keys of a cleared or another TPM are lost, and new ones can be made.
func TestLost(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, b *bus)
	}{
		{"cleared", func(t *testing.T, b *bus) {
			_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(b)
			if err != nil {
				t.Fatal(err)
			}
		}},
		{"replaced", func(t *testing.T, b *bus) { b.TPM = limpettest.SoftTPM(t) }},
	}
	for _, tt := range tests {
		for _, kind := range kinds {
			t.Run(tt.name+" "+kind.name, func(t *testing.T) {
				b := newBus(t)
				dir := t.TempDir()
				ks := openDir(t, dir, b.Dial)
				old := kind.create(t, ks)
				tt.change(t, b)
				ks.Close()
				_, err := kind.load(ks, old.id)
				if !errors.Is(err, hwkey.ErrLost) {
					t.Errorf("loading: error %v, want ErrLost", err)
				}
				wantWords(t, err, "cleared", "log in again")
				if err := old.use(); !errors.Is(err, hwkey.ErrLost) {
					t.Errorf("using: error %v, want ErrLost", err)
				}
				d, err := ks.Describe(t.Context())
				if err != nil || d.Keys != 1 || d.Foreign != 1 {
					t.Errorf("described as %+v, error %v", d, err)
				}
				kind.create(t, ks).mustWork(t)
			})
		}
	}
}

// Without the pin too: a file that other software made has none.
func TestLostWithoutPin(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			b := newBus(t)
			dir := t.TempDir()
			ks := openDir(t, dir, b.Dial)
			key := kind.create(t, ks)
			stripMetadata(t, filepath.Join(dir, key.id+".tpm"))
			ks.Close()
			if _, err := kind.load(ks, key.id); err != nil {
				t.Fatal(err)
			}
			b.TPM = limpettest.SoftTPM(t)
			ks.Close()
			if _, err := kind.load(ks, key.id); !errors.Is(err, hwkey.ErrLost) {
				t.Errorf("error %v, want ErrLost", err)
			}
		})
	}
}

// Resets, sleep and other programs take away what was loaded; keys go on.
func TestHandlesTaken(t *testing.T) {
	taken := map[string]func(t *testing.T, b *bus, key, session tpm2.TPMHandle){
		"power cut":   func(_ *testing.T, b *bus, _, _ tpm2.TPMHandle) { b.TPM.PowerOff() },
		"key flushed": func(t *testing.T, b *bus, key, _ tpm2.TPMHandle) { b.flushForeign(t, key) },
		"key exchanged": func(t *testing.T, b *bus, key, _ tpm2.TPMHandle) {
			b.flushForeign(t, key)
			for b.loadForeign(t) != key {
			}
		},
		"session flushed": func(t *testing.T, b *bus, _, session tpm2.TPMHandle) { b.flushForeign(t, session) },
		"session exchanged": func(t *testing.T, b *bus, _, session tpm2.TPMHandle) {
			b.flushForeign(t, session)
			for b.startForeign(t) != session {
			}
		},
	}
	for name, take := range taken {
		for _, kind := range kinds {
			t.Run(name+" "+kind.name, func(t *testing.T) {
				b := newBus(t)
				ks := open(t, b.Dial)
				key := kind.create(t, ks)
				key.mustWork(t)
				objects, sessions := b.loaded(t)
				if len(objects) != 1 || len(sessions) != 1 {
					t.Fatalf("%d objects and %d sessions loaded, want one each", len(objects), len(sessions))
				}
				take(t, b, objects[0], sessions[0])
				key.mustWork(t)
				kind.create(t, ks).mustWork(t)
			})
		}
	}
}

// A connection that breaks while the TPM stays up: what was loaded over it is
// flushed over the next one, or the TPM would be full soon.
func TestBrokenConnection(t *testing.T) {
	path := strings.TrimPrefix(limpettest.SoftTPMAt(t, "unix"), "unix:")
	var conn net.Conn
	ks := open(t, func(context.Context) (rw io.ReadWriteCloser, err error) {
		conn, err = net.Dial("unix", path)
		return conn, err
	})
	key, hmacKey := signingKeys.create(t, ks), hmacKeys.create(t, ks)
	for range 5 {
		conn.Close()
		key.mustWork(t)
		hmacKey.mustWork(t)
		conn.Close()
		hmacKey.mustWork(t)
		key.mustWork(t)
	}
}

// Answers that are not what a TPM would send are errors, in the end without a
// panic, and the keystore recovers.
func TestOddAnswers(t *testing.T) {
	odd := map[string]func([]byte) []byte{
		"nothing":     func([]byte) []byte { return nil },
		"short":       func(b []byte) []byte { return b[:7] },
		"cut":         func(b []byte) []byte { return b[:len(b)-1] },
		"longer":      func(b []byte) []byte { return append(b, 0) },
		"size 0":      func(b []byte) []byte { binary.BigEndian.PutUint32(b[2:], 0); return b },
		"size 4 GiB":  func(b []byte) []byte { binary.BigEndian.PutUint32(b[2:], 1<<32-1); return b },
		"only header": func(b []byte) []byte { return append([]byte{0x80, 0x02, 0, 0, 0, 10}, 0, 0, 0, 0) },
		"zeros":       func(b []byte) []byte { clear(b[10:]); return b },
	}
	for name, change := range odd {
		for _, kind := range kinds {
			t.Run(name+" "+kind.name, func(t *testing.T) {
				b := newBus(t)
				ks := open(t, b.Dial)
				key := kind.create(t, ks)
				b.Response = func(cc tpm2.TPMCC, r []byte) []byte {
					if cc == kind.command {
						return change(r)
					}
					return r
				}
				err := key.use()
				wantWords(t, err, kind.doing)
				if errors.Is(err, hwkey.ErrLost) {
					t.Errorf("error %v says the key is lost", err)
				}
				b.Response = nil
				key.mustWork(t)
			})
		}
	}
}

func TestShortReads(t *testing.T) {
	for _, piece := range []int{1, 9, 10, 11} {
		b := newBus(t)
		b.Piece = piece
		ks := open(t, b.Dial)
		sign(t, create(t, ks, hwkey.ECDSAP256))
	}
}

// A cancelled call ends soon, though the TPM does not answer.
func TestCancelInCommand(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go io.Copy(io.Discard, theirs)
	ks := open(t, func(context.Context) (io.ReadWriteCloser, error) { return ours, nil })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := ks.Create(ctx, hwkey.CreateOptions{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the deadline", err)
	}
}

// While one call waits for a slow TPM, others can be cancelled.
func TestCancelInQueue(t *testing.T) {
	b := newBus(t)
	ks := open(t, b.Dial)
	key := create(t, ks, hwkey.ECDSAP256)
	hold := make(chan bool)
	b.Command = func(tpm2.TPMCC, []byte) []byte { <-hold; return nil }
	var wg sync.WaitGroup
	wg.Go(func() { sign(t, key) })
	time.Sleep(20 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := ks.Load(ctx, key.Info().ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the deadline", err)
	}
	close(hold)
	wg.Wait()
}

func TestNoTPM(t *testing.T) {
	tests := []struct {
		addr  string
		words []string
	}{
		{"unix:/nonexistent/socket", []string{"no TPM listens", "swtpm"}},
		{"tcp:127.0.0.1:1", []string{"no TPM listens", "swtpm"}},
		{"tcp:nonsense", []string{"connecting to the TPM"}},
		{"usb:1", []string{"not the address of a TPM", "unix:PATH"}},
		{"/etc/passwd", []string{"not the address of a TPM"}},
		{"/dev/null", []string{"connection to the TPM failed"}},
		{"/dev/fd", []string{"not a TPM device"}},
		{"/dev/nonexistent", []string{"opening the TPM"}},
	}
	for _, tt := range tests {
		t.Run(tt.addr, func(t *testing.T) {
			ks := tpmkey.New(tpmkey.Config{Addr: tt.addr, Dir: t.TempDir()})
			_, err := ks.Create(t.Context(), hwkey.CreateOptions{})
			wantWords(t, err, tt.words...)
			if infos, err := ks.List(t.Context()); err != nil || len(infos) != 0 {
				t.Errorf("List is %v, error %v", infos, err)
			}
			if err := ks.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// swtpm serves one connection; the second waits without an answer.
func TestSecondConnection(t *testing.T) {
	t.Parallel()
	addr := limpettest.SoftTPMAt(t, "unix")
	holder := tpmkey.New(tpmkey.Config{Addr: addr, Dir: t.TempDir()})
	key := create(t, holder, hwkey.ECDSAP256)
	ks := tpmkey.New(tpmkey.Config{Addr: addr, Dir: t.TempDir()})
	_, err := ks.Create(t.Context(), hwkey.CreateOptions{})
	wantWords(t, err, "another program may hold it", "one connection at a time")
	sign(t, key)
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	sign(t, create(t, ks, hwkey.ECDSAP256))
	ks.Close()
	sign(t, key) // connects again
	holder.Close()
}
