package listener

import (
	"crypto/tls"
	"net"
	"net/netip"
)

// Conn is a connection as the listener gives it out. RemoteAddr is the client's
// address: behind a trusted load balancer the one its PROXY header attests.
type Conn struct {
	net.Conn
}

var _ Guard = (*Conn)(nil)

// Relay returns the address of the load balancer that attested RemoteAddr, or
// the zero AddrPort.
func (c *Conn) Relay() netip.AddrPort { return netip.AddrPort{} }

// TLS returns the state of the TLS session the connection is inside of, or nil.
func (c *Conn) TLS() *tls.ConnectionState { return nil }

// KexDone implements [Guard].
func (c *Conn) KexDone() {}

// Parked implements [Guard].
func (c *Conn) Parked() error { return nil }

// Authenticated implements [Guard].
func (c *Conn) Authenticated() {}

// Penalize implements [Guard].
func (c *Conn) Penalize(Offence) {}
