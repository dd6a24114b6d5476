package uhid

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/limpet-auth/limpet/fido/ctaphid"
)

// TestLayout compares the places of fields with what a C compiler makes of the
// kernel's own header.
func TestLayout(t *testing.T) {
	dir := t.TempDir()
	source, program := filepath.Join(dir, "layout.c"), filepath.Join(dir, "layout")
	if err := os.WriteFile(source, []byte(`
#include <linux/uhid.h>
#include <stddef.h>
#include <stdio.h>
#define AT(f) (int)offsetof(struct uhid_event, u.f)
int main(void) {
	printf("%d %d %d %d %d %d %d %d\n", UHID_DESTROY, UHID_OUTPUT, UHID_GET_REPORT, UHID_GET_REPORT_REPLY, UHID_CREATE2, UHID_INPUT2, UHID_SET_REPORT, UHID_SET_REPORT_REPLY);
	printf("%d %d %d\n", (int)sizeof(struct uhid_event), UHID_OUTPUT_REPORT, BUS_USB);
	printf("%d %d %d %d %d %d %d\n", AT(create2.name), AT(create2.rd_data), AT(create2.rd_size), AT(create2.bus), AT(create2.vendor), AT(create2.product), AT(create2.version));
	printf("%d %d\n", AT(input2.size), AT(input2.data));
	printf("%d %d %d\n", AT(output.data), AT(output.size), AT(output.rtype));
	printf("%d %d %d %d %d %d\n", AT(get_report.id), AT(set_report.id), AT(get_report_reply.id), AT(set_report_reply.id), AT(get_report_reply.err), AT(set_report_reply.err));
}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("gcc"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if out, err := exec.Command("gcc", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	got, err := exec.Command(program).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintln(eventDestroy, eventOutput, eventGetReport, eventGetReportReply, eventCreate2, eventInput2, eventSetReport, eventSetReportReply) +
		fmt.Sprintln(eventSize, outputReport, busUSB) +
		fmt.Sprintln(createName, createDescriptor, createSize, createBus, createVendor, createProduct, createVersion) +
		fmt.Sprintln(inputSize, inputData) +
		fmt.Sprintln(outputData, outputSize, outputType) +
		fmt.Sprintln(requestID, requestID, requestID, requestID, replyErr, replyErr)
	if string(got) != want {
		t.Errorf("the header has\n%swe have\n%s", got, want)
	}
}

// TestOutput: reports come with their number before them, and others are not taken.
func TestOutput(t *testing.T) {
	event := make([]byte, eventSize)
	for i := range ctaphid.ReportSize {
		event[outputData+1+i] = byte(i + 1)
	}
	event[outputType] = outputReport
	binary.NativeEndian.PutUint16(event[outputSize:], ctaphid.ReportSize+1)
	if r, ok := output(event); !ok || r[0] != 1 || r[63] != 64 {
		t.Errorf("%v, %v", r, ok)
	}
	for name, change := range map[string]func([]byte){
		"another number": func(e []byte) { e[outputData] = 1 },
		"a feature":      func(e []byte) { e[outputType] = 0 },
		"short":          func(e []byte) { binary.NativeEndian.PutUint16(e[outputSize:], ctaphid.ReportSize) },
	} {
		e := append([]byte(nil), event...)
		change(e)
		if _, ok := output(e); ok {
			t.Errorf("%s: taken", name)
		}
	}
}
