package tpmkey

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/limpet-auth/limpet/hwkey"
)

// The files in testdata: limpet.pem is ours; tpm2-tools-5.4.pem was written by
// tpm2_encodeobject, with emptyAuth FALSE for a key without a password;
// boolean-01.pem writes TRUE as 01, which is BER but not DER.
func TestParseRecord(t *testing.T) {
	tests := []struct {
		file  string
		alg   hwkey.Algorithm
		label string
		pin   bool
	}{
		{"limpet.pem", hwkey.ECDSAP256, "https://api.example.com", true},
		{"tpm2-tools-5.4.pem", hwkey.ECDSAP256, "", false},
		{"boolean-01.pem", hwkey.ECDSAP256, "", false},
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
			if r.algorithm != tt.alg || r.meta.Label != tt.label || r.parent != tpm2.TPMRHOwner || (r.meta.Parent != "") != tt.pin {
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
	r.parent = srkHandle
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
		if err != nil {
			return
		}
		// What is accepted can be written, and reads the same again.
		out, err := r.marshal()
		if err != nil {
			t.Skip() // a time that JSON does not write
		}
		if r.meta.Parent == "" {
			return // a file of other software; ours always has a pin
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
		err := words("signing", tt.rc)
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
	if err := words("signing", &linkError{io.ErrUnexpectedEOF}); !strings.Contains(err.Error(), "connection") || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if err := words("signing", errors.New("incorrect authorization HMAC")); !strings.Contains(err.Error(), "altered") {
		t.Error(err)
	}
}
