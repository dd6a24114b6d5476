package limpettest_test

import (
	"crypto"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/limpettest"
)

func TestSlow(t *testing.T) {
	ks, err := softkey.Open(t.Context(), t.TempDir(), softkey.KeyFile(""))
	if err != nil {
		t.Fatal(err)
	}
	fast, err := ks.Create(t.Context(), hwkey.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	key := limpettest.Slow(fast, 20*time.Millisecond)
	start := time.Now()
	for range 3 {
		if err := limpettest.SignAndVerify(key, fast.Public(), []byte("message")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := key.Sign(nil, nil, crypto.SHA256); err == nil {
		t.Error("signed an empty digest")
	}
	if d := time.Since(start); d < 80*time.Millisecond {
		t.Errorf("4 signatures took %v, want 20 ms each", d)
	}
	if key.Signs() != 4 {
		t.Errorf("counted %d signatures, want 4", key.Signs())
	}
}
