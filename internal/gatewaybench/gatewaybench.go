// Package gatewaybench measures what a gateway costs: it loads one, and beside it
// a bare httputil.ReverseProxy, each a process of its own before the same app.
package gatewaybench

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"time"

	"github.com/limpet-auth/limpet/client"
)

// Config says what is measured. All fields must be set.
type Config struct {
	Rounds      int // over all servers, interleaved
	Requests    int // to each server, over all rounds
	Connections int // that send at the same time, each with a session of its own
	Wire        client.Wire

	// Command returns the command of a process: one of App, Bare and Gateway, the
	// latter two before upstream. The process says on standard error that it is
	// "listening on URL", and calls [Attend].
	Command func(role, upstream string) *exec.Cmd

	Progress func(round int) // is called before each round; 0 is the warm-up
}

// What a process is.
const (
	App     = "app"
	Bare    = "bare"
	Gateway = "gateway"
)

// MaxShare is how many requests a server can get in one round: their proofs are
// made before it begins, and hold for a minute.
const MaxShare = 100_000

// Check says what is wrong with a configuration.
func (c *Config) Check() error {
	switch {
	case c.Rounds < 1 || c.Connections < 1 || c.Connections > 1000:
		return errors.New("want at least one round, and 1 to 1000 connections")
	case c.Requests/c.Rounds < c.Connections:
		return errors.New("want at least one request a round for each connection")
	case c.Requests/c.Rounds > MaxShare:
		return fmt.Errorf("no more than %d requests a round: their proofs are made before it, and hold for a minute", MaxShare)
	}
	return nil
}

// Report is what came out. Times are in microseconds.
type Report struct {
	Go          string   `json:"go"`
	CPUs        int      `json:"cpus"`
	Rounds      int      `json:"rounds"`
	Requests    int      `json:"requests"` // that each server has answered under full load
	Connections int      `json:"connections"`
	Servers     []Server `json:"servers"`
	Ratios      []Ratio  `json:"ratios"` // to the bare proxy
	Memory      []Memory `json:"memory"`
}

// Server is one that was measured. Figures are medians over the rounds.
type Server struct {
	Name string  `json:"name"`
	CPU  float64 `json:"cpu_us"`     // of its process for one request; 0 where that is not told
	Rate float64 `json:"requests_s"` // as many as it takes

	// Latencies, from the moment that a request is due. Full is with each
	// connection sending as soon as it has its answer; Paced at half the rate that
	// the bare proxy takes.
	FullP50  float64 `json:"full_p50_us"`
	FullP99  float64 `json:"full_p99_us"`
	PacedP50 float64 `json:"paced_p50_us"`
	PacedP99 float64 `json:"paced_p99_us"`
}

// Ratio compares a server with the bare proxy: the median of the ratios round by
// round and, of each server, the best round.
type Ratio struct {
	Name    string  `json:"name"`
	CPU     float64 `json:"cpu"`
	BestCPU float64 `json:"best_cpu"`
	Rate    float64 `json:"requests_s"`
	AddedUS float64 `json:"paced_p99_added_us"` // the median of the differences
}

// Memory is what a process holds, in bytes of RAM; 0 where that is not told.
type Memory struct {
	Name   string  `json:"name"`
	Start  int64   `json:"start"` // after the warm-up
	Middle int64   `json:"middle"`
	End    int64   `json:"end"`
	Rounds []int64 `json:"rounds"` // after each
}

// What of a round's requests is sent at a pace besides, and to warm up before.
const (
	pacedShare = 8
	warmShare  = 4
)

// lane is a server with those who visit it, and what was measured.
type lane struct {
	name     string
	server   *process
	visitors []*visitor

	cpu, rate, fullP50, fullP99, pacedP50, pacedP99 []float64 // a round each
}

// Run measures. If ctx is done before it has, the error is that of ctx. The
// processes have ended when it returns.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	r, err := run(ctx, cfg)
	if ctx.Err() != nil {
		return nil, ctx.Err() // what came of that is no news
	}
	return r, err
}

