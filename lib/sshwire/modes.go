package sshwire

import (
	"encoding/binary"

	"github.com/accessd/accessd/lib/fault"
)

// Mode is one terminal mode of a pty-req request (RFC 4254, section 8).
type Mode struct {
	Opcode uint8
	Value  uint32
}

const (
	ttyOpEnd  = 0   // TTY_OP_END: what follows is padding
	maxOpcode = 159 // opcodes above it have no known argument and end the list
)

// ParseModes reads the encoded terminal modes of a pty-req request (RFC 4254,
// section 8). As the section says, the list ends at TTY_OP_END or at the first
// opcode above 159; it may also simply end, as some clients leave TTY_OP_END
// out.
func ParseModes(b []byte) ([]Mode, error) {
	if len(b) > maxModes {
		return nil, fault.New(fault.BadInput, "terminal modes have %d bytes, want at most %d", len(b), maxModes)
	}
	var modes []Mode
	for len(b) > 0 && b[0] != ttyOpEnd && b[0] <= maxOpcode {
		const size = 1 + 4 // opcode and uint32
		if len(b) < size {
			return nil, fault.New(fault.BadInput, "terminal mode %d has no value", b[0])
		}
		modes = append(modes, Mode{Opcode: b[0], Value: binary.BigEndian.Uint32(b[1:size])})
		b = b[size:]
	}
	return modes, nil
}
