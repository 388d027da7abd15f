package sftp

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// bufferSize is what one direction holds of its stream, in bytes: one packet
	// with the 32 KiB of data that clients send, and most of the next one. It is
	// also how much is written at once.
	bufferSize = 64 << 10
	// headSize is how much of a packet is there to be looked at: every field that
	// matters, as two paths and an extension's name are the most there can be.
	headSize = 16 << 10
)

// stream reads packets and passes them on. Packets that are passed on lie in
// the buffer as they came, and as many as there are go out in one write: from
// there to here no byte is copied.
type stream struct {
	whose string // in errors: "client" or "server"
	r     io.Reader
	// send passes on p; whole tells whether it ends where a packet does.
	send func(p []byte, whole bool) error

	buf            []byte
	sent, pos, end int // buf[sent:pos] is to be passed on, buf[pos:end] not looked at
	size, rest     int // bytes of the current packet, and those at and after pos
	packets        int // how many have begun
}

func newStream(whose string, r io.Reader, send func([]byte, bool) error) *stream {
	return &stream{whose: whose, r: r, send: send, buf: make([]byte, bufferSize)}
}

// next waits for a packet and returns its beginning, at most headSize bytes
// with the length field, until the next call. [io.EOF] means that the stream
// has ended between packets. Either pass or drop must follow.
func (s *stream) next() ([]byte, error) {
	if err := s.fill(4); err != nil {
		if errors.Is(err, io.EOF) && s.pos == s.end {
			return nil, io.EOF
		}
		return nil, s.cut(err)
	}
	s.packets++
	n := binary.BigEndian.Uint32(s.buf[s.pos:])
	if n == 0 || n > maxPacket {
		return nil, s.broken("a length of %d bytes, want 1 to %d", n, maxPacket)
	}
	s.size = 4 + int(n)
	s.rest = s.size
	if err := s.fill(min(s.rest, headSize)); err != nil {
		return nil, s.cut(err)
	}
	return s.buf[s.pos : s.pos+min(s.rest, headSize)], nil
}

// fill reads until n bytes are there to be looked at. Before it waits it passes
// on what it has.
func (s *stream) fill(n int) error {
	for s.end-s.pos < n {
		if err := s.flush(); err != nil {
			return err
		}
		if s.pos == s.end || len(s.buf)-s.pos < headSize {
			s.end = copy(s.buf, s.buf[s.pos:s.end])
			s.sent, s.pos = 0, 0
		}
		k, err := s.r.Read(s.buf[s.end:])
		s.end += k
		if err != nil && s.end-s.pos < n {
			return err
		}
	}
	return nil
}

// flush passes on what is to be passed on. It ends with a packet unless the
// current one has been begun.
func (s *stream) flush() error {
	if s.sent == s.pos {
		return nil
	}
	p := s.buf[s.sent:s.pos]
	s.sent = s.pos
	return s.send(p, s.rest == 0 || s.rest == s.size)
}

// pass passes the current packet on. Of what follows its first skip bytes, tap
// sees every piece before it goes; nil means nobody looks.
func (s *stream) pass(skip int, tap func(p []byte)) error {
	for s.rest > 0 {
		if s.pos == s.end {
			if err := s.fill(1); err != nil {
				return s.cut(err)
			}
		}
		n := min(s.rest, s.end-s.pos)
		if tap != nil && n > skip {
			tap(s.buf[s.pos+skip : s.pos+n])
		}
		skip -= min(skip, n)
		s.pos += n
		s.rest -= n
	}
	return nil
}

// drop skips the current packet, after what comes before it has been passed on.
// When instead is not empty it goes in the packet's place.
func (s *stream) drop(instead []byte) error {
	if err := s.flush(); err != nil {
		return err
	}
	for s.rest > 0 {
		if s.pos == s.end {
			if err := s.fill(1); err != nil {
				return s.cut(err)
			}
		}
		n := min(s.rest, s.end-s.pos)
		s.pos += n
		s.sent = s.pos
		s.rest -= n
	}
	if len(instead) == 0 {
		return nil
	}
	return s.send(instead, true)
}

// cut says that the stream has ended inside a packet, or why else err came.
func (s *stream) cut(err error) error {
	if errors.Is(err, io.EOF) {
		return s.broken("the stream ends inside it")
	}
	return err
}

// broken returns the error that ends the session: the current packet is not
// what the protocol allows.
func (s *stream) broken(format string, args ...any) error {
	return fault.New(fault.BadInput, "sftp: packet %d of the %s: %w", s.packets, s.whose, fault.New(fault.BadInput, format, args...))
}