func run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	var running []*process
	defer func() {
		stop()
		for _, p := range running {
			p.wait()
		}
	}()
	start := func(role, upstream string) (*process, error) {
		p, err := startProcess(ctx, cfg.Command(role, upstream))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", role, err)
		}
		running = append(running, p)
		return p, nil
	}
	app, err := start(App, "")
	if err != nil {
		return nil, err
	}
	bare, err := start(Bare, app.url)
	if err != nil {
		return nil, err
	}
	gateway, err := start(Gateway, app.url)
	if err != nil {
		return nil, err
	}
	lanes := []*lane{
		{name: "bare reverse proxy", server: bare},
		{name: "gateway, unbound sessions", server: gateway},
		{name: "gateway, HMAC proofs", server: gateway},
	}
	people, err := newCrowd(ctx, cfg.Wire)
	if err != nil {
		return nil, err
	}
	defer people.close()
	for range cfg.Connections {
		lanes[0].visitors = append(lanes[0].visitors, people.stranger(bare))
		lanes[1].visitors = append(lanes[1].visitors, people.stranger(gateway))
		bound, err := people.login(ctx, gateway)
		if err != nil {
			return nil, fmt.Errorf("log in: %w", err)
		}
		lanes[2].visitors = append(lanes[2].visitors, bound)
	}
	if err := lanes[2].visitors[0].provesSomething(ctx); err != nil {
		return nil, err
	}

	memory := []Memory{{Name: "bare reverse proxy"}, {Name: "gateway"}}
	for round := range cfg.Rounds + 1 {
		cfg.Progress(round)
		n := cfg.Requests / cfg.Rounds
		if round == 0 {
			n = max(n/warmShare, cfg.Connections)
		}
		for i := range lanes { // each has its turn as the first
			if err := lanes[(i+round)%len(lanes)].full(ctx, n); err != nil {
				return nil, err
			}
		}
		pace := median(lanes[0].rate) / 2
		for i := range lanes {
			if err := lanes[(i+round)%len(lanes)].paced(ctx, max(n/pacedShare, cfg.Connections), pace); err != nil {
				return nil, err
			}
		}
		for i, p := range []*process{bare, gateway} {
			used, err := p.used()
			if err != nil {
				return nil, err
			}
			m := &memory[i]
			if m.End = used.rss; round == 0 {
				m.Start = used.rss
			} else {
				m.Rounds = append(m.Rounds, used.rss)
			}
			if round == cfg.Rounds/2 {
				m.Middle = used.rss
			}
		}
		if round == 0 {
			for _, l := range lanes {
				*l = lane{name: l.name, server: l.server, visitors: l.visitors}
			}
		}
	}
	return report(cfg, lanes, memory), nil
}

func report(cfg Config, lanes []*lane, memory []Memory) *Report {
	r := &Report{Go: runtime.Version(), CPUs: runtime.NumCPU(), Rounds: cfg.Rounds, Requests: cfg.Requests / cfg.Rounds * cfg.Rounds,
		Connections: cfg.Connections, Memory: memory}
	bare := lanes[0]
	for _, l := range lanes {
		r.Servers = append(r.Servers, Server{Name: l.name, CPU: median(l.cpu), Rate: median(l.rate),
			FullP50: median(l.fullP50), FullP99: median(l.fullP99), PacedP50: median(l.pacedP50), PacedP99: median(l.pacedP99)})
		if l == bare {
			continue
		}
		ratio := Ratio{Name: l.name, Rate: median(pairs(l.rate, bare.rate, over)), AddedUS: median(pairs(l.pacedP99, bare.pacedP99, less))}
		if slices.Min(bare.cpu) > 0 {
			ratio.CPU, ratio.BestCPU = median(pairs(l.cpu, bare.cpu, over)), slices.Min(l.cpu)/slices.Min(bare.cpu)
		}
		r.Ratios = append(r.Ratios, ratio)
	}
	return r
}

func over(a, b float64) float64 { return a / b }
func less(a, b float64) float64 { return a - b }

// pairs compares a and b round by round.
func pairs(a, b []float64, compare func(a, b float64) float64) []float64 {
	c := make([]float64, len(a))
	for i := range a {
		c[i] = compare(a[i], b[i])
	}
	return c
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// percentile of sorted durations, in microseconds.
func percentile(sorted []time.Duration, p int) float64 {
	return float64(sorted[(len(sorted)-1)*p/100].Nanoseconds()) / 1000
}
