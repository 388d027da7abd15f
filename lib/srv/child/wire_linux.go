package child

import "encoding/binary"

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

// Flags of OPEN (section 6.3) and of attributes (section 5).
const (
	flagRead   = 0x01
	flagWrite  = 0x02
	flagAppend = 0x04
	flagCreate = 0x08
	flagTrunc  = 0x10
	flagExcl   = 0x20

	attrSize     = 0x01
	attrOwner    = 0x02
	attrMode     = 0x04
	attrTimes    = 0x08
	attrExtended = 0x80000000
)

// attributes are those of a file (section 5), as far as flags says.
type attributes struct {
	flags        uint32
	size         uint64
	uid, gid     uint32
	mode         uint32
	atime, mtime uint32
}

// fields reads the fields of a packet. After the first that is not there every
// value is zero, and bad is set.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n uint32) []byte {
	if f.bad || uint64(n) > uint64(len(f.b)) {
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

// bytes returns a string, which is part of the packet.
func (f *fields) bytes() []byte { return f.take(f.u32()) }

func (f *fields) text() string { return string(f.bytes()) }

func (f *fields) attributes() attributes {
	a := attributes{flags: f.u32()}
	if a.flags&attrSize != 0 {
		a.size = f.u64()
	}
	if a.flags&attrOwner != 0 {
		a.uid, a.gid = f.u32(), f.u32()
	}
	if a.flags&attrMode != 0 {
		a.mode = f.u32()
	}
	if a.flags&attrTimes != 0 {
		a.atime, a.mtime = f.u32(), f.u32()
	}
	if a.flags&attrExtended != 0 {
		for n := f.u32(); n > 0 && !f.bad; n-- {
			f.bytes()
			f.bytes()
		}
	}
	return a
}

// answer is a packet that is made; its length comes first.
type answer []byte

func (b *answer) u32(v uint32) { *b = binary.BigEndian.AppendUint32(*b, v) }

func (b *answer) u64(v uint64) { *b = binary.BigEndian.AppendUint64(*b, v) }

func (b *answer) text(s string) {
	b.u32(uint32(len(s)))
	*b = append(*b, s...)
}

func (b *answer) attributes(a attributes) {
	b.u32(a.flags)
	if a.flags&attrSize != 0 {
		b.u64(a.size)
	}
	if a.flags&attrOwner != 0 {
		b.u32(a.uid)
		b.u32(a.gid)
	}
	if a.flags&attrMode != 0 {
		b.u32(a.mode)
	}
	if a.flags&attrTimes != 0 {
		b.u32(a.atime)
		b.u32(a.mtime)
	}
}

// seal fills in the length of the packet.
func (b *answer) seal() []byte {
	binary.BigEndian.PutUint32(*b, uint32(len(*b)-4))
	return *b
}
