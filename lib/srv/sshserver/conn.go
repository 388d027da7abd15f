package sshserver

import (
	"context"
	"net/netip"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/sshca"
)

// Conn is one connection.
type Conn struct {
	// ServerConn is nil until the peer has authenticated.
	*ssh.ServerConn
	// Identity is who the peer has proven to be, or nil. Only [Conn.Prove] sets
	// it; a handler reads it.
	Identity *sshca.Identity
	// Joiner is the key a peer without an identity has proven to hold, or nil.
	Joiner ssh.PublicKey
	// Remote is the peer's address, as a trusted load balancer attests it; the
	// zero AddrPort when the transport has none.
	Remote netip.AddrPort
	// Relay is the load balancer that attested Remote, or the zero AddrPort.
	Relay netip.AddrPort
	// Value is the embedder's own; set it in Authenticate or Opened.
	Value any
}

// ClientVersion returns the peer's identification string, also before
// authentication. It is the peer's own text: escape it.
func (c *Conn) ClientVersion() []byte { return nil }

// Context ends when the connection does; its cause says why.
func (c *Conn) Context() context.Context { return nil }

// Draining is closed when the server stops: handlers should come to an end.
func (c *Conn) Draining() <-chan struct{} { return nil }

// Cut closes the connection at once; cause becomes the cause of its context and
// the error of Closed. It never blocks.
func (c *Conn) Cut(cause error) {}

// Prove records who the peer is. It may be called only while a
// VerifiedPublicKeyCallback, KeyboardInteractiveCallback or PasswordCallback
// runs, and counts only if that callback accepts, fully or in part. A second
// proof that names another identity is refused.
func (c *Conn) Prove(id *sshca.Identity) error { return nil }

// ProveKey records that the peer holds key, under the same terms.
func (c *Conn) ProveKey(key ssh.PublicKey) error { return nil }

// Park tells that a person now types: the time to authenticate grows to
// SignInTimeout. The error tells that too many sign-ins are under way.
func (c *Conn) Park() error { return nil }

// Penalize records an offence of the peer's source with the listener.
func (c *Conn) Penalize(o listener.Offence) {}

// OpenChannel opens a channel to the peer. It has the bounds of channels the
// peer opens.
func (c *Conn) OpenChannel(name string, data []byte) (ssh.Channel, <-chan *ssh.Request, error) {
	return c.ServerConn.OpenChannel(name, data)
}
