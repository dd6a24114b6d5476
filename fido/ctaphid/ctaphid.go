// Package ctaphid is the token's end of CTAPHID (CTAP 2.1, section 11.2): messages
// in reports of 64 bytes, for several hosts at once, of whom one at a time is served.
package ctaphid

import (
	"context"
	"encoding/binary"
	"time"
)

// ReportSize is the length of every report, in bytes.
const ReportSize = 64

// Report is what goes over the wire at once.
type Report [ReportSize]byte

// Transport carries reports between a token and its hosts. Read and Write may be
// called at the same time, and fail once it is closed.
type Transport interface {
	Read() (Report, error)
	Write(Report) error
	Close() error
}

// Token answers messages. A context that is done means that the host cancelled its
// request, which wants an answer then, or went away.
type Token interface {
	// Message answers a U2F message at once.
	Message(ctx context.Context, channel uint32, request []byte) []byte

	// CBOR answers a CTAP2 request. It says of itself whether it waits for the user.
	CBOR(ctx context.Context, channel uint32, request []byte, waiting func(bool)) []byte
}

// Commands.
const (
	cmdPing      = 0x01
	cmdMessage   = 0x03
	cmdLock      = 0x04
	cmdInit      = 0x06
	cmdWink      = 0x08
	cmdCBOR      = 0x10
	cmdCancel    = 0x11
	cmdKeepalive = 0x3b
	cmdError     = 0x3f
)

// Errors to hosts.
const (
	errInvalidCommand   = 0x01
	errInvalidParameter = 0x02
	errInvalidLength    = 0x03
	errInvalidSequence  = 0x04
	errTimeout          = 0x05
	errBusy             = 0x06
	errInvalidChannel   = 0x0b
)

const (
	initial   = 0x80 // the bit of a message's first report
	broadcast = 0xffffffff
	firstData = ReportSize - 7
	nextData  = ReportSize - 5

	// MaxMessage is the length of the longest message, in bytes.
	MaxMessage = firstData + 128*nextData

	maxChannels = 128
	version     = 2

	capWink = 0x01
	capCBOR = 0x04

	messageTimeout = 500 * time.Millisecond // between two reports of a message
	keepalive      = 100 * time.Millisecond
	maxLock        = 10 // seconds

	// Linux keeps 63 reports for a program that reads a hidraw device, and 31 for one
	// that reads /dev/uhid, and drops what is more. So after a few at once reports go
	// at the pace of a token on USB at full speed, and those of hosts are taken at once.
	burst     = 16
	pace      = time.Millisecond
	readAhead = 256

	// Reports to hosts that wait. A host that has so many, or of all of them some, is
	// not listened to until they are sent; nor are hosts without a channel.
	maxOfChannel  = 64
	maxOfStranger = 32 // on all of their channels
	maxOut        = 256

	processing = 1 // status of a keepalive
	upNeeded   = 2
)

// frames splits a message into reports.
func frames(channel uint32, cmd byte, data []byte) []Report {
	var first Report
	binary.BigEndian.PutUint32(first[:], channel)
	first[4] = initial | cmd
	binary.BigEndian.PutUint16(first[5:], uint16(len(data)))
	data = data[copy(first[7:], data):]
	reports := []Report{first}
	for seq := byte(0); len(data) > 0; seq++ {
		var next Report
		binary.BigEndian.PutUint32(next[:], channel)
		next[4] = seq
		data = data[copy(next[5:], data):]
		reports = append(reports, next)
	}
	return reports
}

// partial is a message of which reports are missing yet.
type partial struct {
	channel uint32
	cmd     byte
	data    []byte
	length  int
	seq     byte
}

// begin takes a message's first report.
func begin(r *Report) *partial {
	p := &partial{
		channel: binary.BigEndian.Uint32(r[:]),
		cmd:     r[4] &^ initial,
		length:  int(binary.BigEndian.Uint16(r[5:])),
	}
	p.take(r[7:])
	return p
}

// next takes a further report, and tells whether it is the one that is due.
func (p *partial) next(r *Report) bool {
	if r[4] != p.seq {
		return false
	}
	p.seq++
	p.take(r[5:])
	return true
}

func (p *partial) take(data []byte) {
	p.data = append(p.data, data[:min(len(data), p.length-len(p.data))]...)
}

func (p *partial) whole() bool { return len(p.data) == p.length }
