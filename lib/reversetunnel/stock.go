package reversetunnel

import (
	"context"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

const (
	// stockProbe is how long the holder of a stock node's tunnel has to prove that
	// it lives: what dials again is a script that should get its place at once.
	stockProbe = time.Second
	// stockPort is what a node gets that asks for whatever port there is. Nothing
	// listens on it; it is a name.
	stockPort = 22
)

// ForwardStock answers the tcpip-forward or cancel-tcpip-forward request of a
// node that dials home with stock "ssh -R". Nothing else comes from such a node,
// so the forward is the tunnel: it is up before the request is answered, and each
// session is a channel on the same connection.
func (s *Server) ForwardStock(c *sshserver.Conn, r *ssh.Request) (ok bool, payload []byte) {
	f, err := sshwire.ParseTCPIPForward(r.Payload)
	if err != nil || c.Identity == nil || c.Identity.Kind != sshca.KindNode {
		return false, nil
	}
	if r.Type == sshwire.RequestCancelTCPIPForward {
		return s.cancelStock(c, f), nil
	}
	if f.Port == 0 { // RFC 4254, section 7.1: the server chooses
		f.Port = stockPort
		payload = sshwire.TCPIPForwardReply{Port: f.Port}.Marshal()
	}
	ctx, end := context.WithCancelCause(c.Context())
	t := tunnelOf(c, end, stockProbe)
	t.forward = f
	if s.openStock(ctx, t) {
		return true, payload
	}
	end(nil)
	return false, nil
}

// openStock makes t the one tunnel of its connection and of its node.
func (s *Server) openStock(ctx context.Context, t *tunnel) bool {
	s.mu.Lock()
	_, taken := s.forwards[t.conn]
	if !taken {
		s.forwards[t.conn] = t.forward
	}
	s.mu.Unlock()
	if taken {
		return false
	}
	forget := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.forwards, t.conn)
	}
	if err := s.register(ctx, t); err != nil {
		forget()
		return false
	}
	up := s.spawn(func() {
		select {
		case <-ctx.Done():
		case <-t.gone: // replaced, and so is its connection
		}
		s.unregister(ctx, t)
		forget()
	})
	if !up {
		s.unregister(ctx, t)
		forget()
	}
	return up
}

// cancelStock ends the tunnel that the forward f is, if c has it.
func (s *Server) cancelStock(c *sshserver.Conn, f sshwire.TCPIPForward) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tunnels[c.Identity.Member]
	asked, ok := s.forwards[c]
	if !ok || asked != f || t == nil || t.conn != c {
		return false
	}
	t.end(errCancelled)
	return true
}
