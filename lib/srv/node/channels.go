package node

import (
	"net/netip"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/srv"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshwire"
)

// person is the Value of a connection.
type person struct {
	client   *srv.Client   // nil of an observer
	observer *srv.Observer // nil of everybody else
	since    time.Time
}

// opened is called when a person has logged in.
func (s *Server) opened(c *sshserver.Conn) error {
	l, ok := c.Value.(*login)
	if !ok {
		return fault.New(fault.Internal, "node: internal error: a connection without a login")
	}
	local, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		local = netip.AddrPort{} // a transport without addresses
	}
	host := hostOf(c)
	cfg := srv.ClientConfig{
		Identity: c.Identity, Login: names.Login(c.User()), Remote: c.Remote, Local: local, ID: connectionID(c),
		Node: host.Node, Executor: l.executor, OwnSSHD: host.OwnSSHD,
		Open: c.OpenChannel, Cut: c.Cut,
	}
	p := &person{since: time.Now()}
	if c.User() == srv.ObserverUser {
		p.observer = s.sessions.Observe(cfg)
	} else {
		p.client = s.sessions.Connect(cfg)
	}
	c.Value = p
	return nil
}

// closed is called when nothing of the connection runs any more.
func (s *Server) closed(c *sshserver.Conn, err error) {
	p := personOf(c)
	if p.client != nil {
		p.client.Close()
	}
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
		sshwire.ChannelSession:           session,
		sshwire.ChannelDirectTCPIP:       forward,
		sshwire.ChannelDirectStreamlocal: forward,
	}
}

func session(c *sshserver.Conn, nc ssh.NewChannel) {
	p := personOf(c)
	if p.observer != nil {
		p.observer.Session(c.Context(), nc)
		return
	}
	p.client.Session(c.Context(), nc)
}

// forward carries a channel to somewhere else.
func forward(c *sshserver.Conn, nc ssh.NewChannel) {
	p := personOf(c)
	if p.client == nil {
		_ = nc.Reject(ssh.Prohibited, "only sessions are followed here") // fails when the connection has ended
		return
	}
	p.client.Forward(c.Context(), nc)
}

// requests are the global requests that are known. Others are refused and
// counted.
func (s *Server) requests() map[string]func(*sshserver.Conn, *ssh.Request) (bool, []byte) {
	return map[string]func(*sshserver.Conn, *ssh.Request) (bool, []byte){
		sshwire.RequestTCPIPForward:             listen,
		sshwire.RequestCancelTCPIPForward:       listen,
		sshwire.RequestStreamlocalForward:       listen,
		sshwire.RequestCancelStreamlocalForward: listen,
	}
}

// listen listens for the client, or no more.
func listen(c *sshserver.Conn, r *ssh.Request) (bool, []byte) {
	p := personOf(c)
	if p.client == nil {
		return false, nil
	}
	return p.client.Listen(c.Context(), r)
}
