package listener

import (
	"bufio"
	"net"
	"net/netip"

	proxyproto "github.com/pires/go-proxyproto"

	"github.com/accessd/accessd/lib/fault"
)

// readHeader reads the PROXY header, version 1 or 2, that a trusted load
// balancer must send first, and returns the client's address. It is the zero
// AddrPort when the balancer speaks for itself (LOCAL, or UNKNOWN in version 1),
// as it does to check our health. The header's own lengths are bounded: 107
// bytes in version 1, 4 KiB in version 2.
func readHeader(r *bufio.Reader) (netip.AddrPort, error) {
	h, err := proxyproto.Read(r)
	if err != nil {
		return netip.AddrPort{}, fault.Wrap(fault.BadInput, err, "no good PROXY header")
	}
	if h.Command.IsLocal() {
		return netip.AddrPort{}, nil
	}
	source, _, ok := h.TCPAddrs()
	if !ok {
		return netip.AddrPort{}, fault.New(fault.BadInput, "the PROXY header is not about TCP")
	}
	client := addrPort(source)
	if ip := client.Addr(); !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast() {
		return netip.AddrPort{}, fault.New(fault.BadInput, "the PROXY header's source is no client's address")
	}
	return client, nil
}

// addrPort returns a TCP address, IPv4 in IPv6 form unmapped, or the zero
// AddrPort for any other kind.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
