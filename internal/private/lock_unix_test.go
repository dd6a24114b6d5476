//go:build unix

package private

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestUnlocked: a closed lock is free at once, also while a process that was started
// meanwhile still has the file open; and a held one is not.
func TestUnlocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path); !errors.Is(err, ErrLocked) {
		t.Errorf("locked twice: %v", err)
	}
	heir := exec.CommandContext(t.Context(), "sleep", "60")
	heir.ExtraFiles = []*os.File{l.file}
	if err := heir.Start(); err != nil {
		t.Fatal(err)
	}
	defer heir.Wait()
	defer heir.Process.Kill()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = Lock(path)
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	l.Close()
}
