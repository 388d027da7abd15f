package sftp

import (
	"encoding/binary"
	"math"
)

// version is the one version of the protocol that is spoken.
const version = 3

// Packet types (draft-ietf-secsh-filexfer-02, section 3).
const (
	typeInit          = 1
	typeVersion       = 2
	typeOpen          = 3
	typeClose         = 4
	typeRead          = 5
	typeWrite         = 6
	typeLstat         = 7
	typeFstat         = 8
	typeSetstat       = 9
	typeFsetstat      = 10
	typeOpendir       = 11
	typeReaddir       = 12
	typeRemove        = 13
	typeMkdir         = 14
	typeRmdir         = 15
	typeRealpath      = 16
	typeStat          = 17
	typeRename        = 18
	typeReadlink      = 19
	typeSymlink       = 20
	typeStatus        = 101
	typeHandle        = 102
	typeData          = 103
	typeName          = 104
	typeAttrs         = 105
	typeExtended      = 200
	typeExtendedReply = 201
)

// Extended requests (OpenSSH PROTOCOL, section 4).
const (
	extPosixRename = "posix-rename@openssh.com"
	extHardlink    = "hardlink@openssh.com"
	extFsync       = "fsync@openssh.com"
	extStatvfs     = "statvfs@openssh.com"
	extFstatvfs    = "fstatvfs@openssh.com"
	extLsetstat    = "lsetstat@openssh.com"
	extLimits      = "limits@openssh.com"
	extExpandPath  = "expand-path@openssh.com"
	extCopyData    = "copy-data"
	extUsersGroups = "users-groups-by-id@openssh.com"
)

// revision returns the data that a server's announcement of the extension name
// has when it is the form known here, or "".
func revision(name string) string {
	switch name {
	case extStatvfs, extFstatvfs:
		return "2"
	case extPosixRename, extHardlink, extFsync, extLsetstat, extLimits, extExpandPath, extCopyData, extUsersGroups:
		return "1"
	}
	return ""
}

// Status codes (section 7).
const (
	statusOK             = 0
	statusEOF            = 1
	statusDenied         = 3
	statusFailure        = 4
	statusBadMessage     = 5
	statusConnectionLost = 7
	statusUnsupported    = 8
)

// Flags of OPEN (section 6.3).
const (
	flagRead   = 0x01
	flagWrite  = 0x02
	flagAppend = 0x04
	flagCreate = 0x08
	flagTrunc  = 0x10
	flagExcl   = 0x20
)

// Flags of attributes (section 5).
const (
	attrSize  = 0x01
	attrOwner = 0x02
	attrMode  = 0x04
	attrTimes = 0x08
)

// Bounds on what a peer may say, in bytes.
const (
	// maxPacket is the largest length field of a packet; OpenSSH's own bound.
	maxPacket = 256 << 10
	// maxPath is the longest path that the kernel takes (PATH_MAX). A server that
	// shortens paths itself could take a longer one, which no report would hold.
	maxPath = 4096
	// maxHandle is the longest handle (section 6.2).
	maxHandle = 256
	// maxExtension is the longest name of an extended request; the longest that
	// is known has 30.
	maxExtension = 64
	// maxError is how much of a server's words about an error is reported.
	maxError = 256
)

// fields reads the fields of a packet from its beginning. After the first that
// is not there every value is zero, and bad is set.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if f.bad || n > len(f.b) {
		f.bad = true
		return nil
	}
	p := f.b[:n]
	f.b = f.b[n:]
	return p
}

func (f *fields) u32() uint32 {
	if p := f.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (f *fields) u64() uint64 {
	if p := f.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// bytes returns a string of at most limit bytes; it is part of the packet.
func (f *fields) bytes(limit int) []byte {
	n := f.u32()
	if uint64(n) > uint64(limit) {
		f.bad = true
	}
	if n > math.MaxInt32 {
		return nil
	}
	return f.take(int(n))
}

func (f *fields) text(limit int) string { return string(f.bytes(limit)) }

// path returns a path. No system call takes one with a NUL byte.
func (f *fields) path() string {
	p := f.text(maxPath)
	for i := range len(p) {
		if p[i] == 0 {
			f.bad = true
			return ""
		}
	}
	return p
}

// appendString appends s as a string field.
func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// statusPacket returns the STATUS packet (section 7) that answers the request id.
func statusPacket(id, code uint32, message string) []byte {
	b := make([]byte, 4, 4+1+4+4+4+len(message)+4)
	b = append(b, typeStatus)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, code)
	b = appendString(b, message)
	b = appendString(b, "") // language
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}
