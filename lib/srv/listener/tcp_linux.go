package listener

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// userTimeout ends a connection whose peer has not acknowledged what was sent
// for so long (TCP_USER_TIMEOUT, RFC 5482).
const userTimeout = 30 * time.Second

// tune sets the socket options of an accepted connection. They only make a dead
// peer known sooner, so an error is none of ours.
func tune(c net.Conn) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
}
