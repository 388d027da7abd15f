package reversetunnel

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// userTimeout has the kernel give a connection up whose peer has acknowledged
// nothing for unacked (RFC 5482): no keepalive of ours is sent on one whose
// send queue is not empty.
func userTimeout(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacked.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return failed
}
