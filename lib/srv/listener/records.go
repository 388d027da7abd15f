package listener

import (
	"crypto/tls"
	"net"
	"os"
	"sync"
	"syscall"
)

// crypto/tls writes each record of 16 KiB by itself, reads one and a bit at a
// time, and cannot be asked whether there is another. Secure puts together what
// belongs together while there is a lot to move, with buffers that an idle
// connection does not keep.

const (
	// maxRecord is the most that one record of TLS carries, in bytes (RFC 8446,
	// section 5.1).
	maxRecord = 16 << 10
	// aheadSize is what one read of the socket takes at most, in bytes.
	aheadSize = 64 << 10
	// heldSize is what one write to the socket takes at most, in bytes: two records
	// and what goes around them.
	heldSize = 36 << 10
)

var (
	aheads = sync.Pool{New: func() any { return new([aheadSize]byte) }} //nolint:gochecknoglobals // a cache
	helds  = sync.Pool{New: func() any { return new([heldSize]byte) }}  //nolint:gochecknoglobals // a cache
)

// Secure is TLS on a socket with few system calls. As with any stream, one
// goroutine at a time may read, and one write.
type Secure struct {
	*tls.Conn
	records *records
}

// SecureServer returns the server's side of TLS on conn.
func SecureServer(conn net.Conn, cfg *tls.Config) *Secure {
	r := &records{Conn: conn}
	return &Secure{tls.Server(r, cfg), r}
}

// SecureClient returns the client's side of TLS on conn.
func SecureClient(conn net.Conn, cfg *tls.Config) *Secure {
	r := &records{Conn: conn}
	return &Secure{tls.Client(r, cfg), r}
}

// Write implements [net.Conn].
func (s *Secure) Write(p []byte) (int, error) {
	if len(p) <= maxRecord {
		return s.Conn.Write(p)
	}
	s.records.hold()
	n, err := s.Conn.Write(p)
	if failed := s.records.release(); err == nil && failed != nil {
		return 0, failed
	}
	return n, err
}

// ReadMore reads what has come already and returns 0 when that is not enough to
// tell what it says. What is wrong with the connection the next Read tells.
func (s *Secure) ReadMore(p []byte) int {
	if len(s.records.ahead) == 0 {
		return 0
	}
	s.records.only = true
	n, _ := s.Read(p)
	s.records.only = false
	return n
}

// records is the socket under TLS.
type records struct {
	net.Conn

	// Of the reader.
	raw   syscall.RawConn // the socket's; nil while what was sniffed is unread, and of what is none
	try   func(uintptr) bool
	got   int              // what try read,
	err   error            // or why it could not
	buf   *[aheadSize]byte // nil unless something was read and not yet given out
	ahead []byte           // unread part of buf
	only  bool             // nothing but ahead is to be read

	mu      sync.Mutex
	holding bool
	held    *[heldSize]byte // nil when nothing is held back
	size    int             // of what is
	failed  error           // of a write whose records TLS takes for sent
}

// Read implements [net.Conn]. A time-out leaves TLS as it was.
func (r *records) Read(p []byte) (int, error) {
	switch {
	case len(r.ahead) > 0:
	case r.only:
		return 0, os.ErrDeadlineExceeded
	case r.raw == nil:
		n, err := r.Conn.Read(p)
		r.raw = rawOf(r.Conn)
		return n, err
	default:
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.ahead)
	if r.ahead = r.ahead[n:]; len(r.ahead) == 0 {
		aheads.Put(r.buf)
		r.buf, r.ahead = nil, nil
	}
	return n, nil
}

// Write implements [net.Conn]. While records are held back it says that all went
// well; release says whether it did.
func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed != nil {
		return 0, r.failed
	}
	if !r.holding {
		return r.Conn.Write(p)
	}
	if r.size+len(p) > heldSize {
		if err := r.flushLocked(); err != nil {
			return 0, err
		}
	}
	if len(p) > heldSize {
		return r.Conn.Write(p)
	}
	if r.held == nil {
		r.held, _ = helds.Get().(*[heldSize]byte)
	}
	r.size += copy(r.held[r.size:], p)
	return len(p), nil
}

// NetConn returns the socket.
func (r *records) NetConn() net.Conn { return r.Conn }

// hold holds back what is written from now on.
func (r *records) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holding = true
}

// release writes what was held back.
func (r *records) release() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holding = false
	return r.flushLocked()
}

func (r *records) flushLocked() error {
	if r.held == nil || r.failed != nil {
		return r.failed
	}
	_, r.failed = r.Conn.Write(r.held[:r.size])
	helds.Put(r.held)
	r.held, r.size = nil, 0
	return r.failed
}
