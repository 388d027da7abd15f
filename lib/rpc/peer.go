// Package rpc carries the services of api/accessd/v1 over any connection: a
// channel of an SSH connection, a unix socket, or none at all inside a process.
//
// The wire is Connect over HTTP/2 in clear text with prior knowledge; secrecy
// and identity are the connection's business. Whoever accepted the connection
// says who is at its other end with a [Peer], and a service asks [PeerFrom];
// nothing in a request can change it. Errors cross the wire as lib/fault's: the
// kind, the public text and the hint, never the cause.
package rpc

import (
	"context"
	"net/netip"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/sshca"
)

// Peer is who is at the other end of a connection. The zero value is nobody.
type Peer struct {
	Identity *sshca.Identity // from a verified certificate; nil without one
	Local    bool            // an administrator of this machine, through admin.sock
	UID      uint32          // of a local peer's process
	Joiner   ssh.PublicKey   // the proven key of somebody who wants to join
	Addr     netip.AddrPort  // where it comes from; zero when local
}

type peerKey struct{}

// WithPeer returns a context whose calls come from p.
func WithPeer(ctx context.Context, p Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// PeerFrom returns who makes the call of ctx; false means nobody known.
func PeerFrom(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}
