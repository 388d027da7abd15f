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
