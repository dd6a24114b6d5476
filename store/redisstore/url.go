package redisstore

import (
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/redis/rueidis"
)

// parseURL reads the forms of the package's documentation. Its errors repeat
// nothing of the URL, where a password may be.
func parseURL(text string, opts *Options) (o rueidis.ClientOption, err error) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		return o, errors.New("limpet: redisstore: not a URL")
	}
	kind, secure := scheme, false
	if after, ok := strings.CutPrefix(scheme, "rediss"); ok {
		kind, secure = "redis"+after, true
	}
	port := "6379"
	switch kind {
	case "redis":
		o.ForceSingleClient = true
	case "redis-cluster":
	case "redis-sentinel":
		port = "26379"
	default:
		return o, errors.New("limpet: redisstore: the URL must begin with redis://, redis-sentinel:// or redis-cluster://, or with rediss for TLS")
	}
	authority, path, _ := strings.Cut(rest, "/")
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, password, _ := strings.Cut(authority[:at], ":")
		authority = authority[at+1:]
		if o.Username, err = url.PathUnescape(user); err == nil {
			o.Password, err = url.PathUnescape(password)
		}
		if err != nil {
			return o, errors.New("limpet: redisstore: the URL's user or password is not percent-encoded")
		}
	}
	if opts.Password != "" {
		o.Password = opts.Password
	}
	if strings.ContainsAny(rest[len(rest)-len(path):], "?#") || strings.ContainsAny(authority, "?#") {
		return o, errors.New("limpet: redisstore: the URL takes no parameters")
	}
	for host := range strings.SplitSeq(authority, ",") {
		address, err := withPort(host, port)
		if err != nil {
			return o, err
		}
		o.InitAddress = append(o.InitAddress, address)
	}
	parts := strings.Split(path, "/")
	switch kind {
	case "redis":
		if len(o.InitAddress) > 1 {
			return o, errors.New("limpet: redisstore: several hosts are for redis-cluster:// and redis-sentinel:// URLs")
		}
	case "redis-cluster":
		if path != "" {
			return o, errors.New("limpet: redisstore: a cluster has no database numbers")
		}
	case "redis-sentinel":
		if o.Sentinel.MasterSet, err = url.PathUnescape(parts[0]); err != nil || parts[0] == "" {
			return o, errors.New("limpet: redisstore: a redis-sentinel:// URL ends in the name of the master: redis-sentinel://HOST,HOST/NAME")
		}
		parts = parts[1:]
	}
	if len(parts) > 0 && parts[0] != "" {
		if o.SelectDB, err = strconv.Atoi(parts[0]); err != nil || o.SelectDB < 0 || len(parts) > 1 {
			return o, errors.New("limpet: redisstore: what follows the host must be a database number")
		}
	}
	if secure {
		o.TLSConfig = opts.TLS
		if o.TLSConfig == nil {
			o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		o.Sentinel.TLSConfig = o.TLSConfig
	}
	return o, nil
}

func withPort(host, port string) (string, error) {
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(strings.Trim(host, "[]"), port)
	}
	name, port, err := net.SplitHostPort(host)
	if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 || name == "" {
		return "", errors.New("limpet: redisstore: the URL names no host, or no port from 1 to 65535")
	}
	return host, nil
}
