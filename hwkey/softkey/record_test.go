package softkey

import "testing"

// FuzzRecord reads key files as a stranger may have left them.
func FuzzRecord(f *testing.F) {
	ks := &Keystore{aead: newAEAD(make([]byte, 32))}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord("id", data)
		if err != nil {
			return
		}
		if r.info().ID != "id" {
			t.Fatal("the record has another id")
		}
		if _, err := ks.open(r); err == nil {
			t.Fatal("a record that nobody sealed opens")
		}
	})
}
