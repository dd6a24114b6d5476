// Command report measures everything that this module measures and writes
// docs/performance.md from the figures. Run it in bench/, on a machine with
// nothing else to do:
//
//	go run ./report
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("report: ")
	out := flag.String("o", "../docs/performance.md", "file to write")
	flag.Parse()
	doc, err := write()
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(*out, doc, 0o644); err != nil {
		log.Fatal(err)
	}
}

func write() ([]byte, error) {
	var doc bytes.Buffer
	p := func(format string, args ...any) { fmt.Fprintf(&doc, format, args...) }
	p("# Performance\n\n")
	p("Written by `go run ./report` in `bench/`, every figure from that run: %s, %s/%s, %d CPUs (%s).\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), cpuModel())
	p("Times depend on the machine; trust the ratios, each of which compares two things measured in turn. Medians of 8 runs; of 6 from the memory of spent values on.\n\n")

	log.Print("decisions per algorithm")
	verify, err := benchmarks("..", "./proof", "Verify", 8, "-benchtime", "0.2s")
	if err != nil {
		return nil, err
	}
	p("## A decision, per algorithm\n\nFrom the parsed proof to yes or no, beside the bare crypto call on the same bytes.\n\n")
	p("| algorithm | bare, ns | Limpet, ns | ratio |\n|---|---|---|---|\n")
	for _, alg := range []string{"ed25519", "ecdsa-p256", "rsa-pss", "rsa-pkcs1", "hmac-sha256"} {
		p("| %s | %.0f | %.0f | %.2f |\n", alg, verify.of("Verify/"+alg+"/bare", "ns/op"), verify.of("Verify/"+alg+"/limpet", "ns/op"),
			verify.ratio("Verify/"+alg+"/limpet", "Verify/"+alg+"/bare"))
	}

	log.Print("one check")
	check, err := benchmarks("..", ".", "Check/hmac|Check/httpsig|Protect", 8, "-benchtime", "200000x")
	if err != nil {
		return nil, err
	}
	ecdsa, err := benchmarks("..", ".", "Check/ecdsa", 8, "-benchtime", "10000x")
	if err != nil {
		return nil, err
	}
	check.add(ecdsa)
	p("\n## One check\n\nHeaders, extract, verify, value spent (memstore). Beside it the bare crypto: HMAC with reused state, ECDSA verify.\n\n")
	p("| proof | bare, ns | Limpet, ns | ratio | allocations |\n|---|---|---|---|---|\n")
	for _, wire := range []struct{ name, limpet, bare string }{
		{"hw-sign, HMAC", "hmac", "hmac"}, {"RFC 9421, HMAC", "httpsig", "hmac"}, {"hw-sign, ECDSA", "ecdsa", "ecdsa"},
	} {
		limpet, bare := "Check/"+wire.limpet+"/limpet", "Check/"+wire.bare+"/bare"
		p("| %s | %.0f | %.0f | %.2f | %.0f (bare %.0f) |\n", wire.name, check.of(bare, "ns/op"), check.of(limpet, "ns/op"), check.ratio(limpet, bare),
			check.of(limpet, "allocs/op"), check.of(bare, "allocs/op"))
	}
	p("\nThe whole middleware around a handler that does nothing: %.0f ns, %.0f allocations.\n", check.of("Protect", "ns/op"), check.of("Protect", "allocs/op"))

	log.Print("bodies and channels")
	extras, err := benchmarks("..", ".", "Body|Channel", 8, "-benchtime", "0.3s")
	if err != nil {
		return nil, err
	}
	p("\n## Bodies and channels\n\nThe digest of 1 MiB beside the bare hash, and the key of a TLS connection beside its exporter.\n\n")
	p("| | bare, ns | Limpet, ns | ratio | allocations |\n|---|---|---|---|---|\n")
	for _, row := range []struct{ name, limpet, bare string }{
		{"body, as the app reads it", "Body/streamed", "Body/bare"}, {"body, before the app sees it", "Body/buffered", "Body/bare"},
		{"channel", "Channel/limpet", "Channel/bare"},
	} {
		p("| %s | %.0f | %.0f | %.2f | %.0f (bare %.0f) |\n", row.name, extras.of(row.bare, "ns/op"), extras.of(row.limpet, "ns/op"),
			extras.ratio(row.limpet, row.bare), extras.of(row.limpet, "allocs/op"), extras.of(row.bare, "allocs/op"))
	}

	log.Print("a whole server")
	server, err := run(".", "go", "run", "./throughput")
	if err != nil {
		return nil, err
	}
	p("\n## A whole server\n\nnet/http with a small JSON answer, server and client in separate processes, keep-alive, unique values, memstore. CPU is the\n" +
		"server process's own. The bare servers that verify get the same bytes, and verify one constant signature a request and\n" +
		"the access token, each time; the guard verifies a token once and remembers it.\n\n")
	p("%s", server)

	log.Print("memory of spent values")
	replay, err := benchmarks(".", ".", "Replay", 6, "-benchtime", "1x", "-timeout", "30m")
	if err != nil {
		return nil, err
	}
	p("\n## Memory of spent values\n\n")
	replay.table(&doc)

	log.Print("stores and sessions")
	stores, err := benchmarks(".", ".", "Memstore|Boltstore|Session", 6, "-benchtime", "1x", "-timeout", "30m")
	if err != nil {
		return nil, err
	}
	p("\n## Stores and sessions\n\nA record of 200 bytes in stores of a million; then sessions and ephemeral keys as a guard makes them. A session in use is\n" +
		"one of the 16,384 at most that a guard keeps decoded.\n\n")
	stores.table(&doc)

	log.Print("a million logins")
	million, err := benchmarks(".", ".", "Million", 1, "-benchtime", "1x", "-timeout", "30m")
	if err != nil {
		return nil, err
	}
	p("\n## A million sessions\n\nA million logins on a boltstore, one run. Then it is closed, opened anew (ms/open), and used by a thousand of them.\n\n")
	million.table(&doc)

	log.Print("TPM commands")
	tpm, err := benchmarks(".", ".", "TPM", 6, "-benchtime", "1x")
	if err != nil {
		return nil, err
	}
	p("\n## TPM commands\n\nCounted at the transport. Software TPM; a chip is 10 to 1,000 times slower for each command, not in their number.\n\n")
	tpm.table(&doc)
	return doc.Bytes(), nil
}

// results are the values of each benchmark by unit, one a run.
type results struct {
	names  []string
	values map[string]map[string][]float64
}

// benchmarks runs benchmarks count times, each time all of them in turn. pattern
// is their names after "Benchmark", with "|" between alternatives.
func benchmarks(dir, pkg, pattern string, count int, args ...string) (*results, error) {
	r := &results{values: map[string]map[string][]float64{}}
	for range count {
		out, err := run(dir, "go", append([]string{"test", "-run", "^$", "-bench", "^Benchmark" + strings.ReplaceAll(pattern, "|", "|^Benchmark"), "-benchmem", pkg}, args...)...)
		if err != nil {
			return nil, err
		}
		r.read(out)
	}
	if len(r.names) == 0 {
		return nil, fmt.Errorf("no benchmark matches %q in %s", pattern, pkg)
	}
	return r, nil
}

// add takes over what r does not have.
func (r *results) add(other *results) {
	for _, name := range other.names {
		r.names, r.values[name] = append(r.names, name), other.values[name]
	}
}

// read takes lines of Go's benchmark format: name, iterations, value unit ...
func (r *results) read(out []byte) {
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(f[0], "Benchmark")
		name = strings.TrimSuffix(name, "-"+strconv.Itoa(runtime.GOMAXPROCS(0)))
		if r.values[name] == nil {
			r.names = append(r.names, name)
			r.values[name] = map[string][]float64{}
		}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				r.values[name][f[i+1]] = append(r.values[name][f[i+1]], v)
			}
		}
	}
}

func (r *results) of(name, unit string) float64 { return median(r.values[name][unit]) }

// ratio is the median of the ratios run by run.
func (r *results) ratio(a, b string) float64 {
	va, vb := r.values[a]["ns/op"], r.values[b]["ns/op"]
	var ratios []float64
	for i := range min(len(va), len(vb)) {
		ratios = append(ratios, va[i]/vb[i])
	}
	return median(ratios)
}

// table writes every benchmark with what it reports of its own.
func (r *results) table(doc *bytes.Buffer) {
	fmt.Fprint(doc, "| | |\n|---|---|\n")
	for _, name := range r.names {
		var units []string
		for unit := range r.values[name] {
			if !slices.Contains([]string{"B/op", "allocs/op"}, unit) && (unit != "ns/op" || len(r.values[name]) <= 3) {
				units = append(units, unit)
			}
		}
		slices.Sort(units)
		var figures []string
		for _, unit := range units {
			figures = append(figures, strconv.FormatFloat(r.of(name, unit), 'g', 4, 64)+" "+unit)
		}
		fmt.Fprintf(doc, "| %s | %s |\n", name, strings.Join(figures, ", "))
	}
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func run(dir, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LIMPET_BENCH_LARGE=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return out, nil
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, model, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return "unknown"
}
