//go:build unix

package listener

import (
	"io"
	"net"
	"os"
	"syscall"
)

// rawOf returns the socket under conn, or nil while something of it was read ahead,
// and where there is none.
func rawOf(conn net.Conn) syscall.RawConn {
	if p, ok := conn.(*prefixed); ok {
		if p.ahead != nil {
			return nil
		}
		conn = p.Conn
	}
	s, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// fill reads what is there into a buffer. It waits without one: that is why it
// reads the socket itself.
func (r *records) fill() error {
	if r.try == nil {
		r.try = r.attempt // once, not for each read
	}
	err := r.raw.Read(r.try)
	if err == nil {
		err = r.err
	}
	if err != nil {
		return err
	}
	r.ahead = r.buf[:r.got]
	return nil
}

// attempt reads fd into buf, and reports whether that need not be tried again when
// there is something to read.
func (r *records) attempt(fd uintptr) bool {
	buf, _ := aheads.Get().(*[aheadSize]byte)
	n, err := syscall.Read(int(fd), buf[:])
	for err == syscall.EINTR {
		n, err = syscall.Read(int(fd), buf[:])
	}
	if n > 0 {
		r.buf, r.got, r.err = buf, n, nil
		return true
	}
	aheads.Put(buf)
	switch err {
	case syscall.EAGAIN:
		return false
	case nil:
		r.err = io.EOF
	default:
		r.err = os.NewSyscallError("read", err)
	}
	return true
}
