//go:build unix

package tpmkey_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
	"github.com/limpet-auth/limpet/limpettest"
)

// toolbox is a TPM on which tpm2-tools work in a directory.
type toolbox struct {
	t         *testing.T
	addr, dir string
}

func newToolbox(t *testing.T) *toolbox {
	needTools(t)
	return &toolbox{t, limpettest.SoftTPMAt(t, "unix"), t.TempDir()}
}

// run runs one of the tools and unloads what it leaves in the TPM.
func (b *toolbox) run(name string, args ...string) {
	b.t.Helper()
	tools(b.t, b.dir, b.addr, name, args...)
	tools(b.t, b.dir, b.addr, "tpm2_flushcontext", "-t")
	tools(b.t, b.dir, b.addr, "tpm2_flushcontext", "-l")
}

func (b *toolbox) write(name string, data []byte) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *toolbox) read(name string) []byte {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil {
		b.t.Fatal(err)
	}
	return data
}

// primary makes the owner's primary key of template H-2.
func (b *toolbox) primary() {
	b.t.Helper()
	b.run("tpm2_createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc256:null:aes128cfb", "-c", "parent.ctx",
		"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt")
}

// encode makes NAME.pem of what the tools wrote to public and private.
func (b *toolbox) encode(name, parent string) []byte {
	b.t.Helper()
	b.run("tpm2_encodeobject", "-C", parent, "-u", "public", "-r", "private", "-o", name+".pem")
	return b.read(name + ".pem")
}

// hmac computes with tpm2_hmac what the key in public and private makes of a
// message.
func (b *toolbox) hmac(parent string, message []byte) []byte {
	b.t.Helper()
	b.write("message", message)
	b.run("tpm2_load", "-Q", "-C", parent, "-u", "public", "-r", "private", "-c", "key.ctx")
	b.run("tpm2_hmac", "-c", "key.ctx", "-g", "sha256", "-o", "mac", "message")
	return b.read("mac")
}

// We use HMAC keys that tpm2-tools made or imported and wrote, and compute what
// they compute.
func TestWeUseToolsHMACKeys(t *testing.T) {
	b := newToolbox(t)
	b.primary()
	b.write("secret", []byte("my_api_key")) // less than ImportHMAC takes
	// As tpm2_createprimary makes it by default: it counts towards the lockout.
	b.run("tpm2_createprimary", "-Q", "-C", "o", "-G", "rsa", "-c", "other.ctx")
	b.run("tpm2_evictcontrol", "-Q", "-C", "o", "-c", "other.ctx", "0x81000001")
	ks := tpmkey.New(tpmkey.Config{Addr: b.addr, Dir: t.TempDir()})
	defer ks.Close()
	message := []byte("message")
	for _, tt := range []struct {
		name, parent   string
		make           []string
		imported       bool
		kind           string
		noToolComputes bool // tpm2_hmac passes a null hash
	}{
		{"made", "parent.ctx", []string{"tpm2_create", "-G", "hmac"}, false, "keyedHash HMAC-SHA256", false},
		{"imported", "parent.ctx", []string{"tpm2_import", "-G", "hmac", "-i", "secret"}, true, "keyedHash HMAC-SHA256", false},
		{"without a scheme", "parent.ctx", []string{"tpm2_create", "-G", "keyedhash", "-a", "sensitivedataorigin|userwithauth|sign|decrypt"}, false, "keyedHash", true},
		{"under a persistent key", "0x81000001", []string{"tpm2_import", "-G", "hmac", "-i", "secret"}, true, "keyedHash HMAC-SHA256", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.t = t
			defer ks.Close() // swtpm serves one connection
			args := append(slices.Clone(tt.make[1:]), "-Q", "-C", tt.parent, "-u", "public", "-r", "private")
			b.run(tt.make[0], args...)
			parent, handle := tt.parent, uint32(0x81000001)
			if parent == "parent.ctx" {
				parent, handle = "0x40000001", 0x40000001
			}
			file := b.encode("key", parent)
			var want []byte
			if !tt.noToolComputes {
				want = b.hmac(tt.parent, message)
			}
			if tt.imported {
				if got := hmacOf("my_api_key", message); !bytes.Equal(got, want) {
					t.Fatalf("tpm2_hmac computes %x, want %x", want, got)
				}
			}

			key, err := ks.OpenHMAC(t.Context(), file)
			if err != nil {
				t.Fatal(err)
			}
			got, err := key.HMAC(t.Context(), message)
			if err != nil || want != nil && !bytes.Equal(got, want) {
				t.Errorf("HMAC is %x, error %v; want %x", got, err, want)
			}
			if info := key.Info(); info.ID != "" || info.Imported != tt.imported || info.Algorithm != hwkey.HMACSHA256 || info.Level != hwkey.Hardware {
				t.Errorf("info %+v", info)
			}
			d, err := tpmkey.DescribeKey(file)
			if err != nil || d.Kind != tt.kind || d.Parent != handle || d.Imported != tt.imported || d.Unusable != nil || d.Algorithm != hwkey.HMACSHA256 || d.Policy || d.NoLockout {
				t.Errorf("described as %+v, error %v", d, err)
			}

			// Written again it is the same key, also for the tools.
			again, err := ks.MarshalHMAC(key)
			if err != nil {
				t.Fatal(err)
			}
			key.Close()
			if key, err = ks.OpenHMAC(t.Context(), again); err != nil {
				t.Fatal(err)
			}
			if mac, err := key.HMAC(t.Context(), message); err != nil || !bytes.Equal(mac, got) {
				t.Errorf("written again, HMAC is %x, error %v; want %x", mac, err, got)
			}
			key.Close()
		})
	}
}

