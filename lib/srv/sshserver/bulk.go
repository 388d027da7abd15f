package sshserver

import (
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"
)

// x/crypto reads and writes through buffers of 4 KiB, which splits every large
// packet in two: twice the system calls, and inside TLS three records for the
// one and a half that it needs. bulk puts them together again while there is a
// lot to move, with a buffer that an idle connection does not keep.

const (
	// cryptoBuffer is the size of x/crypto's buffers, in bytes.
	cryptoBuffer = 4096
	// bulkBuffer holds a packet of 32 KiB of data and what goes around it. It is
	// what one read takes at most.
	bulkBuffer = 36 << 10
	// maxPacket is the largest packet x/crypto makes.
	maxPacket = 256 << 10
	// gcmOverhead is what AES-GCM adds to a packet: its length and its tag (RFC
	// 5647, section 7.3).
	gcmOverhead = 4 + 16
)

var buffers = sync.Pool{New: func() any { return new([bulkBuffer]byte) }} //nolint:gochecknoglobals // a pool is of no use to one connection

// reader reads ahead once a read has filled x/crypto's buffer.
type reader struct {
	buf   *[bulkBuffer]byte // nil unless there was a lot to read just now
	ahead []byte            // unread part of buf
	last  int               // what the last read into buf brought
}

// read reads from r; fresh is how much r gave, which may be more than n or none.
func (b *reader) read(r io.Reader, p []byte) (n, fresh int, err error) {
	if len(b.ahead) == 0 {
		if b.buf == nil {
			n, err = r.Read(p)
			if n >= cryptoBuffer && err == nil {
				b.buf, _ = buffers.Get().(*[bulkBuffer]byte)
			}
			return n, n, err
		}
		if fresh, err = r.Read(b.buf[:]); err != nil {
			return copy(p, b.buf[:fresh]), fresh, err
		}
		b.ahead, b.last = b.buf[:fresh], fresh
	}
	n = copy(p, b.ahead)
	if b.ahead = b.ahead[n:]; len(b.ahead) == 0 && b.last < cryptoBuffer {
		// Little came: the answer to a keepalive at the latest.
		buffers.Put(b.buf)
		b.buf, b.ahead = nil, nil
	}
	return n, fresh, nil
}

// writer holds the first part of a packet back until the rest comes, which
// x/crypto writes at once.
type writer struct {
	gcm  atomic.Bool // packets begin with their length, as AES-GCM's do
	held []byte      // first part of a packet, in buf
	buf  *[bulkBuffer]byte
}

// write writes p to w.
func (b *writer) write(w io.Writer, p []byte) (int, error) {
	if b.held == nil {
		if !b.begins(p) {
			return w.Write(p)
		}
		b.buf, _ = buffers.Get().(*[bulkBuffer]byte)
		b.held = append(b.buf[:0], p...)
		return len(p), nil
	}
	whole := append(b.held, p...) // beyond the pooled buffer for a packet of more than 32 KiB
	_, err := w.Write(whole)
	buffers.Put(b.buf)
	b.held, b.buf = nil, nil
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// begins reports whether p is the first part of a packet. x/crypto flushes after
// each packet, so p begins with one's length. Were it another cipher's, after a
// renewed key exchange, then to be taken for a length of the right size and kind
// p would need the luck of one in a million, and the next packet to free it.
func (b *writer) begins(p []byte) bool {
	if len(p) != cryptoBuffer || !b.gcm.Load() {
		return false
	}
	n := binary.BigEndian.Uint32(p)
	return n%16 == 0 && n > cryptoBuffer-gcmOverhead && n <= maxPacket
}
