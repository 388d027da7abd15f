package srv

import (
	"golang.org/x/sys/unix"

	"github.com/accessd/accessd/lib/sshwire"
)

// Opcodes of the speeds (RFC 4254, section 8).
const (
	opInputSpeed  = 128
	opOutputSpeed = 129
)

// undefinedChar is what the wire says for a special character that is switched
// off (RFC 4254, section 8); the kernel says 0.
const undefinedChar = 255

// modes says what the opcodes of RFC 4254, section 8, are to Linux. What it
// leaves out Linux does not have.
type modes struct {
	chars  map[uint8]int    // index into Cc
	input  map[uint8]uint32 // flags, by the word they are in
	output map[uint8]uint32
	line   map[uint8]uint32
	charac map[uint8]uint32 // of the characters on the line
	speeds map[uint32]uint32
}

func newModes() modes {
	return modes{
		chars: map[uint8]int{
			1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL,
			7: unix.VEOL2, 8: unix.VSTART, 9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT,
			13: unix.VWERASE, 14: unix.VLNEXT, 16: unix.VSWTC, 18: unix.VDISCARD,
		},
		input: map[uint8]uint32{
			30: unix.IGNPAR, 31: unix.PARMRK, 32: unix.INPCK, 33: unix.ISTRIP, 34: unix.INLCR,
			35: unix.IGNCR, 36: unix.ICRNL, 37: unix.IUCLC, 38: unix.IXON, 39: unix.IXANY,
			40: unix.IXOFF, 41: unix.IMAXBEL, 42: unix.IUTF8, // 42: RFC 8160
		},
		line: map[uint8]uint32{
			50: unix.ISIG, 51: unix.ICANON, 52: unix.XCASE, 53: unix.ECHO, 54: unix.ECHOE,
			55: unix.ECHOK, 56: unix.ECHONL, 57: unix.NOFLSH, 58: unix.TOSTOP, 59: unix.IEXTEN,
			60: unix.ECHOCTL, 61: unix.ECHOKE, 62: unix.PENDIN,
		},
		output: map[uint8]uint32{
			70: unix.OPOST, 71: unix.OLCUC, 72: unix.ONLCR, 73: unix.OCRNL, 74: unix.ONOCR, 75: unix.ONLRET,
		},
		charac: map[uint8]uint32{90: unix.CS7, 91: unix.CS8, 92: unix.PARENB, 93: unix.PARODD},
		speeds: map[uint32]uint32{
			0: unix.B0, 50: unix.B50, 75: unix.B75, 110: unix.B110, 134: unix.B134, 150: unix.B150,
			200: unix.B200, 300: unix.B300, 600: unix.B600, 1200: unix.B1200, 1800: unix.B1800,
			2400: unix.B2400, 4800: unix.B4800, 9600: unix.B9600, 19200: unix.B19200,
			38400: unix.B38400, 57600: unix.B57600, 115200: unix.B115200, 230400: unix.B230400,
		},
	}
}

// apply changes t as list says, in its order; sshd does the same. Opcodes that
// are not known are passed over.
func (m modes) apply(t *unix.Termios, list []sshwire.Mode) {
	words := []struct {
		flags map[uint8]uint32
		word  *uint32
	}{{m.input, &t.Iflag}, {m.output, &t.Oflag}, {m.line, &t.Lflag}, {m.charac, &t.Cflag}}
	for _, mode := range list {
		if i, ok := m.chars[mode.Opcode]; ok {
			t.Cc[i] = specialChar(mode.Value)
		}
		for _, w := range words {
			if flag := w.flags[mode.Opcode]; mode.Value != 0 {
				*w.word |= flag
			} else {
				*w.word &^= flag
			}
		}
		m.applySpeed(t, mode)
	}
}

func specialChar(v uint32) uint8 {
	if v == undefinedChar {
		return 0
	}
	return uint8(v) // a character; the wire has room for more
}

func (m modes) applySpeed(t *unix.Termios, mode sshwire.Mode) {
	code, ok := m.speeds[mode.Value]
	switch {
	case !ok:
	case mode.Opcode == opInputSpeed:
		t.Ispeed = code
	case mode.Opcode == opOutputSpeed:
		t.Ospeed = code
		t.Cflag = t.Cflag&^unix.CBAUD | code
	}
}
