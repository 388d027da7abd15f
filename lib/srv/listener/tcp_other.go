//go:build !linux

package listener

import "net"

// tune does nothing where there is no TCP_USER_TIMEOUT; keepalives find a dead
// peer there.
func tune(net.Conn) {}
