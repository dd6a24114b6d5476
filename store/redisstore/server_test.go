//go:build unix

package redisstore

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// redisServer is a redis-server of the test's own.
type redisServer struct {
	t    testing.TB
	dir  string
	port int
	args []string
	cmd  *exec.Cmd
}

// startRedis starts a redis-server on a free port with these settings, which
// ends with the test.
func startRedis(t testing.TB, settings ...string) *redisServer {
	t.Helper()
	s := &redisServer{t: t, dir: t.TempDir(), port: freePort(t)}
	s.args = append([]string{"--port", strconv.Itoa(s.port), "--bind", "127.0.0.1", "--dir", s.dir, "--logfile", "log",
		"--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"}, settings...)
	t.Cleanup(s.kill)
	s.start()
	return s
}

func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		// Not one of those that connections going out take, 32768 and up: nobody is
		// to have it when a server stops and starts again.
		port := 10000 + rand.N(22000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func (s *redisServer) start() {
	s.t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		s.t.Fatal("redis-server is not installed: this test needs a real one (Debian, Ubuntu: apt-get install --no-install-recommends redis-server)")
	}
	s.cmd = exec.Command("redis-server", s.args...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.eventually("answers", func() bool { return strings.Contains(s.try("ping"), "PONG") })
}

func (s *redisServer) kill() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
	}
}

// stop makes it stand still, and returns when it does: a signal alone leaves a
// busy machine's process time to answer some more. resume makes it go on.
func (s *redisServer) stop() {
	s.t.Helper()
	s.cmd.Process.Signal(syscall.SIGSTOP)
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(s.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		s.t.Fatalf("the Redis at %s did not stop: status %#x, %v", s.addr(), status, err)
	}
}

func (s *redisServer) resume() { s.cmd.Process.Signal(syscall.SIGCONT) }

func (s *redisServer) addr() string { return fmt.Sprint("127.0.0.1:", s.port) }
func (s *redisServer) url() string  { return "redis://" + s.addr() }

// do runs a command of Redis and returns its answer as redis-cli prints it.
func (s *redisServer) do(args ...string) string {
	s.t.Helper()
	out := s.try(args...)
	if strings.HasPrefix(out, "ERR") || strings.HasPrefix(out, "Could not connect") {
		s.t.Fatalf("%v: %s", args, out)
	}
	return out
}

func (s *redisServer) try(args ...string) string {
	cmd := exec.Command("redis-cli", append([]string{"-p", strconv.Itoa(s.port)}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Run()
	return strings.TrimSpace(out.String())
}

func (s *redisServer) eventually(what string, f func() bool) {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	s.t.Fatalf("the Redis at %s never %s; its log:\n%s", s.addr(), what, log)
}

// follow makes s a replica of master.
func (s *redisServer) follow(master *redisServer) {
	s.t.Helper()
	s.do("replicaof", "127.0.0.1", strconv.Itoa(master.port))
	s.eventually("followed its master", func() bool {
		return strings.Contains(s.do("info", "replication"), "master_link_status:up") && strings.Contains(master.do("info", "replication"), "state=online")
	})
}

// redisCluster has three masters, each with a replica, that are replaced when
// they have not answered for the node timeout.
type redisCluster struct {
	masters, replicas []*redisServer
}

func startCluster(t testing.TB, nodeTimeout time.Duration) *redisCluster {
	t.Helper()
	c := new(redisCluster)
	var all []*redisServer
	for i := range 6 {
		s := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(freePort(t)),
			"--cluster-node-timeout", strconv.FormatInt(nodeTimeout.Milliseconds(), 10), "--appendonly", "yes")
		all = append(all, s)
		if i < 3 {
			c.masters = append(c.masters, s)
		} else {
			c.replicas = append(c.replicas, s)
		}
	}
	for i, s := range all {
		s.do("cluster", "set-config-epoch", strconv.Itoa(i+1))
	}
	for i, s := range c.masters {
		s.do("cluster", "addslotsrange", strconv.Itoa(i*16384/3), strconv.Itoa((i+1)*16384/3-1))
	}
	first := all[0]
	for _, s := range all[1:] {
		s.do("cluster", "meet", "127.0.0.1", strconv.Itoa(first.port), s.busPort(first))
	}
	for _, s := range all {
		s.eventually("met the others", func() bool { return strings.Contains(s.do("cluster", "info"), "cluster_known_nodes:6") })
	}
	for i, s := range c.replicas {
		master := c.masters[i].do("cluster", "myid")
		s.eventually("became a replica", func() bool { return s.try("cluster", "replicate", master) == "OK" })
	}
	for _, s := range all {
		s.eventually("saw the cluster whole", func() bool {
			return strings.Contains(s.do("cluster", "info"), "cluster_state:ok") && strings.Count(s.do("cluster", "nodes"), "slave") == 3
		})
	}
	for i, s := range c.replicas {
		s.eventually("followed its master", func() bool {
			return strings.Contains(s.do("info", "replication"), "master_link_status:up") && strings.Contains(c.masters[i].do("info", "replication"), "state=online")
		})
	}
	return c
}

// busPort returns the cluster port of another, which the test chose freely.
func (s *redisServer) busPort(other *redisServer) string {
	for i, arg := range other.args {
		if arg == "--cluster-port" {
			return other.args[i+1]
		}
	}
	return ""
}

func (c *redisCluster) url() string {
	var addrs []string
	for _, s := range append(c.masters, c.replicas...) {
		addrs = append(addrs, s.addr())
	}
	return "redis-cluster://" + strings.Join(addrs, ",")
}

// flush empties every master that runs.
func (c *redisCluster) flush() {
	for _, s := range c.masters {
		s.do("flushall")
	}
}

// startSentinels starts a master, its replica and three sentinels, which call
// it "mymaster".
func startSentinels(t testing.TB) (master, replica *redisServer, url string) {
	t.Helper()
	master = startRedis(t, "--appendonly", "yes")
	replica = startRedis(t, "--appendonly", "yes", "--replicaof", "127.0.0.1 "+strconv.Itoa(master.port))
	replica.eventually("followed its master", func() bool {
		return strings.Contains(replica.do("info", "replication"), "master_link_status:up") && strings.Contains(master.do("info", "replication"), "state=online")
	})
	var addrs []string
	for range 3 {
		s := &redisServer{t: t, dir: t.TempDir(), port: freePort(t)}
		config := filepath.Join(s.dir, "sentinel.conf")
		text := fmt.Sprintf("port %d\nbind 127.0.0.1\ndir %s\nlogfile log\nsentinel monitor mymaster 127.0.0.1 %d 2\n"+
			"sentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 3000\n", s.port, s.dir, master.port)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.args = []string{config, "--sentinel"}
		t.Cleanup(s.kill)
		s.start()
		addrs = append(addrs, s.addr())
		s.eventually("saw the replica", func() bool { return strings.Contains(s.do("sentinel", "master", "mymaster"), "num-slaves\n1") })
		if len(addrs) == 3 {
			s.eventually("saw the other sentinels", func() bool {
				return strings.Contains(s.do("sentinel", "master", "mymaster"), "num-other-sentinels\n2")
			})
		}
	}
	return master, replica, "redis-sentinel://" + strings.Join(addrs, ",") + "/mymaster"
}
