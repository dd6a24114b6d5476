package main

import (
	"bytes"
	"testing"

	"github.com/limpet-auth/limpet/keyring"
)

func TestSharedIn(t *testing.T) {
	for _, tt := range []struct{ name, data, want string }{
		{"a line", "a shared secret\n", "a shared secret"},
		{"without its end", "a shared secret", "a shared secret"},
		{"of Windows", "a shared secret\r\n", "a shared secret"},
		{"with spaces", " a shared\tsecret \n", " a shared\tsecret "},
		{"a carriage return alone", "a shared secret\r", ""},
		{"not ASCII", "ein geteiltes Gehëimnis\n", "ein geteiltes Gehëimnis"},
		{"two lines", "a shared secret\nand another\n", ""},
		{"an empty line more", "a shared secret\n\n", ""},
		{"nothing", "", ""},
		{"an end of line", "\n", ""},
		{"binary", "\x00\x01\x02\x03", "\x00\x01\x02\x03"},
		{"binary that ends like a line", "\x00\x01\x02\r\n", "\x00\x01\x02\r\n"},
		{"bytes that are not UTF-8", "a shared secret\xff\n", "a shared secret\xff\n"},
	} {
		got, err := sharedIn([]byte(tt.data))
		if (err != nil) != (tt.want == "") || string(got) != tt.want {
			t.Errorf("%s: %q, error %v; want %q", tt.name, got, err, tt.want)
		}
	}
}

// A new secret is the same with and without an end of line.
func TestNewShared(t *testing.T) {
	secret := newShared()
	if err := keyring.CheckSecret(secret); err != nil || len(secret) != 43 {
		t.Errorf("%d bytes, error %v", len(secret), err)
	}
	for _, end := range []string{"", "\n", "\r\n"} {
		if got, err := sharedIn(append(bytes.Clone(secret), end...)); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("with the end %q it is another one; error %v", end, err)
		}
	}
	if bytes.Equal(secret, newShared()) {
		t.Error("two new secrets are the same")
	}
}
