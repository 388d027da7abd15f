package sshwire

import (
	"cmp"
	"errors"

	"golang.org/x/crypto/ssh"
)

// DirectTCPIP opens a direct-tcpip channel (RFC 4254, section 7.2). "ssh -J"
// and "ssh -W" send it.
type DirectTCPIP struct {
	Host       string
	Port       uint32
	OriginAddr string
	OriginPort uint32
}

// ParseDirectTCPIP reads the extra data of a direct-tcpip channel open.
func ParseDirectTCPIP(payload []byte) (DirectTCPIP, error) {
	return parse[DirectTCPIP](ChannelDirectTCPIP, payload)
}

// Marshal returns x as the extra data of a channel open.
func (x DirectTCPIP) Marshal() []byte { return ssh.Marshal(x) }

func (x DirectTCPIP) check() error {
	if x.Host == "" || x.Port == 0 {
		return errors.New("no host or no port")
	}
	return cmp.Or(bindable(x.Host, x.Port), bindable(x.OriginAddr, x.OriginPort))
}

// TCPIPForward is the payload of tcpip-forward and of cancel-tcpip-forward
// (RFC 4254, section 7.1).
type TCPIPForward struct {
	Addr string // as asked for; "" means every address
	Port uint32 // 0 asks the server to choose
}

// ParseTCPIPForward reads the payload of a tcpip-forward or a
// cancel-tcpip-forward request.
func ParseTCPIPForward(payload []byte) (TCPIPForward, error) {
	return parse[TCPIPForward](RequestTCPIPForward, payload)
}

// Marshal returns x as a request payload.
func (x TCPIPForward) Marshal() []byte { return ssh.Marshal(x) }

func (x TCPIPForward) check() error { return bindable(x.Addr, x.Port) }

// TCPIPForwardReply answers a tcpip-forward request that asked for port 0; all
// others are answered with an empty payload (RFC 4254, section 7.1).
type TCPIPForwardReply struct{ Port uint32 }

// ParseTCPIPForwardReply reads the answer to a tcpip-forward request for port 0.
func ParseTCPIPForwardReply(payload []byte) (TCPIPForwardReply, error) {
	return parse[TCPIPForwardReply](RequestTCPIPForward, payload)
}

// Marshal returns x as the payload of a reply.
func (x TCPIPForwardReply) Marshal() []byte { return ssh.Marshal(x) }

func (x TCPIPForwardReply) check() error { return bindable("", x.Port) }

// ForwardedTCPIP opens a forwarded-tcpip channel (RFC 4254, section 7.2). Addr
// and Port repeat the tcpip-forward request it belongs to; the origin is the
// client's real address.
type ForwardedTCPIP struct {
	Addr       string
	Port       uint32
	OriginAddr string
	OriginPort uint32
}

// ParseForwardedTCPIP reads the extra data of a forwarded-tcpip channel open.
func ParseForwardedTCPIP(payload []byte) (ForwardedTCPIP, error) {
	return parse[ForwardedTCPIP](ChannelForwardedTCPIP, payload)
}

// Marshal returns x as the extra data of a channel open.
func (x ForwardedTCPIP) Marshal() []byte { return ssh.Marshal(x) }

func (x ForwardedTCPIP) check() error {
	return cmp.Or(bindable(x.Addr, x.Port), bindable(x.OriginAddr, x.OriginPort))
}

// DirectStreamlocal opens a direct-streamlocal@openssh.com channel (OpenSSH
// PROTOCOL, section 2.4).
type DirectStreamlocal struct {
	Path     string
	Reserved string
	Unused   uint32
}

// ParseDirectStreamlocal reads the extra data of a direct-streamlocal@openssh.com
// channel open.
func ParseDirectStreamlocal(payload []byte) (DirectStreamlocal, error) {
	return parse[DirectStreamlocal](ChannelDirectStreamlocal, payload)
}

// Marshal returns x as the extra data of a channel open.
func (x DirectStreamlocal) Marshal() []byte { return ssh.Marshal(x) }

func (x DirectStreamlocal) check() error { return socketPath(x.Path) }

// StreamlocalForward is the payload of streamlocal-forward@openssh.com and of
// cancel-streamlocal-forward@openssh.com (OpenSSH PROTOCOL, section 2.4).
type StreamlocalForward struct{ Path string }

// ParseStreamlocalForward reads the payload of a
// streamlocal-forward@openssh.com or a cancel-streamlocal-forward@openssh.com
// request.
func ParseStreamlocalForward(payload []byte) (StreamlocalForward, error) {
	return parse[StreamlocalForward](RequestStreamlocalForward, payload)
}

// Marshal returns x as a request payload.
func (x StreamlocalForward) Marshal() []byte { return ssh.Marshal(x) }

func (x StreamlocalForward) check() error { return socketPath(x.Path) }

// ForwardedStreamlocal opens a forwarded-streamlocal@openssh.com channel
// (OpenSSH PROTOCOL, section 2.4). Path repeats the request it belongs to.
type ForwardedStreamlocal struct {
	Path     string
	Reserved string
}

// ParseForwardedStreamlocal reads the extra data of a
// forwarded-streamlocal@openssh.com channel open.
func ParseForwardedStreamlocal(payload []byte) (ForwardedStreamlocal, error) {
	return parse[ForwardedStreamlocal](ChannelForwardedStreamlocal, payload)
}

// Marshal returns x as the extra data of a channel open.
func (x ForwardedStreamlocal) Marshal() []byte { return ssh.Marshal(x) }

func (x ForwardedStreamlocal) check() error { return socketPath(x.Path) }

// socketPath refuses what cannot be the path of a Unix socket (unix(7)).
func socketPath(path string) error {
	if path == "" {
		return errors.New("no path")
	}
	return bounded("path", path, maxSocketPath)
}

// X11Open opens an x11 channel (RFC 4254, section 6.3.2).
type X11Open struct {
	OriginAddr string
	OriginPort uint32
}

// ParseX11Open reads the extra data of an x11 channel open.
func ParseX11Open(payload []byte) (X11Open, error) { return parse[X11Open](ChannelX11, payload) }

// Marshal returns x as the extra data of a channel open.
func (x X11Open) Marshal() []byte { return ssh.Marshal(x) }

func (x X11Open) check() error { return bindable(x.OriginAddr, x.OriginPort) }

// AuthorityOpen opens an accessd-authority channel. The origin is the address
// of the peer whose SSH handshake with the authority follows on the channel.
type AuthorityOpen struct {
	OriginAddr string
	OriginPort uint32
}

// ParseAuthorityOpen reads the extra data of an accessd-authority channel open.
func ParseAuthorityOpen(payload []byte) (AuthorityOpen, error) {
	return parse[AuthorityOpen](ChannelAuthority, payload)
}

// Marshal returns x as the extra data of a channel open.
func (x AuthorityOpen) Marshal() []byte { return ssh.Marshal(x) }

func (x AuthorityOpen) check() error { return bindable(x.OriginAddr, x.OriginPort) }
