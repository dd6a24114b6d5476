// Command report measures everything that this module measures and writes
// docs/performance.md from the figures. Run it in bench/, on a machine with
// nothing else to do:
//
//	go run ./report
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
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
	only := flag.String("only", "", "measure only the section with this `title`, and keep the others of the file")
	flag.Parse()
	if err := write(*out, *only); err != nil {
		log.Fatal(err)
	}
}

// A section measures and returns its text.
type section struct {
	title   string
	measure func() (string, error)
}

func (s section) heading() string { return "\n## " + s.title + "\n\n" }

var sections = []section{
	{"A decision, per algorithm", decisions},
	{"One check", checks},
	{"Bodies and channels", bodies},
	{"Browsers", browsers},
	{"Channel tokens", channels},
	{"A whole server", server},
	{"A gateway", gateway},
	{"Memory of spent values", replay},
	{"Stores and sessions", stores},
	{"A million sessions", million},
	{"Redis", redis},
	{"Memory of Redis", redisMemory},
	{"TPM commands", tpm},
	{"FIDO", fidoKeys},
	{"Handshakes", handshakes},
	{"Browser SDK", browserSDK},
}

// write measures all sections, or only one, and writes the file after each, so that
// what was measured stays when a later one fails.
func write(file, only string) error {
	if only != "" && !slices.ContainsFunc(sections, func(s section) bool { return s.title == only }) {
		return fmt.Errorf("no section %q", only)
	}
	old, err := os.ReadFile(file)
	if err != nil && (only != "" || !errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	texts := make([]string, len(sections))
	for i, s := range sections {
		if _, rest, found := strings.Cut(string(old), s.heading()); found {
			texts[i], _, _ = strings.Cut(rest, "\n## ")
		}
	}
	for i, s := range sections {
		if only != "" && only != s.title {
			continue
		}
		log.Print(s.title)
		if texts[i], err = s.measure(); err != nil {
			return err
		}
		if err := os.WriteFile(file, document(texts), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// document returns the file's content, by the sections that have a text.
func document(texts []string) []byte {
	doc := fmt.Appendf(nil, "# Performance\n\nWritten by `go run ./report` in `bench/`, every figure of a section from one run: %s, %s/%s, %d CPUs (%s).\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), cpuModel())
	doc = append(doc, "Times depend on the machine; trust the ratios, each of which compares two things measured in turn. Medians of 8 runs; of 6 from the memory of spent values on.\n"...)
	for i, s := range sections {
		if texts[i] != "" {
			doc = append(append(doc, s.heading()...), texts[i]...)
		}
	}
	return doc
}

func decisions() (string, error) {
	verify, err := benchmarks("..", "./proof", "Verify", 8, "-benchtime", "0.2s")
	if err != nil {
		return "", err
	}
	var doc strings.Builder
	doc.WriteString("From the parsed proof to yes or no, beside the bare crypto call on the same bytes.\n\n" +
		"| algorithm | bare, ns | Limpet, ns | ratio |\n|---|---|---|---|\n")
	for _, alg := range []string{"ed25519", "ecdsa-p256", "rsa-pss", "rsa-pkcs1", "hmac-sha256"} {
		fmt.Fprintf(&doc, "| %s | %.0f | %.0f | %.2f |\n", alg, verify.of("Verify/"+alg+"/bare", "ns/op"), verify.of("Verify/"+alg+"/limpet", "ns/op"),
			verify.ratio("Verify/"+alg+"/limpet", "Verify/"+alg+"/bare"))
	}
	return doc.String(), nil
}

func checks() (string, error) {
	check, err := benchmarks("..", ".", "Check/hmac|Check/httpsig|Protect", 8, "-benchtime", "200000x")
	if err != nil {
		return "", err
	}
	ecdsa, err := benchmarks("..", ".", "Check/ecdsa", 8, "-benchtime", "10000x")
	if err != nil {
		return "", err
	}
	check.add(ecdsa)
	var doc strings.Builder
	doc.WriteString("Headers, extract, verify, value spent (memstore). Beside it the bare crypto: HMAC with reused state, ECDSA verify.\n\n" +
		"| proof | bare, ns | Limpet, ns | ratio | allocations |\n|---|---|---|---|---|\n")
	for _, wire := range []struct{ name, limpet, bare string }{
		{"hw-sign, HMAC", "hmac", "hmac"}, {"RFC 9421, HMAC", "httpsig", "hmac"}, {"hw-sign, ECDSA", "ecdsa", "ecdsa"},
	} {
		check.row(&doc, wire.name, "Check/"+wire.limpet+"/limpet", "Check/"+wire.bare+"/bare")
	}
	fmt.Fprintf(&doc, "\nThe whole middleware around a handler that does nothing: %.0f ns, %.0f allocations.\n", check.of("Protect", "ns/op"), check.of("Protect", "allocs/op"))
	return doc.String(), nil
}

func bodies() (string, error) {
	extras, err := benchmarks("..", ".", "Body|Channel", 8, "-benchtime", "0.3s")
	if err != nil {
		return "", err
	}
	var doc strings.Builder
	doc.WriteString("The digest of 1 MiB beside the bare hash, and the key of a TLS connection beside its exporter.\n\n" +
		"| | bare, ns | Limpet, ns | ratio | allocations |\n|---|---|---|---|---|\n")
	extras.row(&doc, "body, as the app reads it", "Body/streamed", "Body/bare")
	extras.row(&doc, "body, before the app sees it", "Body/buffered", "Body/bare")
	extras.row(&doc, "channel", "Channel/limpet", "Channel/bare")
	return doc.String(), nil
}

func browsers() (string, error) {
	refresh, err := benchmarks("..", ".", "Refresh", 8, "-benchtime", "5000x")
	if err != nil {
		return "", err
	}
	var doc strings.Builder
	doc.WriteString("A refresh of a browser's cookie (DBSC): its JWT read and verified, its challenge used up (memstore), beside the bare signature; one in\n" +
		"ten minutes a browser. And a request with that cookie, from headers to the decision.\n\n" +
		"| | bare, ns | Limpet, ns | rate / bare rate |\n|---|---|---|---|\n")
	fmt.Fprintf(&doc, "| refresh, ES256 | %.0f | %.0f | %.2f |\n", refresh.of("Refresh/limpet", "bare-ns/op"), refresh.of("Refresh/limpet", "ns/op"), refresh.of("Refresh/limpet", "bare/op"))
	fmt.Fprintf(&doc, "| request with the cookie | | %.0f | |\n\nThe request allocates %.0f times.\n", refresh.of("Refresh/cookie", "ns/op"), refresh.of("Refresh/cookie", "allocs/op"))
	return doc.String(), nil
}

func channels() (string, error) {
	requests, err := benchmarks("..", "./channel", "Protect|Admit", 8, "-benchtime", "0.3s")
	if err != nil {
		return "", err
	}
	connections, err := benchmarks("..", "./channel", "Handshake", 8, "-benchtime", "0.5s")
	if err != nil {
		return "", err
	}
	var doc strings.Builder
	doc.WriteString("What a token of the TLS connection adds to each request on one that is established, and to the first on a new one, with a secret\n" +
		"in software.\n\n| | ns | allocations |\n|---|---|---|\n")
	for _, row := range []struct{ name, benchmark string }{
		{"a request with a token", "Protect/token"}, {"a request with a JWT", "Protect/jwt"},
		{"the first with a token", "Admit/token"}, {"the first with a JWT", "Admit/jwt"},
	} {
		fmt.Fprintf(&doc, "| %s | %.0f | %.0f |\n", row.name, requests.of(row.benchmark, "ns/op"), requests.of(row.benchmark, "allocs/op"))
	}
	doc.WriteString("\nA TLS 1.3 connection and one request on it, both ends in one process, with a token and without in turns.\n\n" +
		"| form | without, µs | with, µs | connections/s, with / without |\n|---|---|---|---|\n")
	for _, form := range []string{"token", "jwt", "jwe"} {
		name := "Handshake/" + form
		fmt.Fprintf(&doc, "| %s | %.0f | %.0f | %.2f |\n", form, connections.of(name, "ns/bare")/1000, connections.of(name, "ns/token")/1000, connections.of(name, "ratio"))
	}
	return doc.String(), nil
}

func server() (string, error) {
	out, err := run(".", "go", "run", "./throughput")
	if err != nil {
		return "", err
	}
	return "net/http with a small JSON answer, server and client in separate processes, keep-alive, unique values, memstore. CPU is the\n" +
		"server process's own. The bare servers that verify get the same bytes, and verify one constant signature a request and\n" +
		"the access token, each time; the guard verifies a token once and remembers it.\n\n" + string(out), nil
}

func gateway() (string, error) {
	var doc strings.Builder
	doc.WriteString("`limpet bench gateway`: limpet gateway beside a bare httputil.ReverseProxy with the same limits, timeouts and\n" +
		"buffers. Proxy, gateway, app and load are processes on the same CPUs; CPU is the proxy's or the gateway's own, garbage collection\n" +
		"included, which the bare proxy does as Go does by itself, and the gateway less often: it lets 16 MiB more gather. The bare proxy gets\n" +
		"the same requests without proofs. They are GETs, which the gateway sends to the app on the goroutine they came in on, and the bare\n" +
		"proxy through http.Transport. p50 and p99 are at half the rate that the bare proxy takes. After each CPU ratio, that of the best\n" +
		"rounds. The gateway's memory grows until it remembers the nonces of a minute.\n")
	for _, run := range []struct{ store, requests, rounds string }{{"mem", "1000000", "100"}, {"bolt", "200000", "40"}} {
		r, err := benchGateway("--store", run.store, "--requests", run.requests, "--rounds", run.rounds)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&doc, "\nStore %s, %d requests to each in %d rounds, %d connections with a session each:\n\n", run.store, r.Requests, r.Rounds, r.Connections)
		doc.WriteString("| server | CPU per request, µs | requests/s | p50, ms | p99, ms |\n|---|---|---|---|---|\n")
		for _, s := range r.Servers {
			fmt.Fprintf(&doc, "| %s | %.1f | %.0f | %.2f | %.2f |\n", s.Name, s.CPU, s.Rate, s.PacedP50/1000, s.PacedP99/1000)
		}
		doc.WriteString("\n| ratio to the bare proxy, round by round | CPU | requests/s | added to p99, ms |\n|---|---|---|---|\n")
		for _, s := range r.Ratios {
			fmt.Fprintf(&doc, "| %s | %.2f (%.2f) | %.2f | %.2f |\n", s.Name, s.CPU, s.BestCPU, s.Rate, s.AddedUS/1000)
		}
		doc.WriteString("\n| memory (RSS), MiB | after the warm-up | half-way | at the end |\n|---|---|---|---|\n")
		for _, m := range r.Memory {
			fmt.Fprintf(&doc, "| %s | %.1f | %.1f | %.1f |\n", m.Name, float64(m.Start)/(1<<20), float64(m.Middle)/(1<<20), float64(m.End)/(1<<20))
		}
	}
	return doc.String(), nil
}

// gatewayReport is what limpet bench gateway tells, as far as it is used here.
type gatewayReport struct {
	Rounds, Requests, Connections int
	Servers                       []struct {
		Name     string
		CPU      float64 `json:"cpu_us"`
		Rate     float64 `json:"requests_s"`
		PacedP50 float64 `json:"paced_p50_us"`
		PacedP99 float64 `json:"paced_p99_us"`
	}
	Ratios []struct {
		Name    string
		CPU     float64
		BestCPU float64 `json:"best_cpu"`
		Rate    float64 `json:"requests_s"`
		AddedUS float64 `json:"paced_p99_added_us"`
	}
	Memory []struct {
		Name               string
		Start, Middle, End int64
	}
}

func benchGateway(args ...string) (*gatewayReport, error) {
	out, err := run("..", "go", append([]string{"run", "./cmd/limpet", "bench", "gateway", "--json"}, args...)...)
	if err != nil {
		return nil, err
	}
	r := new(gatewayReport)
	return r, json.Unmarshal(out, r)
}

func replay() (string, error) {
	return table("", "Replay", 6)
}

func stores() (string, error) {
	return table("A record of 200 bytes in stores of a million; then sessions and ephemeral keys as a guard makes them. A session in use is\n"+
		"one of the 16,384 at most that a guard keeps decoded.\n\n", "Memstore|Boltstore|Session", 6)
}

func million() (string, error) {
	return table("A million logins on a boltstore, one run. Then it is closed, opened anew (ms/open), and used by a thousand of them.\n\n", "Million", 1)
}

func redis() (string, error) {
	return table("A redis-server on the loopback interface, on the same CPUs, and 64 callers at a time. cpu-us/call is the client's own, redis-cpu-us/call\n"+
		"that of Redis. set and script are the bare clients: a key of its own for each value (SET NX PX), and a script like the store's.\n"+
		"limpet/request is what a proven request asks of the store: binding and ephemeral key, from memory, and the nonce spent.\n\n", "Redis$", 6)
}

func redisMemory() (string, error) {
	return table("What Redis allocates: for a spent value at so many a second (beside one, for a key of its own), and for sessions as a guard\n"+
		"makes them.\n\n", "RedisBytes", 6)
}

func tpm() (string, error) {
	return table("Counted at the transport. Software TPM; a chip is 10 to 1,000 times slower for each command, not in their number.\n\n", "TPM", 6)
}

func fidoKeys() (string, error) {
	r, err := benchmarks(".", ".", "FIDO", 6, "-benchtime", "50x")
	if err != nil {
		return "", err
	}
	var doc strings.Builder
	doc.WriteString("What a security token's operations cost the TPM once it runs, policies, PIN and counter included (one signature\n" +
		"in 256 steps the TPM's counter, which is two commands more). Below, for one authentication, what tokens\n" +
		"cost that make the parent of a key anew from each handle and use it twice, the first time to see whether the handle is theirs; they have\n" +
		"neither PIN nor policy nor encryption. Software TPM; a chip is 10 to 1,000 times slower for each command, slowest where a key is made (CreatePrimary) or signs.\n\n" +
		"| | commands | of them Load | Sign | CreatePrimary | ms |\n|---|---|---|---|---|---|\n")
	for _, op := range []struct{ name, words string }{
		{"check-only", "is it ours (U2F check-only, allow and exclude lists)"},
		{"authenticate", "authenticate (U2F, getAssertion)"},
		{"authenticate-verified", "authenticate, key that needs the PIN"},
		{"pin", "check a PIN"},
		{"register", "register"},
		{"register-verified", "register, key that needs the PIN"},
		{"hmac-secret", "one output of hmac-secret"},
		{"peers-authenticate", "authenticate, a parent from each handle"},
	} {
		of := func(unit string) float64 { return r.of("FIDO/"+op.name, unit) }
		fmt.Fprintf(&doc, "| %s | %.2f | %.0f | %.0f | %.0f | %.2f |\n", op.words, of("commands/op"), of("loads/op"), of("signs/op"), of("primaries/op"), of("ns/op")/1e6)
	}
	fmt.Fprintln(&doc, "\nHow many tries of the PIN are left is read from the TPM each time a host or the owner asks, in three commands that need no key.")
	fmt.Fprintf(&doc, "\nOne authentication beside a parent from each handle: %.2f of the time.\n", r.ratio("FIDO/authenticate", "FIDO/peers-authenticate"))
	host, err := benchmarks(".", ".", "Libfido2", 6, "-benchtime", "50x")
	if err != nil {
		return "", err
	}
	doc.WriteString("\nWhat a program with libfido2 waits for, from its call to the answer: of a token with its keys in the software TPM, and of one with its keys in\n" +
		"files (`--insecure-software`). Reports go over a datagram socket, and the user says yes at once. With the PIN, each call sends it anew; in files\n" +
		"it is made slow to guess. Between calls is a rest: of answers that follow each other at once, a report goes each millisecond, as over USB.\n\n" +
		"| | software TPM, ms | files, ms |\n|---|---|---|\n")
	for _, op := range []struct{ name, words string }{
		{"info", "what are you (getInfo)"},
		{"register", "register"},
		{"register-verified", "register, with the PIN"},
		{"authenticate", "authenticate"},
		{"authenticate-verified", "authenticate, with the PIN"},
		{"hmac-secret", "authenticate, with one output of hmac-secret"},
	} {
		fmt.Fprintf(&doc, "| %s | %.2f | %.2f |\n", op.words, host.of("Libfido2/tpm/"+op.name, "ns/op")/1e6, host.of("Libfido2/software/"+op.name, "ns/op")/1e6)
	}
	return doc.String(), nil
}

func handshakes() (string, error) {
	return table("Connecting over loopback, proving, closing; both ends in one process, by its CPU time, and ratios of rounds that were run in turn.\n"+
		"TLS is 1.3 with one ECDSA certificate, where limpet-ecdsa proves both ends. Then 512 MiB in writes of 64 KiB: GB/s by the clock, one\n"+
		"core each end; GB/s/core by the CPU time of both ends together, TCP included. gmac and hmac are the tags alone.\n\n", "Handshake|Records", 6)
}

func browserSDK() (string, error) {
	return table("fetch in a page of Chromium, over HTTP/2 on the loopback interface, with a proof and without in turns: medians of 1000 pairs, server and\n"+
		"browser on the same CPUs. before is what the page does before the request is sent; added is what it waits longer in all, server and\n"+
		"larger headers included. post has a body of 1 KiB. first is before of a page's first request: the key is read from IndexedDB, an\n"+
		"ephemeral key made and delegated to, the key of requests agreed.\n\n", "SDK", 6)
}

// table returns intro and a table of this module's benchmarks.
func table(intro, pattern string, count int) (string, error) {
	r, err := benchmarks(".", ".", pattern, count, "-benchtime", "1x", "-timeout", "30m")
	if err != nil {
		return "", err
	}
	var doc strings.Builder
	doc.WriteString(intro)
	r.table(&doc)
	return doc.String(), nil
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

// row writes a benchmark beside the bare one.
func (r *results) row(doc *strings.Builder, name, limpet, bare string) {
	fmt.Fprintf(doc, "| %s | %.0f | %.0f | %.2f | %.0f (bare %.0f) |\n", name, r.of(bare, "ns/op"), r.of(limpet, "ns/op"), r.ratio(limpet, bare),
		r.of(limpet, "allocs/op"), r.of(bare, "allocs/op"))
}

// table writes every benchmark with what it reports of its own.
func (r *results) table(doc *strings.Builder) {
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
