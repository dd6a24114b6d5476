//go:build unix

package boltstore

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMain runs, in a child process, what a test wants killed or starved.
func TestMain(m *testing.M) {
	switch path := os.Getenv("LIMPET_TEST_STORE"); os.Getenv("LIMPET_TEST_CHILD") {
	case "storm":
		storm(path)
	case "starve":
		if err := starve(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(t *testing.T, what, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LIMPET_TEST_CHILD="+what, "LIMPET_TEST_STORE="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

// storm writes to the store until it is killed, and says what was acknowledged,
// a line for each: what, key or id, value or expiry.
func storm(path string) {
	s, err := Open(path, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx := context.Background()
	run := os.Getpid()
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for n := 0; ; n++ {
				var line string
				var err error
				switch key := fmt.Sprintf("%d.%d.%d", run, g, n); g % 4 {
				case 0:
					key = fmt.Sprintf("%d.%d.%d", run, g, n/3)
					err = s.Put(ctx, key, []byte(strconv.Itoa(n)), time.Hour)
					line = fmt.Sprintln("put", key, n)
					if err == nil && n%3 == 2 && n%2 == 0 {
						os.Stdout.WriteString(fmt.Sprintln("deleting", key, n))
						err = s.Delete(ctx, key)
						line = fmt.Sprintln("delete", key, n)
					}
				case 1:
					_, err = s.Add(ctx, key, []byte(key), time.Hour)
					line = fmt.Sprintln("add", key, n)
				default:
					expires := time.Now().Add(100 * time.Second)
					if n%50 == 0 {
						expires = expires.Add(time.Hour)
					}
					_, err = s.Spend(ctx, []byte(key), expires)
					line = fmt.Sprintln("spend", key, expires.UnixNano())
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				os.Stdout.WriteString(line)
			}
		})
	}
	wg.Wait()
}

func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	values := map[string]int{} // the last value acknowledged
	deleted := map[string]bool{}
	added := map[string]bool{}
	spent := map[string]time.Time{}
	for range 6 {
		cmd := child(t, "storm", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(100*time.Millisecond+rand.N(300*time.Millisecond), func() { cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			f := strings.Fields(lines.Text())
			if len(f) != 3 {
				continue // the line it died on
			}
			n, err := strconv.ParseInt(f[2], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			switch f[0] {
			case "put":
				values[f[1]] = int(n)
			case "deleting":
				delete(values, f[1]) // it may be gone or not
			case "delete":
				deleted[f[1]] = true
			case "add":
				added[f[1]] = true
			case "spend":
				spent[f[1]] = time.Unix(0, n)
			}
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the child was not killed: %v", err)
		}

		s, err := Open(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		for key, n := range values {
			val, found, err := s.Get(ctx, key)
			if got, _ := strconv.Atoi(string(val)); err != nil || !found || got < n {
				t.Errorf("Get(%s) = %q, %v, %v; want %d or later", key, val, found, err, n)
			}
		}
		for key := range deleted {
			if _, found, err := s.Get(ctx, key); err != nil || found {
				t.Errorf("Get of deleted %s = %v, %v", key, found, err)
			}
		}
		for key := range added {
			if val, _, err := s.Get(ctx, key); err != nil || string(val) != key {
				t.Errorf("Get(%s) = %q, %v", key, val, err)
			}
		}
		for id, expires := range spent {
			if fresh, err := s.Spend(ctx, []byte(id), expires); err != nil || fresh {
				t.Errorf("Spend(%s) = %v, %v; it was spent", id, fresh, err)
			}
		}
		if bootID() != [16]byte{} { // elsewhere the watermark holds, for a while
			if fresh, err := s.Spend(ctx, fmt.Append(nil, "new", len(spent)), time.Now().Add(time.Minute)); err != nil || !fresh {
				t.Errorf("Spend of a new value = %v, %v", fresh, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d put, %d deleted, %d added, %d spent", len(values), len(deleted), len(added), len(spent))
	if len(added) == 0 || len(spent) == 0 || len(values) == 0 {
		t.Error("the child did too little")
	}
}

func TestDiskFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	cmd := child(t, "starve", path)
	if out, err := cmd.Output(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// And nothing is wrong with what it left.
	s := openTest(t, path)
	if err := s.Put(t.Context(), "last", nil, time.Hour); err != nil {
		t.Error(err)
	}
}

// starve fills a disk that is full at a given size of file, sees the errors,
// makes room, and sees that all is well.
func starve(path string) error {
	signal.Ignore(syscall.SIGXFSZ)
	limit := func(n uint64) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: 1 << 40}); err != nil {
			panic(err)
		}
	}
	limit(1 << 40)
	s, err := Open(path, nil)
	if err != nil {
		return err
	}
	ctx := context.Background()
	val := make([]byte, 10_000)
	expires := time.Now().Add(time.Minute)
	// The first sets the watermark. The journal then has room for one and a half more.
	if fresh, err := s.Spend(ctx, []byte("first"), expires); err != nil || !fresh {
		return fmt.Errorf("first Spend = %v, %v", fresh, err)
	}
	limit(journalHeader + 2*journalRecord + journalRecord/2)
	if fresh, err := s.Spend(ctx, []byte("second"), expires); err != nil || !fresh {
		return fmt.Errorf("second Spend = %v, %v", fresh, err)
	}
	for range 3 {
		if fresh, err := s.Spend(ctx, []byte("third"), expires); err == nil || fresh {
			return fmt.Errorf("Spend on a full disk = %v, %v", fresh, err)
		}
		if fresh, err := s.Spend(ctx, []byte("first"), expires); err != nil || fresh {
			return fmt.Errorf("Spend of a spent value on a full disk = %v, %v", fresh, err)
		}
		if fresh, err := s.Spend(ctx, []byte("long"), expires.Add(time.Hour)); err == nil || fresh {
			return fmt.Errorf("long-lived Spend on a full disk = %v, %v", fresh, err)
		}
	}
	limit(1 << 20)
	kept := 0
	for ; err == nil; kept++ {
		if err = s.Put(ctx, fmt.Sprint("key", kept), val, time.Hour); kept > 1000 {
			return fmt.Errorf("no error after %d records", kept)
		}
	}
	kept-- // the last failed
	for i := range 20 {
		if err := s.Put(ctx, fmt.Sprint("more", i), val, time.Hour); err == nil {
			return fmt.Errorf("Put on a full disk gave no error")
		}
		if added, err := s.Add(ctx, fmt.Sprint("more", i), val, time.Hour); err == nil || added {
			return fmt.Errorf("Add on a full disk = %v, %v", added, err)
		}
	}
	check := func() error {
		for i := range kept {
			if got, found, err := s.Get(ctx, fmt.Sprint("key", i)); err != nil || !found || len(got) != len(val) {
				return fmt.Errorf("Get(%d of %d) = %v, %v", i, kept, found, err)
			}
		}
		for i := range 20 {
			if _, found, err := s.Get(ctx, fmt.Sprint("more", i)); err != nil || found {
				return fmt.Errorf("Get of what was refused = %v, %v", found, err)
			}
		}
		return nil
	}
	if err := check(); err != nil {
		return err
	}
	limit(1 << 40)
	for _, id := range []string{"third", "fourth"} {
		if fresh, err := s.Spend(ctx, []byte(id), expires); err != nil || !fresh {
			return fmt.Errorf("Spend with room again = %v, %v", fresh, err)
		}
	}
	if fresh, err := s.Spend(ctx, []byte("long"), expires.Add(time.Hour)); err != nil || !fresh {
		return fmt.Errorf("long-lived Spend with room again = %v, %v", fresh, err)
	}
	for range 20 {
		if err := s.Put(ctx, fmt.Sprint("key", kept), val, time.Hour); err != nil {
			return fmt.Errorf("Put with room again: %v", err)
		}
		kept++
	}
	if err := s.Close(); err != nil {
		return err
	}
	if s, err = Open(path, nil); err != nil {
		return err
	}
	for _, id := range []string{"first", "second", "third", "fourth"} {
		if fresh, err := s.Spend(ctx, []byte(id), expires); err != nil || fresh {
			return fmt.Errorf("Spend(%s) after reopening = %v, %v", id, fresh, err)
		}
	}
	if err := check(); err != nil {
		return err
	}
	return s.Close()
}
