package uhid

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/limpet-auth/limpet/fido/ctaphid"
)

// Events, and where their fields are, from linux/uhid.h: packed, in the byte order
// of the machine.
const (
	eventDestroy        = 1
	eventOutput         = 6
	eventGetReport      = 9
	eventGetReportReply = 10
	eventCreate2        = 11
	eventInput2         = 12
	eventSetReport      = 13
	eventSetReportReply = 14

	eventSize = 4380 // struct uhid_event

	createName       = 4
	createDescriptor = 280 // rd_data
	createSize       = 260 // rd_size
	createBus        = 262
	createVendor     = 264
	createProduct    = 268
	createVersion    = 272

	inputSize = 4
	inputData = 6

	outputData = 4
	outputSize = 4100
	outputType = 4102

	requestID = 4 // of get and set report, and of their replies
	replyErr  = 8

	outputReport = 1 // UHID_OUTPUT_REPORT
	busUSB       = 3 // hosts look at no others
)

// Numbers that pid.codes leaves to those who have none.
const (
	vendor  = 0x1209
	product = 0x0001
)

// descriptor is that of CTAP 2.1, section 11.2.8.1: usage page 0xf1d0, reports of 64
// bytes, without numbers, both ways.
var descriptor = []byte{
	0x06, 0xd0, 0xf1, // usage page: FIDO alliance
	0x09, 0x01, // usage: CTAPHID
	0xa1, 0x01, // collection: application
	0x09, 0x20, // usage: data in
	0x15, 0x00, // logical minimum 0
	0x26, 0xff, 0x00, // logical maximum 255
	0x75, 0x08, // size 8 bits
	0x95, 0x40, // 64 of them
	0x81, 0x02, // input: data, variable, absolute
	0x09, 0x21, // usage: data out
	0x15, 0x00,
	0x26, 0xff, 0x00,
	0x75, 0x08,
	0x95, 0x40,
	0x91, 0x02, // output: data, variable, absolute
	0xc0,
}

// Open makes a device, which goes away when it is closed or the process ends.
func Open() (ctaphid.Transport, error) {
	f, err := os.OpenFile("/dev/uhid", os.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("limpet: uhid: %w", err)
	}
	event := make([]byte, createDescriptor+len(descriptor)) // the kernel fills up with zeros
	native := binary.NativeEndian
	native.PutUint32(event, eventCreate2)
	copy(event[createName:], "Limpet FIDO token")
	native.PutUint16(event[createSize:], uint16(len(descriptor)))
	native.PutUint16(event[createBus:], busUSB)
	native.PutUint32(event[createVendor:], vendor)
	native.PutUint32(event[createProduct:], product)
	native.PutUint32(event[createVersion:], 1)
	copy(event[createDescriptor:], descriptor)
	if _, err := f.Write(event); err != nil {
		return nil, errors.Join(fmt.Errorf("limpet: uhid: %w", err), f.Close())
	}
	return &device{f}, nil
}

type device struct{ file *os.File }

// Read returns the next report of a host.
func (d *device) Read() (r ctaphid.Report, err error) {
	event := make([]byte, eventSize)
	for {
		clear(event) // the kernel may write less
		if _, err := d.file.Read(event); err != nil {
			return r, fmt.Errorf("limpet: uhid: %w", err)
		}
		switch binary.NativeEndian.Uint32(event) {
		case eventOutput:
			if report, ok := output(event); ok {
				return report, nil
			}
		case eventGetReport:
			err = d.decline(event, eventGetReportReply)
		case eventSetReport:
			err = d.decline(event, eventSetReportReply)
		}
		if err != nil {
			return r, err
		}
	}
}

// output returns the report of an event. The number of a report, zero, comes before
// its data.
func output(event []byte) (r ctaphid.Report, ok bool) {
	size := binary.NativeEndian.Uint16(event[outputSize:])
	if event[outputType] != outputReport || size != ctaphid.ReportSize+1 || event[outputData] != 0 {
		return r, false
	}
	copy(r[:], event[outputData+1:])
	return r, true
}

// decline answers a host that wants to read or write a report otherwise.
func (d *device) decline(event []byte, reply uint32) error {
	answer := make([]byte, 12)
	binary.NativeEndian.PutUint32(answer, reply)
	copy(answer[requestID:], event[requestID:requestID+4])
	binary.NativeEndian.PutUint16(answer[replyErr:], uint16(syscall.EIO))
	_, err := d.file.Write(answer)
	if err != nil {
		return fmt.Errorf("limpet: uhid: %w", err)
	}
	return nil
}

// Write gives a report to the hosts.
func (d *device) Write(r ctaphid.Report) error {
	event := make([]byte, inputData+len(r))
	binary.NativeEndian.PutUint32(event, eventInput2)
	binary.NativeEndian.PutUint16(event[inputSize:], uint16(len(r)))
	copy(event[inputData:], r[:])
	if _, err := d.file.Write(event); err != nil {
		return fmt.Errorf("limpet: uhid: %w", err)
	}
	return nil
}

// Close takes the device away.
func (d *device) Close() error {
	event := make([]byte, 4)
	binary.NativeEndian.PutUint32(event, eventDestroy)
	d.file.Write(event) // closing does it too
	return d.file.Close()
}
