package redisstore

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestURL(t *testing.T) {
	for _, c := range []struct {
		url       string
		addresses string
		user      string
		password  string
		master    string
		database  int
		tls       bool
	}{
		{url: "redis://localhost", addresses: "localhost:6379"},
		{url: "redis://localhost/", addresses: "localhost:6379"},
		{url: "redis://10.0.0.1:7000/3", addresses: "10.0.0.1:7000", database: 3},
		{url: "redis://[::1]:7000", addresses: "[::1]:7000"},
		{url: "redis://[::1]", addresses: "[::1]:6379"},
		{url: "rediss://alice:p%40ss%2F@db.example.com", addresses: "db.example.com:6379", user: "alice", password: "p@ss/", tls: true},
		{url: "redis://:secret@localhost", addresses: "localhost:6379", password: "secret"},
		{url: "redis-cluster://a,b:7001,c", addresses: "a:6379 b:7001 c:6379"},
		{url: "rediss-cluster://u:p@a", addresses: "a:6379", user: "u", password: "p", tls: true},
		{url: "redis-sentinel://a,b:1/mymaster", addresses: "a:26379 b:1", master: "mymaster"},
		{url: "rediss-sentinel://a/mymaster/2", addresses: "a:26379", master: "mymaster", database: 2, tls: true},
	} {
		o, err := parseURL(c.url, new(Options))
		if err != nil {
			t.Errorf("%s: %v", c.url, err)
			continue
		}
		if got := strings.Join(o.InitAddress, " "); got != c.addresses || o.Username != c.user || o.Password != c.password ||
			o.Sentinel.MasterSet != c.master || o.SelectDB != c.database || (o.TLSConfig != nil) != c.tls {
			t.Errorf("%s: %+v", c.url, o)
		}
	}
	for _, bad := range []string{"", "redis", "redis:localhost", "http://localhost", "REDIS://localhost", "redis://", "redis://:6379", "redis://h:0", "redis://h:65536",
		"redis://h:x", "redis://a,b", "redis://h/x", "redis://h/-1", "redis://h/1/2", "redis://h?db=1", "redis://h/1?x", "redis://h#x", "redis-cluster://a/1",
		"redis-cluster://a,,b", "redis-sentinel://a", "redis-sentinel://a/", "redis-sentinel://a/m/x", "redis://u:%zz@h", "redisss://h"} {
		if o, err := parseURL(bad, new(Options)); err == nil {
			t.Errorf("%q: %+v", bad, o.InitAddress)
		}
	}
	if o, err := parseURL("redis://u:url@h", &Options{Password: "options"}); err != nil || o.Password != "options" || o.Username != "u" {
		t.Errorf("the password is %q, %v", o.Password, err)
	}
}

// TestSecretsNotInErrors: not even where Redis repeats what it was sent.
func TestSecretsNotInErrors(t *testing.T) {
	const secret = "hunter2-is-the-password"
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					if strings.HasPrefix(lines.Text(), "*") {
						fmt.Fprintf(conn, "-ERR unknown command, with args beginning with: AUTH %s\r\n", secret)
					}
				}
			}()
		}
	}()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, url := range []string{
		"redis://u:" + secret + "@" + echo.Addr().String(),
		"redis://u:" + secret + "@" + closed.Addr().String(),
		"redis-cluster://u:" + secret + "@" + closed.Addr().String(),
		"redis-sentinel://u:" + secret + "@" + closed.Addr().String() + "/m",
		"redis-sentinel://u:" + secret + "@" + echo.Addr().String() + "/m",
		"redis://u:" + secret + "%zz@h", "redis://u:" + secret + "@h:x", "redis://" + secret + "?", "http://u:" + secret + "@h", secret,
		"redis://u:" + secret + "@h/x", "redis://u:" + secret + "/@h",
	} {
		var log bytes.Buffer
		start := time.Now()
		_, err := Open(t.Context(), url, &Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err == nil || strings.Contains(err.Error(), secret) || strings.Contains(fmt.Sprintf("%+v %#v", err, err), secret) || strings.Contains(log.String(), secret) {
			t.Errorf("%s: %v, logged %s", strings.ReplaceAll(url, secret, "SECRET"), err, &log)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s took %v", strings.ReplaceAll(url, secret, "SECRET"), took)
		}
	}
}

func TestPartitions(t *testing.T) {
	if got := slot("123456789"); got != 0x31c3 {
		t.Errorf("slot of 123456789 = %#x, want 0x31c3", got)
	}
	for i, tag := range partitionTags {
		if at := int(slot(tag)); at/(16384/partitionCount) != i {
			t.Errorf("partition %d, tag %s, lies in slot %d", i, tag, at)
		}
	}
	if sorted := slices.Sorted(slices.Values(partitionTags[:])); len(slices.Compact(sorted)) != partitionCount {
		t.Error("two partitions share a tag")
	}
}

// TestEpochRecord: a record becomes part of a script, so nothing else may pass
// for one.
func TestEpochRecord(t *testing.T) {
	id := strings.Repeat("0a", replIDSize/2)
	e, err := newEpoch(1234, id)
	if err != nil {
		t.Fatal(err)
	}
	again, err := parseEpoch(e.record)
	if err != nil || *again != *e || e.floor != 1234 {
		t.Errorf("%+v read as %+v, %v", e, again, err)
	}
	good := "1 0123456789abcdef01234567 "
	if _, err := parseEpoch(good + "0 " + id); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "1", good, good + "0", good + "x " + id, good + "1  " + id, good + "01 " + id, good + "+1 " + id, "2" + good[1:] + "0 " + id,
		"1 0123456789abcdef0123456' 0 " + id, "1 0123456789abcdef01234567\n0 " + id, good + "9223372036854775808 " + id, good + "0 " + id[1:],
		good + "0 '" + id[1:], good + "0 " + id + " "} {
		if _, err := parseEpoch(bad); err == nil {
			t.Errorf("%q passed", bad)
		}
	}
}
