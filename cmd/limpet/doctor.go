package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/hwkey"
	"github.com/limpet-auth/limpet/hwkey/softkey"
	"github.com/limpet-auth/limpet/hwkey/tpmkey"
)

func doctorCommand() *cobra.Command {
	var k keeper
	var url string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "say which keystores work here, and what the others lack",
		Long: `Doctor tries each keystore with a key of its own, which it deletes afterwards:
whether it works, how long a signature takes, and what is missing if it does
not. Of a TPM it also tells the maker and the state of its lockout; --url
compares this machine's clock with a server's.

  limpet doctor
  limpet doctor --url https://auth.example.com

The exit code is 0 if at least one keystore works.`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return k.doctor(cmd.Context(), url) },
	}
	k.flags(cmd)
	cmd.Flags().StringVar(&url, "url", "", "`URL` of a server to compare the clock with")
	settings(cmd, "url")
	return cmd
}

func (k *keeper) doctor(ctx context.Context, url string) error {
	state, err := stateDir()
	if err != nil {
		return err
	}
	k.dir = state
	tpmErr := k.examineTPM(ctx)
	softErr := k.examineSoftware(ctx)
	examineClock(ctx, url)
	if tpmErr != nil && softErr != nil {
		return errors.New("no keystore works on this machine")
	}
	if tpmErr != nil {
		_, err = fmt.Println("\nlogins are bound to software keys (level software): a copy of the key file and\nwhat unlocks it is as good as the original")
	} else {
		_, err = fmt.Println("\nlogins are bound to TPM keys (level hardware)")
	}
	return err
}

// finding prints one line of the examination.
func finding(what, format string, args ...any) {
	fmt.Printf("  %-13s %s\n", what, fmt.Sprintf(format, args...))
}

func (k *keeper) examineTPM(ctx context.Context) error {
	fmt.Println("TPM 2.0")
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ks := tpmkey.New(k.tpmConfig())
	defer ks.Close()
	d, err := ks.Describe(ctx)
	if err == nil {
		err = describeTPM(ctx, ks, d)
	}
	if err != nil {
		finding("does not work", "%s", plain(err))
	}
	return err
}

func describeTPM(ctx context.Context, ks *tpmkey.Keystore, d tpmkey.Description) error {
	finding("chip", "%s", strings.TrimSpace(d.Manufacturer+" "+d.Vendor+", firmware "+d.Firmware+", TPM 2.0 revision "+d.Spec))
	finding("algorithms", "%s", strings.Join(words(d.Algorithms), ", "))
	finding("storage key", "%s", map[bool]string{true: "shared, 0x81000001", false: "made anew by each program, which is slower"}[d.SRK])
	lockout := fmt.Sprintf("%d of %d failures", d.Lockout.Failures, d.Lockout.Max)
	if d.Lockout.Active {
		lockout += fmt.Sprintf("; locked, one is forgotten every %v (Limpet's keys are not affected)", d.Lockout.Interval)
	}
	finding("lockout", "%s", lockout)
	finding("keys", "%d", d.Keys)
	if d.Foreign > 0 {
		finding("", "%d of them are of another or a cleared TPM: log in again, then limpet key rm", d.Foreign)
	}
	return trySigning(ctx, ks)
}

func words(algs []hwkey.Algorithm) (list []string) {
	for _, a := range algs {
		list = append(list, string(a))
	}
	return list
}

func (k *keeper) examineSoftware(ctx context.Context) error {
	fmt.Println("encrypted file")
	err := k.trySoftware(ctx)
	if err != nil {
		finding("does not work", "%s", plain(err))
	}
	return err
}

func (k *keeper) trySoftware(ctx context.Context) error {
	if _, err := os.Stat(k.softDir()); err == nil {
		secrets, err := k.secrets()
		if err != nil {
			return err
		}
		ks, about, err := softkey.Candidate(k.softDir(), secrets...).Open(ctx)
		if err != nil {
			return err
		}
		finding("directory", "%s", about)
		return trySigning(ctx, ks)
	}
	// A trial must not decide what the directory will be locked with.
	parent := filepath.Dir(k.softDir())
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(parent, ".doctor-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ks, err := softkey.Open(ctx, filepath.Join(dir, "soft"), softkey.KeyFile(""))
	if err != nil {
		return err
	}
	finding("directory", "%s, made at the first login that needs it", k.softDir())
	return trySigning(ctx, ks)
}

// trySigning makes a key, signs with it and deletes it.
func trySigning(ctx context.Context, ks hwkey.Keystore) error {
	start := time.Now()
	key, err := ks.Create(ctx, hwkey.CreateOptions{Label: "limpet doctor"})
	if err != nil {
		return err
	}
	made := time.Since(start)
	defer ks.Delete(context.WithoutCancel(ctx), key.Info().ID)
	defer key.Close()
	digest := sha256.Sum256([]byte("limpet doctor"))
	var times []time.Duration
	for range 5 {
		start := time.Now()
		if _, err := key.Sign(nil, digest[:], crypto.SHA256); err != nil {
			return err
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	finding("works", "new key %s, signature %s", rounded(made), rounded(times[len(times)/2]))
	return nil
}

func rounded(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(time.Microsecond)
	}
	return d.Round(100 * time.Microsecond)
}

// examineClock compares the clock with a server's: proofs carry the time.
func examineClock(ctx context.Context, target string) {
	fmt.Println("clock")
	now := time.Now()
	finding("here", "%s", now.UTC().Format(time.RFC3339))
	if target == "" {
		return
	}
	ahead, err := clockOf(ctx, target)
	switch {
	case err != nil:
		finding("server", "%s", plain(err))
	case ahead.Abs() > 30*time.Second:
		finding("server", "%v off: set this machine's clock, servers allow 30s", ahead.Round(time.Second))
	default:
		finding("server", "the same within %v", max(ahead.Abs(), time.Second).Round(time.Second))
	}
}

// clockOf returns how far a server's clock is ahead.
func clockOf(ctx context.Context, target string) (time.Duration, error) {
	u, err := serverURL(target)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, u.String(), nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, withoutURL(err)
	}
	resp.Body.Close()
	t, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0, errors.New("the server does not tell its time")
	}
	return time.Until(t), nil
}
