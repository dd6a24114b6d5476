//go:build unix

package private

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestLasting: what a file's name stands for is on the disk when Write returns, and
// so are the directories that it made.
func TestLasting(t *testing.T) {
	defer func() { syncFile = (*os.File).Sync }()
	top := t.TempDir()
	dir := filepath.Join(top, "a", "b")
	path := filepath.Join(dir, "file")
	for _, step := range []struct {
		name  string
		write func() error
		want  []string // what is synced, in order
	}{
		{"Create", func() error { return Create(path, []byte("first")) }, []string{top, filepath.Join(top, "a"), "new first", dir + " first"}},
		{"Write", func() error { return Write(path, []byte("second")) }, []string{"new second", dir + " second"}},
	} {
		var got []string
		syncFile = func(f *os.File) error {
			what := f.Name()
			if strings.HasPrefix(what, filepath.Join(dir, ".new-")) {
				data, _ := os.ReadFile(what)
				what = "new " + string(data)
			} else if data, err := os.ReadFile(path); err == nil {
				what += " " + string(data)
			}
			got = append(got, what)
			return f.Sync()
		}
		if err := step.write(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("%s synced %q, want %q", step.name, got, step.want)
		}
	}
	syncFile = func(f *os.File) error {
		if f.Name() == dir {
			return syscall.EIO
		}
		return f.Sync()
	}
	if err := Write(path, nil); err == nil {
		t.Error("the directory could not be synced, and nobody is told")
	}
}

// TestClaim: a file is made without links too, and none is replaced.
func TestClaim(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	for i := range 2 {
		if err := os.WriteFile(from, []byte{byte(i)}, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := claim(from, to); errors.Is(err, fs.ErrExist) != (i == 1) || (err == nil) != (i == 0) {
			t.Errorf("%d: %v", i, err)
		}
		if data, err := os.ReadFile(to); err != nil || !slices.Equal(data, []byte{0}) {
			t.Errorf("%d: %v, %v", i, data, err)
		}
	}
	if err := claim(filepath.Join(dir, "none"), filepath.Join(dir, "new")); err == nil {
		t.Error("nothing was moved")
	}
	if _, err := os.Lstat(filepath.Join(dir, "new")); err == nil {
		t.Error("an empty file is left")
	}
}

// TestRootInAnothersDirectory: what root writes there its owner can read, and nothing
// else is given away.
func TestRootInAnothersDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "" {
			t.Skip("only root can")
		}
		if out, err := exec.CommandContext(t.Context(), "sudo", "-n", os.Args[0], "-test.run=^TestRootInAnothersDirectory$").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	const user, group = 1234, 2345
	dir := t.TempDir()
	if err := os.Chown(dir, user, group); err != nil {
		t.Fatal(err)
	}
	owner := func(name string) uint32 {
		t.Helper()
		fi, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return fi.Sys().(*syscall.Stat_t).Uid
	}
	if err := Write(filepath.Join(dir, "state"), nil); err != nil {
		t.Fatal(err)
	}
	if err := Create(filepath.Join(dir, "secret"), nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := Lock(filepath.Join(dir, "lock"))
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	if err := Create(filepath.Join(dir, "a", "b", "secret"), nil); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{"state": user, "lock": user, "secret": 0, "a": user, "a/b": user, "a/b/secret": 0} {
		if got := owner(name); got != want {
			t.Errorf("%s is the user %d's, want %d's", name, got, want)
		}
	}
	// A link that the directory's owner has put there.
	roots := filepath.Join(t.TempDir(), "roots")
	if err := os.WriteFile(roots, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link.lock", "link.state"} {
		if err := os.Symlink(roots, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link.lock", "pipe"} {
		if l, err := Lock(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s was locked", name)
			l.Close()
		}
	}
	if err := Write(filepath.Join(dir, "link.state"), nil); err != nil {
		t.Fatal(err)
	}
	// Directories of root's that were put in the place of one that root made.
	if err := os.Symlink(filepath.Dir(roots), filepath.Join(dir, "link.dir")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "full"), 0o700), os.WriteFile(filepath.Join(dir, "full", "secret"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link.dir", "full", "secret"} {
		if err := giveAwayDir(filepath.Join(dir, name)); err == nil || owner(name) != 0 {
			t.Errorf("%s was given away: %v", name, err)
		}
	}
	if fi, err := os.Stat(filepath.Dir(roots)); err != nil || fi.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("a directory of root's was given away: %v", err)
	}
	fi, err := os.Stat(roots)
	if err != nil || fi.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("a file of root's was given away: %v", err)
	}
}
