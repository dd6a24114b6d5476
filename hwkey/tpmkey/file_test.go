package tpmkey

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/internal/tpm"
)

// The files in testdata: limpet.pem is ours; tpm2-tools-5.4.pem was written by
// tpm2_encodeobject, with emptyAuth FALSE for a key without a password;
// boolean-01.pem writes TRUE as 01, which is BER but not DER. Those named hmac
// hold "my_api_key", imported with tpm2_import.
func TestParseRecord(t *testing.T) {
	tests := []struct {
		file  string
		alg   hwkey.Algorithm
		label string
		pin   bool
		doubt bool
	}{
		{"limpet.pem", hwkey.ECDSAP256, "https://api.example.com", true, false},
		{"tpm2-tools-5.4.pem", hwkey.ECDSAP256, "", false, true},
		{"boolean-01.pem", hwkey.ECDSAP256, "", false, false},
		{"hmac-tpm2-tools-5.4.pem", hwkey.HMACSHA256, "", false, true},
		{"hmac-boolean-01.pem", hwkey.HMACSHA256, "", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join("testdata", tt.file))
			if err != nil {
				t.Fatal(err)
			}
			r, err := parseRecord(data)
			if err != nil {
				t.Fatal(err)
			}
			if r.algorithm != tt.alg || r.meta.Label != tt.label || r.parent != tpm2.TPMRHOwner || (r.meta.Parent != "") != tt.pin ||
				r.doubtful != tt.doubt || r.imported != (tt.alg == hwkey.HMACSHA256) {
				t.Errorf("read %+v", r)
			}
		})
	}
}

func TestMarshalRecord(t *testing.T) {
	data, err := os.ReadFile("testdata/tpm2-tools-5.4.pem")
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseRecord(data)
	if err != nil {
		t.Fatal(err)
	}
	r.parent = tpm.SRKHandle
	r.meta = metadata{Label: "a \"label\" -----BEGIN X----- Limpet: {", Created: time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC),
		Parent: "000b" + strings.Repeat("5a", 32)}
	data, err = r.marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := parseRecord(data)
	if err != nil {
		t.Fatal(err)
	}
	if again.meta != r.meta || again.parent != r.parent || !bytes.Equal(again.private.Buffer, r.private.Buffer) || !bytes.Equal(again.name.Buffer, r.name.Buffer) {
		t.Errorf("%+v came back as %+v", r, again)
	}
}

// A file that another TPM is to import, or that holds data, is described and
// not used; so is a key under a parent that is neither the owner's nor
// persistent.
func TestOtherFormats(t *testing.T) {
	data, err := os.ReadFile("testdata/hmac-tpm2-tools-5.4.pem")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, format, words string
		change              func(*keyfile.TPMKey)
	}{
		{"importable", "importable", "no loadable key", func(k *keyfile.TPMKey) { k.Keytype = keyfile.OIDImportableKey }},
		{"sealed", "sealed", "no loadable key", func(k *keyfile.TPMKey) { k.Keytype = keyfile.OIDSealedKey }},
		{"policy", "loadable", "policy", func(k *keyfile.TPMKey) { k.Policy = []*keyfile.TPMPolicy{{CommandCode: 1}} }},
		{"parent", "loadable", "parent", func(k *keyfile.TPMKey) { k.Parent = tpm2.TPMRHEndorsement }},
		{"scheme", "loadable", "XOR and not HMAC", func(k *keyfile.TPMKey) {
			public, err := k.Pubkey.Contents()
			if err != nil {
				t.Fatal(err)
			}
			public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{
				Scheme: tpm2.TPMAlgXOR, Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgXOR, &tpm2.TPMSSchemeXOR{HashAlg: tpm2.TPMAlgSHA256, KDF: tpm2.TPMAlgKDF1SP800108})}})
			k.Pubkey = tpm2.New2B(*public)
		}},
		{"no change", "loadable", "", func(*keyfile.TPMKey) {}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			key, err := keyfile.Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			tt.change(key)
			d, err := DescribeKey(key.Bytes())
			if err != nil || d.Format != tt.format || d.Parent != uint32(key.Parent) || !strings.HasPrefix(d.Kind, "keyedHash ") {
				t.Errorf("described as %+v, error %v", d, err)
			}
			_, err = parseRecord(key.Bytes())
			if tt.words == "" {
				if err != nil || d.Unusable != nil {
					t.Errorf("error %v, described as %+v", err, d)
				}
				return
			}
			if !errors.Is(err, hwkey.ErrUnsupported) || !strings.Contains(err.Error(), tt.words) || d.Unusable == nil || d.Algorithm != "" {
				t.Errorf("error %v, want ErrUnsupported that says %q; described as %+v", err, tt.words, d)
			}
		})
	}
}

func FuzzParseRecord(f *testing.F) {
	files, err := filepath.Glob("testdata/*.pem")
	if err != nil || len(files) == 0 {
		f.Fatalf("no files in testdata, error %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		d, describeErr := DescribeKey(data)
		if usable := describeErr == nil && d.Unusable == nil; usable != (err == nil) {
			t.Errorf("described as %+v, error %v; read with error %v", d, describeErr, err)
		}
		if err != nil {
			return
		}
		// What is accepted can be written, and reads the same again.
		out, err := r.marshal()
		if err != nil {
			t.Skip() // a time that JSON does not write
		}
		again, err := parseRecord(out)
		if err != nil {
			t.Fatalf("what was written does not read: %v", err)
		}
		if !bytes.Equal(again.name.Buffer, r.name.Buffer) || again.parent != r.parent || again.meta.Label != r.meta.Label {
			t.Errorf("%+v came back as %+v", r, again)
		}
	})
}
