package handshake

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The wire of Python's multiprocessing.connection: frames of a length in four
// bytes and so many more. The listener has the client answer its challenge, then
// answers the client's. From 3.12 on a challenge names its digest, and the answer
// covers that name; before it was HMAC-MD5 over 20 bytes.

const (
	pythonChallenge = "#CHALLENGE#"
	pythonWelcome   = "#WELCOME#"
	pythonFailure   = "#FAILURE#"

	maxFrame     = 256 // bytes, as Python has it
	pythonRandom = 40
)

// asked are the challenges that clients of this process wait for answers to. No
// client answers them: who is connected to two could pass between them, without
// the secret, what a server says.
var asked sync.Map

var errMD5 = errors.New("the peer can do or wants HMAC-MD5 only, as Python before 3.12, and Config.MD5 is not set")

func clientPython(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error) {
	err := answerPython(ctx, conn, cfg, true)
	if err == nil {
		err = challengePython(ctx, conn, cfg, true)
	}
	if _, ok := errors.AsType[errHeard](err); ok {
		err = refused(err)
	}
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: conn, peer: cfg.Peer}, nil
}

func serverPython(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error) {
	if err := challengePython(ctx, conn, cfg, false); err != nil {
		return nil, err
	}
	if err := answerPython(ctx, conn, cfg, false); err != nil {
		return nil, err
	}
	return &Conn{Conn: conn, peer: cfg.Peer}, nil
}

// challengePython has the peer prove itself.
func challengePython(ctx context.Context, conn net.Conn, cfg *Config, client bool) error {
	frame := append(make([]byte, 0, 64), pythonChallenge+"{sha256}"...)
	frame = frame[:len(frame)+pythonRandom]
	rand.Read(frame[len(frame)-pythonRandom:]) // never fails
	if client {
		key := string(frame[len(pythonChallenge):])
		asked.Store(key, nil)
		defer asked.Delete(key)
	}
	if err := writeFrame(conn, frame); err != nil {
		return err
	}
	response, began, err := readFrame(conn)
	if err != nil {
		return err
	}
	err = checkPython(ctx, cfg, frame[len(pythonChallenge):], response)
	if err != nil {
		linger(ctx, began, err)
		writeFrame(conn, []byte(pythonFailure)) // what it fails with is told already
		return err
	}
	return writeFrame(conn, []byte(pythonWelcome))
}

// checkPython checks the answer to a challenge, which covers the digest's name.
func checkPython(ctx context.Context, cfg *Config, challenge, response []byte) error {
	digest, tag, err := parsePythonDigest(response)
	if err != nil {
		return err
	}
	if digest == "md5" && !cfg.MD5 {
		return errMD5
	}
	return anyTag(ctx, cfg, digest, challenge, tag)
}

// answerPython proves this end to the peer.
func answerPython(ctx context.Context, conn net.Conn, cfg *Config, client bool) error {
	frame, _, err := readFrame(conn)
	if err != nil {
		return err
	}
	digest, message, err := parsePythonChallenge(frame)
	if err != nil {
		return err
	}
	if digest == "md5" && !cfg.MD5 {
		return errMD5
	}
	if _, ours := asked.Load(string(message)); ours && client {
		return fmt.Errorf("%w: it sends back the challenge of another client here", ErrUnauthenticated)
	}
	live := cfg.Keys(cfg.Peer)
	if len(live) == 0 {
		return errNoKey
	}
	response, err := live[0].tag(ctx, cfg, digest, message)
	if err != nil {
		return err
	}
	if len(message) > pythonOld { // a digest was named
		response = append([]byte("{"+digest+"}"), response...)
	}
	if err := writeFrame(conn, response); err != nil {
		return err
	}
	verdict, _, err := readFrame(conn)
	if err != nil {
		return err
	}
	if string(verdict) != pythonWelcome {
		return fmt.Errorf("%w: it does not take this end's answer", ErrRefused)
	}
	return nil
}

const pythonOld = 20 // bytes of a challenge before 3.12

// parsePythonChallenge returns the digest that a challenge asks for and what is
// to be authenticated.
func parsePythonChallenge(frame []byte) (digest string, message []byte, err error) {
	message, ok := bytes.CutPrefix(frame, []byte(pythonChallenge))
	if !ok || len(message) < pythonOld {
		return "", nil, errMessage
	}
	digest, random, err := parsePythonDigest(message)
	if err != nil || len(random) < pythonOld {
		return "", nil, errMessage
	}
	return digest, message, nil
}

// parsePythonDigest cuts off the digest's name. What has the length of an old
// challenge or of an MD5 tag has none, as Python has it.
func parsePythonDigest(b []byte) (digest string, rest []byte, err error) {
	if len(b) == pythonOld || len(b) == md5.Size {
		return "md5", b, nil
	}
	if name, rest, ok := bytes.Cut(b, []byte("}")); ok && len(name) > 1 && name[0] == '{' {
		if digest := string(name[1:]); digests[digest] != nil {
			return digest, rest, nil
		}
	}
	return "", nil, errMessage
}

func writeFrame(conn net.Conn, payload []byte) error {
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+maxFrame), uint32(len(payload)))
	_, err := conn.Write(append(frame, payload...))
	return err
}

// readFrame reads a frame and not a byte more. began is when it began to come.
func readFrame(conn net.Conn) (payload []byte, began time.Time, err error) {
	var header [4]byte
	if _, began, err = readHeard(conn, header[:]); err != nil {
		return nil, began, err
	}
	n := binary.BigEndian.Uint32(header[:])
	if n > maxFrame { // or −1, for a longer length
		linger(context.Background(), began, errMessage)
		return nil, began, errMessage
	}
	payload = make([]byte, n)
	if _, err = io.ReadFull(conn, payload); err != nil {
		err = errHeard{err, true}
	}
	return payload, began, err
}

// readHeard fills b. An error says whether anything had come.
func readHeard(conn net.Conn, b []byte) (_ []byte, began time.Time, err error) {
	n, err := conn.Read(b)
	began = time.Now()
	if n == 0 && err != nil {
		return nil, time.Time{}, errHeard{err, false}
	}
	if _, err := io.ReadFull(conn, b[n:]); err != nil {
		return nil, began, errHeard{err, true}
	}
	return b, began, nil
}
