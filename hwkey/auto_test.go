package hwkey_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/limpet-auth/limpet/hwkey"
)

type namedStore struct {
	hwkey.Keystore
	name string
}

func works(name string) hwkey.Candidate {
	return hwkey.Candidate{Name: name, Level: hwkey.Software, Open: func(context.Context) (hwkey.Keystore, string, error) {
		return namedStore{name: name}, "it works", nil
	}}
}

func fails(name string, err error) hwkey.Candidate {
	return hwkey.Candidate{Name: name, Level: hwkey.Hardware, Open: func(context.Context) (hwkey.Keystore, string, error) {
		return nil, "", err
	}}
}

func TestAuto(t *testing.T) {
	broken := errors.New("the chip is on fire")
	tests := []struct {
		name       string
		candidates []hwkey.Candidate
		want       string
		lines      []string
	}{
		{"first works", []hwkey.Candidate{works("a"), works("b")}, "a",
			[]string{"a: used: it works", "b: not used: a comes first and works"}},
		{"second works", []hwkey.Candidate{fails("a", broken), works("b"), fails("c", broken)}, "b",
			[]string{"a: not used: the chip is on fire", "b: used: it works", "c: not used: b comes first and works"}},
		{"none works", []hwkey.Candidate{fails("a", broken), fails("b", broken)}, "",
			[]string{"a: not used: the chip is on fire", "b: not used: the chip is on fire"}},
		{"no candidates", nil, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ks, findings, err := hwkey.Auto(t.Context(), tt.candidates...)
			if tt.want == "" {
				if !errors.Is(err, hwkey.ErrNoKeystore) {
					t.Errorf("error %v, want ErrNoKeystore", err)
				}
				if len(tt.candidates) > 0 && !errors.Is(err, broken) {
					t.Errorf("error %v does not wrap the reason", err)
				}
			} else if err != nil || ks.(namedStore).name != tt.want {
				t.Errorf("got %v, %v; want %s", ks, err, tt.want)
			}
			var lines []string
			for _, f := range findings {
				lines = append(lines, f.String())
			}
			if fmt.Sprint(lines) != fmt.Sprint(tt.lines) {
				t.Errorf("findings\n%q\nwant\n%q", lines, tt.lines)
			}
		})
	}
}

func TestAutoStopsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	slow := hwkey.Candidate{Name: "slow", Open: func(ctx context.Context) (hwkey.Keystore, string, error) {
		cancel()
		return nil, "", ctx.Err()
	}}
	if _, _, err := hwkey.Auto(ctx, slow, works("b")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

func ExampleAuto() {
	chip := hwkey.Candidate{Name: "TPM 2.0", Level: hwkey.Hardware, Open: func(context.Context) (hwkey.Keystore, string, error) {
		return nil, "", errors.New("this machine has no TPM")
	}}
	file := hwkey.Candidate{Name: "encrypted file", Level: hwkey.Software, Open: func(context.Context) (hwkey.Keystore, string, error) {
		return namedStore{name: "file"}, "keys in a directory of the user", nil
	}}
	_, findings, err := hwkey.Auto(context.Background(), chip, file)
	if err != nil {
		fmt.Println(err)
	}
	for _, f := range findings {
		fmt.Println(f)
	}
	// Output:
	// TPM 2.0: not used: this machine has no TPM
	// encrypted file: used: keys in a directory of the user
}
