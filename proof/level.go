package proof

// Level says what keeps a session's device key. Software is never called
// hardware.
type Level string

// The levels, strongest first.
const (
	HardwareAttested Level = "hardware-attested" // hardware, and its maker's certificates say so
	Hardware         Level = "hardware"          // hardware, the client says
	Browser          Level = "browser"           // the browser keeps it, where is unknown (DBSC)
	Software         Level = "software"          // a file, a profile, memory; also a client that does not say
	None             Level = "none"              // there is no device key
)

// AtLeast reports whether l is as strong as min. An unknown level is as weak
// as None, and as a minimum it admits nothing.
func (l Level) AtLeast(min Level) bool {
	return min.rank() >= 0 && max(l.rank(), 0) >= min.rank()
}

func (l Level) rank() int {
	switch l {
	case HardwareAttested:
		return 4
	case Hardware:
		return 3
	case Browser:
		return 2
	case Software:
		return 1
	case None, "":
		return 0
	}
	return -1
}
