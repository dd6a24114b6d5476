package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/limpet-auth/limpet/internal/gatewaybench"
)

func benchCommand() *cobra.Command {
	cmd := group("bench", "measure what Limpet costs on this machine", `Bench measures what Limpet costs on this machine.

  limpet bench gateway`)
	cmd.AddCommand(benchGatewayCommand(), benchPeerCommand())
	return cmd
}

type benchGateway struct {
	rounds      int
	requests    int
	connections int
	store       string
	wire        string
	json        bool
}

func benchGatewayCommand() *cobra.Command {
	var b benchGateway
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "measure a gateway beside a bare reverse proxy",
		Long: `Gateway starts a small app, a bare reverse proxy before it (Go's
httputil.ReverseProxy with the gateway's limits, timeouts and buffers), and
limpet gateway, each a process of its own on the loopback interface. It loads the
two in turn, round by round: the proxy, the gateway with sessions that are not
bound, and the gateway with a proof by HMAC on each request.

  limpet bench gateway
  limpet bench gateway --requests 1000000 --rounds 100

It tells the CPU time of the process for each request, how many requests a
second it takes, and latencies: with every connection sending as soon as it has
its answer, and at half the rate that the bare proxy takes. CPU time includes
garbage collection, for which the gateway waits a little longer. Requests are GETs,
made and proven before they are sent, and the bare proxy gets the same ones without
proofs. The memory is that of the process after the warm-up, half-way, and at
the end; a gateway remembers the nonces of the last minute, some 12 bytes each.

Servers and load share this machine. Trust the ratios, which are medians of the
rounds, not the times. CPU time is told on Unix, memory on Linux.`,
		Args: nothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return b.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.IntVar(&b.rounds, "rounds", 40, "how many `times` each server has its turn")
	f.IntVar(&b.requests, "requests", 400_000, "how `many` requests each server gets under full load, over all rounds")
	f.IntVar(&b.connections, "connections", 64, "how `many` connections send at the same time, each with a session of its own")
	choiceVar(cmd, &b.store, "store", "the gateway's store, in memory or in a file", "mem", "bolt")
	choiceVar(cmd, &b.wire, "wire", "how requests are proven", "httpsig", "hw-sign")
	yesNoVar(cmd, &b.json, "json", "print the figures as JSON, with the memory after each round")
	return cmd
}

func (b *benchGateway) run(ctx context.Context) (err error) {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	cfg := gatewaybench.Config{Rounds: b.rounds, Requests: b.requests, Connections: b.connections, Wire: wires[b.wire]}
	if err := cfg.Check(); err != nil {
		return usage("%w", err)
	}
	dir, err := os.MkdirTemp("", "limpet-bench-") // mode 0700
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store := "mem:"
	if b.store == "bolt" {
		store = "bolt:" + filepath.Join(dir, "gateway.db")
	}
	cfg.Command = func(role, upstream string) *exec.Cmd {
		cmd := exec.Command(self, "bench", "peer", role, upstream, store)
		for _, variable := range os.Environ() { // this user's settings are not the gateway's
			if !strings.HasPrefix(variable, "LIMPET_") {
				cmd.Env = append(cmd.Env, variable)
			}
		}
		cmd.Env = append(cmd.Env, "XDG_CONFIG_HOME="+dir, "XDG_STATE_HOME="+dir)
		return cmd
	}
	cfg.Progress = func(round int) {
		if round == 0 {
			note("warming up")
		} else {
			note("round %d of %d", round, b.rounds)
		}
	}
	r, err := gatewaybench.Run(ctx, cfg)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	if b.json {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		err = e.Encode(r)
	} else {
		err = printBench(os.Stdout, r, b.store, b.wire)
	}
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	return nil
}

func printBench(out io.Writer, r *gatewaybench.Report, store, wire string) error {
	told := func(format string, v float64) string {
		if v == 0 {
			return "not told"
		}
		return fmt.Sprintf(format, v)
	}
	mib := func(n int64) string { return told("%.1f MiB", float64(n)/(1<<20)) }
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d requests to each server in %d rounds, %d connections, store %s, wire %s; %s on %d CPUs\n\n", r.Requests, r.Rounds, r.Connections, store, wire, r.Go, r.CPUs)
	fmt.Fprintln(w, "SERVER\tCPU/REQUEST\tREQUESTS/S\tP50, P99 FULL LOAD\tP50, P99 HALF LOAD")
	for _, s := range r.Servers {
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%.2f, %.2f ms\t%.2f, %.2f ms\n", s.Name, told("%.1f µs", s.CPU), s.Rate,
			s.FullP50/1000, s.FullP99/1000, s.PacedP50/1000, s.PacedP99/1000)
	}
	fmt.Fprintln(w, "\nBESIDE THE BARE PROXY\tCPU\tCPU, BEST ROUNDS\tREQUESTS/S\tADDED TO P99, HALF LOAD")
	for _, s := range r.Ratios {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.3f\t%.2f ms\n", s.Name, told("%.3f", s.CPU), told("%.3f", s.BestCPU), s.Rate, s.AddedUS/1000)
	}
	fmt.Fprintln(w, "\nMEMORY (RSS)\tSTART\tMIDDLE\tEND")
	for _, m := range r.Memory {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", m.Name, mib(m.Start), mib(m.Middle), mib(m.End))
	}
	return w.Flush()
}

// benchPeerCommand is a process of a measurement, which ends with the one that
// started it.
func benchPeerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "peer ROLE UPSTREAM STORE",
		Short:  "be a server of limpet bench",
		Hidden: true,
		Args:   exactly(3, "role, upstream and store"),
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(os.Interrupt) // the terminal sends it to all; it is for the one who measures
			ctx, end := context.WithCancel(cmd.Context())
			defer end()
			go func() {
				gatewaybench.Attend(os.Stdin, os.Stdout)
				end()
			}()
			var h http.Handler
			switch args[0] {
			case gatewaybench.Gateway:
				root := newRoot()
				root.SetArgs([]string{"gateway", "--listen", "127.0.0.1:0", "--upstream", args[1], "--store", args[2],
					"--session-cookie", gatewaybench.SessionCookie, "--lease", "24h", "--log-level", "warn"})
				return root.ExecuteContext(ctx)
			case gatewaybench.App:
				h = gatewaybench.NewApp()
			case gatewaybench.Bare:
				upstream, err := url.Parse(args[1])
				if err != nil {
					return usage("%w", err)
				}
				h = gatewaybench.NewBare(upstream)
			default:
				return usage("no such role")
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return fmt.Errorf("cannot listen: %w", err)
			}
			srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
			note("listening on http://%s", l.Addr())
			context.AfterFunc(ctx, func() { srv.Close() })
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
	}
}
