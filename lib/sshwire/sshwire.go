// Package sshwire reads and writes the payloads of the SSH channel types and
// requests that accessd speaks: those of RFC 4254, the OpenSSH extensions stock
// clients send, and accessd's own two channel types.
//
// Every Parse function takes a peer's bytes and returns a value that is safe to
// use: each string is bounded and free of NUL bytes, each port fits 16 bits,
// and no byte is left over. All else is refused with a [fault.BadInput] error.
// The strings are still the peer's words: they may hold control characters, so
// nothing here may reach a terminal unescaped.
//
// The package holds no state and decides nothing. It exports one name per
// message, which is why it has more of them than other packages.
package sshwire

import (
	"net/netip"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
)

// Channel types.
const (
	ChannelSession              = "session"                           // RFC 4254, section 6.1
	ChannelDirectTCPIP          = "direct-tcpip"                      // RFC 4254, section 7.2
	ChannelForwardedTCPIP       = "forwarded-tcpip"                   // RFC 4254, section 7.2
	ChannelX11                  = "x11"                               // RFC 4254, section 6.3.2
	ChannelAgent                = "auth-agent@openssh.com"            // OpenSSH's agent forwarding
	ChannelDirectStreamlocal    = "direct-streamlocal@openssh.com"    // OpenSSH PROTOCOL, section 2.4
	ChannelForwardedStreamlocal = "forwarded-streamlocal@openssh.com" // the same
	ChannelAPI                  = "accessd-api"                       // HTTP/2 cleartext to the services of a member
	ChannelAuthority            = "accessd-authority"                 // raw stream to the authority's SSH server
)

// Global requests.
const (
	RequestTCPIPForward             = "tcpip-forward"                          // RFC 4254, section 7.1
	RequestCancelTCPIPForward       = "cancel-tcpip-forward"                   // RFC 4254, section 7.1
	RequestStreamlocalForward       = "streamlocal-forward@openssh.com"        // OpenSSH PROTOCOL, section 2.4
	RequestCancelStreamlocalForward = "cancel-streamlocal-forward@openssh.com" // the same
	RequestKeepalive                = "keepalive@openssh.com"                  // OpenSSH PROTOCOL, section 2.8; also on channels
	RequestNoMoreSessions           = "no-more-sessions@openssh.com"           // OpenSSH PROTOCOL, section 2.2
	RequestHostKeys                 = "hostkeys-00@openssh.com"                // OpenSSH PROTOCOL, section 2.5
)

// Channel requests.
const (
	RequestPTY          = "pty-req"                    // RFC 4254, section 6.2
	RequestX11          = "x11-req"                    // RFC 4254, section 6.3.1
	RequestEnv          = "env"                        // RFC 4254, section 6.4
	RequestShell        = "shell"                      // RFC 4254, section 6.5
	RequestExec         = "exec"                       // RFC 4254, section 6.5
	RequestSubsystem    = "subsystem"                  // RFC 4254, section 6.5
	RequestWindowChange = "window-change"              // RFC 4254, section 6.7
	RequestSignal       = "signal"                     // RFC 4254, section 6.9
	RequestExitStatus   = "exit-status"                // RFC 4254, section 6.10
	RequestExitSignal   = "exit-signal"                // RFC 4254, section 6.10
	RequestBreak        = "break"                      // RFC 4335, section 3
	RequestAgent        = "auth-agent-req@openssh.com" // OpenSSH's agent forwarding
	RequestEOW          = "eow@openssh.com"            // OpenSSH PROTOCOL, section 2.1
)

// Bounds on what a peer may say, in bytes.
const (
	maxAddress    = 255       // the longest host name in text form (RFC 1035, section 2.3.4)
	maxTerm       = 128       // terminfo's longest name is about 40
	maxModes      = 2048      // 256 opcodes of 5 bytes and room
	maxEnvName    = 256       // the longest locale variable is 17
	maxEnvValue   = 32 << 10  // what fits beside others in one exec
	maxCommand    = 256 << 10 // x/crypto's largest packet; the kernel's own limit is 128 KiB
	maxSubsystem  = 256       // "sftp", or a path in some clients
	maxSignal     = 64        // the RFC's names have 4 at most; room for "name@domain"
	maxMessage    = 4096      // one error message of an exit-signal
	maxLanguage   = 64        // RFC 3066 tags
	maxX11        = 512       // a cookie has 32 hexadecimal digits
	maxScreen     = 1 << 10   // displays have a few
	maxSocketPath = 107       // sun_path without its NUL (unix(7))
)

// maxPort is the largest TCP port; the wire has room for 32 bits.
const maxPort = 1<<16 - 1

// payload is a message that can tell whether its values are in bounds.
type payload interface{ check() error }

// parse reads b, the payload of a message called name, as a T and checks it.
func parse[T payload](name string, b []byte) (T, error) {
	var x, zero T
	if err := ssh.Unmarshal(b, &x); err != nil {
		return zero, fault.Wrap(fault.BadInput, err, name+": malformed payload")
	}
	if err := x.check(); err != nil {
		return zero, fault.New(fault.BadInput, "%s: %w", name, err)
	}
	return x, nil
}

// bounded refuses a text that is longer than limit bytes or holds a NUL, which
// no system call would take (OpenSSH refuses it too, in sshbuf_get_cstring).
func bounded(what, s string, limit int) error {
	if len(s) > limit {
		return fault.New(fault.BadInput, "%s has %d bytes, want at most %d", what, len(s), limit)
	}
	if strings.IndexByte(s, 0) >= 0 {
		return fault.New(fault.BadInput, "%s holds a NUL byte", what)
	}
	return nil
}

func bindable(addr string, port uint32) error {
	if port > maxPort {
		return fault.New(fault.BadInput, "port %d is larger than %d", port, maxPort)
	}
	return bounded("address", addr, maxAddress)
}

// ParseOrigin returns the originator of a channel as an address, or the zero
// AddrPort when it is none: some clients send "UNKNOWN" or nothing. IPv4 in
// IPv6 form is unmapped, so that the same peer always has the same address.
func ParseOrigin(addr string, port uint32) netip.AddrPort {
	ip, err := netip.ParseAddr(addr)
	if err != nil || ip.Zone() != "" || port > maxPort {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(port))
}
