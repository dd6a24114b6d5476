//go:build unix

package tpmvault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/limpet-auth/limpet/fido"
	"github.com/limpet-auth/limpet/fido/vaulttest"
	"github.com/limpet-auth/limpet/limpettest"
)

// The process that TestPINChangeKill9 kills.
const victimAddr, victimDir = "TPMVAULT_VICTIM_ADDR", "TPMVAULT_VICTIM_DIR"

func TestMain(m *testing.M) {
	if addr := os.Getenv(victimAddr); addr != "" {
		fmt.Println(victim(Config{Addr: addr, Dir: os.Getenv(victimDir)}))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// victim changes the PIN forth and back and counts, until it is killed.
func victim(c Config) error {
	ctx := context.Background()
	v, err := Open(c)
	if err != nil {
		return err
	}
	for {
		for _, pins := range [][2]string{{"1234", "5678"}, {"5678", "1234"}} {
			if err := v.ChangePIN(ctx, vaulttest.PIN(pins[0]), vaulttest.PIN(pins[1])); err != nil && !errors.Is(err, fido.ErrPINInvalid) {
				return err
			}
			n, err := v.Count(ctx)
			if err != nil {
				return err
			}
			fmt.Println(n)
		}
	}
}

// TestPINChangeKill9 kills processes that change the PIN, with SIGKILL and at random.
func TestPINChangeKill9(t *testing.T) {
	t.Parallel()
	c := Config{Addr: limpettest.SoftTPMAt(t, "unix"), Dir: t.TempDir()}
	ctx := t.Context()
	v, err := openAgain(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.SetPIN(ctx, vaulttest.PIN("1234")); err != nil {
		t.Fatal(err)
	}
	u, err := v.Unlock(ctx, vaulttest.PIN("1234"))
	if err != nil {
		t.Fatal(err)
	}
	k, err := vaulttest.Create(ctx, v, "a.example", u)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		v.Close()
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), victimAddr+"="+c.Addr, victimDir+"="+c.Dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var last uint32
		if _, err := fmt.Fscanln(out, &last); err != nil { // it is at work
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(rand.IntN(50))*time.Millisecond, func() { cmd.Process.Kill() })
		for {
			var n uint32
			if _, err := fmt.Fscanln(out, &n); err != nil {
				break
			}
			last = max(last, n)
		}
		cmd.Wait()
		if v, err = openAgain(c); err != nil {
			t.Fatal(err)
		}
		n, err := v.Count(ctx)
		if err != nil || n <= last {
			t.Errorf("the counter went from %d to %d, %v", last, n, err)
		}
		u, err := v.Unlock(ctx, vaulttest.PIN("1234"))
		if errors.Is(err, fido.ErrPINInvalid) {
			u, err = v.Unlock(ctx, vaulttest.PIN("5678"))
		}
		if err == nil {
			err = k.Sign(ctx, v, u)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	v.Close()
}
