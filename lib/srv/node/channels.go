package node

import (
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshwire"
)

// OpenSSH's own channel and request types for Unix sockets (PROTOCOL, section
// 2.4).
const (
	channelDirectStreamlocal  = "direct-streamlocal@openssh.com"
	requestStreamlocalForward = "streamlocal-forward@openssh.com"
)

// maxTarget bounds what is kept of a destination, in bytes.
const maxTarget = 512

// person is the Value of a connection.
type person struct {
	client *srv.Client
	since  time.Time
	last   atomic.Bool // the client opens no more sessions
}

// opened is called when a person has logged in.
func (s *Server) opened(c *sshserver.Conn) error {
	local, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		local = netip.AddrPort{} // a transport without addresses
	}
	c.Value = &person{
		client: s.sessions.Connect(srv.ClientConfig{
			Identity: c.Identity, Login: names.Login(c.User()), Remote: c.Remote, Local: local,
			ID: connectionID(c), Cut: c.Cut,
		}),
		since: time.Now(),
	}
	return nil
}

// closed is called when nothing of the connection runs any more.
func (s *Server) closed(c *sshserver.Conn, err error) {
	p := personOf(c)
	p.client.Close()
	_ = s.emit(c.Context(), s.disconnectEvent(c, p.since, err)) // there is nobody left to tell
}

func personOf(c *sshserver.Conn) *person {
	p, ok := c.Value.(*person)
	if !ok {
		panic("node: internal error: a connection without a person")
	}
	return p
}

// channels are the channel types that are known. Others are refused and counted.
func (s *Server) channels() map[string]func(*sshserver.Conn, ssh.NewChannel) {
	return map[string]func(*sshserver.Conn, ssh.NewChannel){
		sshwire.ChannelSession:     session,
		sshwire.ChannelDirectTCPIP: forward,
		channelDirectStreamlocal:   forward,
	}
}

func session(c *sshserver.Conn, nc ssh.NewChannel) {
	p := personOf(c)
	if p.last.Load() {
		_ = nc.Reject(ssh.Prohibited, "no more sessions were announced") // fails when the connection has ended
		return
	}
	p.client.Session(c.Context(), nc)
}

// forward refuses a channel to somewhere else.
func forward(c *sshserver.Conn, nc ssh.NewChannel) {
	reason := personOf(c).client.Refuse(c.Context(), srv.Refusal{
		Action: authz.ActionForwardLocal, Kind: nc.ChannelType(), Target: channelTarget(nc), What: "port forwarding",
	})
	_ = nc.Reject(ssh.Prohibited, reason) // fails when the connection has ended
}

// channelTarget returns where a channel is to lead, in the client's words.
func channelTarget(nc ssh.NewChannel) string {
	if nc.ChannelType() == sshwire.ChannelDirectTCPIP {
		if x, err := sshwire.ParseDirectTCPIP(nc.ExtraData()); err == nil {
			return hostPort(x.Host, x.Port)
		}
	}
	return firstString(nc.ExtraData())
}

// requests are the global requests that are known. Others are refused and
// counted.
func (s *Server) requests() map[string]func(*sshserver.Conn, *ssh.Request) (bool, []byte) {
	return map[string]func(*sshserver.Conn, *ssh.Request) (bool, []byte){
		sshwire.RequestTCPIPForward: listen,
		requestStreamlocalForward:   listen,
		sshwire.RequestNoMoreSessions: func(c *sshserver.Conn, _ *ssh.Request) (bool, []byte) {
			personOf(c).last.Store(true)
			return true, nil
		},
	}
}

// listen refuses to listen for the client.
func listen(c *sshserver.Conn, r *ssh.Request) (bool, []byte) {
	target := firstString(r.Payload)
	if x, err := sshwire.ParseTCPIPForward(r.Payload); err == nil && r.Type == sshwire.RequestTCPIPForward {
		target = hostPort(x.Addr, x.Port)
	}
	personOf(c).client.Refuse(c.Context(), srv.Refusal{
		Action: authz.ActionForwardRemote, Kind: r.Type, Target: target, What: "remote port forwarding",
	})
	return false, nil
}

func hostPort(host string, port uint32) string {
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}

// firstString returns the string that payload begins with, for the log.
func firstString(payload []byte) string {
	var x struct {
		S    string
		Rest []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(payload, &x); err != nil {
		return ""
	}
	return x.S[:min(len(x.S), maxTarget)]
}