// A key that pins its parent is not used in a session that a file without a pin
// led to, where whatever showed itself as that file's parent would listen.
func TestSessionsKeepToPinnedParents(t *testing.T) {
	b := newToolbox(t)
	b.run("tpm2_createprimary", "-Q", "-C", "o", "-G", "rsa", "-c", "other.ctx")
	b.run("tpm2_evictcontrol", "-Q", "-C", "o", "-c", "other.ctx", "0x81000001")
	b.run("tpm2_create", "-Q", "-C", "0x81000001", "-G", "hmac", "-u", "public", "-r", "private")
	file := b.encode("key", "0x81000001")
	ks := tpmkey.New(tpmkey.Config{Addr: b.addr, Dir: t.TempDir()})
	defer ks.Close()
	foreign, err := ks.OpenHMAC(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if n := ks.Commands()["StartAuthSession"]; n != 1 {
		t.Errorf("%d sessions started, want 1", n)
	}
	ours := hmacKeys.create(t, ks)
	for range 3 {
		ours.mustWork(t)
		if _, err := foreign.HMAC(t.Context(), []byte("message")); err != nil {
			t.Error(err)
		}
	}
	if n := ks.Commands()["StartAuthSession"]; n != 2 {
		t.Errorf("%d sessions started, want one more for the key of ours", n)
	}
}

func hmacOf(secret string, message []byte) []byte {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(message)
	return mac.Sum(nil)
}

// Known answers of a public sample: K = "my_api_key", imported with
// tpm2-tools, with the keying material of a TLS connection as it is, and in
// counter mode between the counter 0 and the length in bits.
func TestKnownChannelHMACs(t *testing.T) {
	b := newToolbox(t)
	b.primary()
	b.write("secret", []byte("my_api_key"))
	b.run("tpm2_import", "-Q", "-C", "parent.ctx", "-G", "hmac", "-i", "secret", "-u", "public", "-r", "private")
	file := b.encode("key", "0x40000001")
	ks := tpmkey.New(tpmkey.Config{Addr: b.addr, Dir: t.TempDir()})
	defer ks.Close()
	key, err := ks.OpenHMAC(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	counted := make([]byte, 32)
	for i := range counted {
		counted[i] = byte(i)
	}
	for _, tt := range []struct {
		ekm            []byte
		counter, plain string
	}{
		{counted, "a98b90faac05e6f6e94fb26099ccdbee990891cb4d5629047178ae6bb8ec3cac", "9510ef14dbf6aa4e588cccaa3b8d0277690785d35238d3daa47b3e5aca31ee01"},
		{bytes.Repeat([]byte{0xaa}, 32), "6682306fb365ed0a1c005b58546261395f8a51d980b808ab9038c9ef9328ecf9", "b3eb2fac80d35a3f1367f1468ded9e1097164adc89f3538918e42826189e3143"},
	} {
		for message, want := range map[string]string{
			"\x00\x00\x00\x00" + string(tt.ekm) + "\x00\x00\x01\x00": tt.counter,
			string(tt.ekm): tt.plain,
		} {
			mac, err := key.HMAC(t.Context(), []byte(message))
			if err != nil || hex.EncodeToString(mac) != want {
				t.Errorf("HMAC of %x is %x, error %v; want %s", message, mac, err, want)
			}
		}
	}
	if _, err := ks.ImportHMAC(t.Context(), []byte("my_api_key"), ""); err == nil {
		t.Error("imported a secret of 80 bits")
	}
}

// tpm2-tools load the keys in our files and compute what we compute.
func TestToolsUseOurHMACKeys(t *testing.T) {
	b := newToolbox(t)
	b.primary()
	ks := tpmkey.New(tpmkey.Config{Addr: b.addr, Dir: b.dir})
	long := bytes.Repeat([]byte("secret"), 20) // longer than a block
	for name, create := range map[string]func() (hwkey.HMACKey, error){
		"created":       func() (hwkey.HMACKey, error) { return ks.CreateHMAC(t.Context(), "label") },
		"imported":      func() (hwkey.HMACKey, error) { return ks.ImportHMAC(t.Context(), hmacSecret, "label") },
		"imported long": func() (hwkey.HMACKey, error) { return ks.ImportHMAC(t.Context(), long, "label") },
	} {
		t.Run(name, func(t *testing.T) {
			b.t = t
			defer ks.Close() // swtpm serves one connection
			key, err := create()
			if err != nil {
				t.Fatal(err)
			}
			mac, err := key.HMAC(t.Context(), []byte("message"))
			if err != nil {
				t.Fatal(err)
			}
			file, err := ks.MarshalHMAC(key)
			if err != nil {
				t.Fatal(err)
			}
			ks.Close()
			if stored := b.read(key.Info().ID + ".tpm"); !bytes.Equal(stored, file) {
				t.Errorf("the file is %s, want %s", stored, file)
			}
			b.write("key.pem", file)
			b.run("tpm2_print", "-t", "TSSPRIVKEY_OBJ", "key.pem")
			parsed, err := keyfile.Decode(file)
			if err != nil {
				t.Fatal(err)
			}
			b.write("public", tpm2.Marshal(parsed.Pubkey))
			b.write("private", tpm2.Marshal(parsed.Privkey))
			if got := b.hmac("parent.ctx", []byte("message")); !bytes.Equal(got, mac) {
				t.Errorf("tpm2_hmac computes %x, want %x", got, mac)
			}
		})
	}
}

// What OpenHMAC refuses it refuses in words, and describes nevertheless.
func TestRefusedHMACFiles(t *testing.T) {
	b := newToolbox(t)
	b.primary()
	b.write("secret", []byte("my_api_key"))
	b.run("tpm2_startauthsession", "-S", "session.ctx")
	b.run("tpm2_createpolicy", "-Q", "--policy-pcr", "-l", "sha256:0", "-L", "policy")
	ks := tpmkey.New(tpmkey.Config{Addr: b.addr, Dir: t.TempDir()})
	defer ks.Close()
	const noDA = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"
	for _, tt := range []struct {
		name, kind string
		make       []string
		words      []string
	}{
		{"password", "keyedHash HMAC-SHA256", []string{"-G", "hmac", "-p", "password"}, []string{"has a password"}},
		{"password without lockout", "keyedHash HMAC-SHA256", []string{"-G", "hmac", "-p", "password", "-a", noDA}, []string{"has a password"}},
		{"policy", "keyedHash HMAC-SHA256", []string{"-G", "hmac", "-L", "policy"}, []string{"has a policy"}},
		{"SHA-1", "keyedHash HMAC-SHA1", []string{"-G", "hmac:sha1"}, []string{"SHA1", "not SHA-256"}},
		{"SHA-384", "keyedHash HMAC-SHA384", []string{"-G", "hmac:sha384"}, []string{"SHA384", "not SHA-256"}},
		{"sealed", "keyedHash", []string{"-i", "secret"}, []string{"does not sign"}},
		{"ECDSA", "ECC P-256 ECDSA", []string{"-G", "ecc:ecdsa", "-a", noDA}, []string{"signs", "not an HMAC key"}},
		{"P-384", "ECC P-384", []string{"-G", "ecc384"}, []string{"P-256"}},
		{"PSS", "RSA-2048 RSAPSS", []string{"-G", "rsa2048:rsapss:null", "-a", noDA}, []string{"signs", "not an HMAC key"}},
		{"AES", "symmetric cipher", []string{"-G", "aes128"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.t = t
			defer ks.Close() // swtpm serves one connection
			b.run("tpm2_create", append([]string{"-Q", "-C", "parent.ctx", "-u", "public", "-r", "private"}, tt.make...)...)
			file := b.encode("key", "0x40000001")
			_, err := ks.OpenHMAC(t.Context(), file)
			if !errors.Is(err, hwkey.ErrUnsupported) || errors.Is(err, hwkey.ErrLost) {
				t.Errorf("error %v, want ErrUnsupported", err)
			}
			wantWords(t, err, tt.words...)
			if d, err := tpmkey.DescribeKey(file); err != nil || d.Kind != tt.kind || d.Policy != (tt.name == "policy") || len(d.Name) < 44 || d.Format != "loadable" {
				t.Errorf("described as %+v, error %v", d, err)
			}
		})
	}
	for name, file := range map[string]string{"empty": "", "not PEM": "hello", "another PEM": "-----BEGIN X-----\nAAAA\n-----END X-----\n",
		"no key": "-----BEGIN TSS2 PRIVATE KEY-----\nAAAA\n-----END TSS2 PRIVATE KEY-----\n", "long": string(make([]byte, 1<<20))} {
		if _, err := ks.OpenHMAC(t.Context(), []byte(file)); err == nil || errors.Is(err, hwkey.ErrLost) {
			t.Errorf("%s: error %v", name, err)
		}
		if d, err := tpmkey.DescribeKey([]byte(file)); err == nil {
			t.Errorf("%s: described as %+v", name, d)
		}
	}
}

// A file of ours is opened outside its directory as itself, and on another TPM
// it is lost.
func TestOpenHMACElsewhere(t *testing.T) {
	b := newBus(t)
	ks := open(t, b.Dial)
	key, err := ks.ImportHMAC(t.Context(), hmacSecret, "peer")
	if err != nil {
		t.Fatal(err)
	}
	file, err := ks.MarshalHMAC(key)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(file, hmacSecret) {
		t.Error("the secret is in the file")
	}
	other := open(t, b.Dial)
	opened, err := other.OpenHMAC(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkHMAC(opened, hmacSecret, []byte("message")); err != nil {
		t.Error(err)
	}
	want := key.Info()
	want.ID = ""
	if info := opened.Info(); info != want {
		t.Errorf("info %+v, want %+v", info, want)
	}
	d, err := tpmkey.DescribeKey(file)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(d.Attributes, []string{"fixedTPM", "fixedParent", "userWithAuth", "noDA", "sign"}) || !d.EmptyAuth || !d.Fixed ||
		!d.Imported || !d.NoLockout || d.Label != "peer" || !d.Created.Equal(want.Created) || len(d.ParentName) != 68 || len(d.Name) != 68 {
		t.Errorf("described as %+v", d)
	}

	b.TPM = limpettest.SoftTPM(t)
	other.Close()
	_, err = other.OpenHMAC(t.Context(), file)
	if !errors.Is(err, hwkey.ErrLost) {
		t.Errorf("on another TPM: error %v, want ErrLost", err)
	}
	wantWords(t, err, "another one now")
	file = file[:bytes.Index(file, []byte("Limpet: "))]
	if _, err = other.OpenHMAC(t.Context(), file); !errors.Is(err, hwkey.ErrLost) {
		t.Errorf("on another TPM without the pin: error %v, want ErrLost", err)
	}

	soft, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := soft.CreateHMAC(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ks.MarshalHMAC(foreign); !errors.Is(err, hwkey.ErrUnsupported) {
		t.Errorf("a key of another keystore: error %v, want ErrUnsupported", err)
	}
}
