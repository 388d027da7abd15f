package reversetunnel

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/sshca"
)

// JoinUser is the SSH user of a host that is no member yet.
const JoinUser = "+join"

// JoinConfig configures [Join].
type JoinConfig struct {
	Address string     // of a proxy or an authority; required
	Pins    []string   // of the host CA, as [sshca.Pin] gives them; required
	Key     ssh.Signer // the key that the member certificate will be for; required

	// Dial opens the connection; nil means TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	Now  func() time.Time // nil means time.Now
}

// Join connects to the authority as a host that wants to become a member. The
// returned client reaches the join service and nothing else; close ends the
// connection.
//
// The host that answers at Address must have a certificate of a pinned CA, and
// so must the authority, to which the calls go in an SSH connection of their
// own: who relays cannot read the token. With a wrong pin nothing is sent.
func Join(ctx context.Context, cfg JoinConfig) (client accessdv1connect.JoinServiceClient, closeConn func(), err error) {
	if cfg.Address == "" || len(cfg.Pins) == 0 || cfg.Key == nil {
		return nil, nil, fault.New(fault.Internal, "join: address, pins and key are required")
	}
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	outer, err := cfg.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		outer.finish()
	}()
	calls := rpc.Client(func(ctx context.Context) (net.Conn, error) {
		return outer.openNested(ctx, clientConfig(JoinUser, cfg.Key, cfg.authorityKey))
	})
	closeConn = func() {
		outer.raw.Close()
		<-done
		calls.CloseIdleConnections()
	}
	return rpc.Service(calls, accessdv1connect.NewJoinServiceClient), closeConn, nil
}

// connect dials and logs in with no more than a key.
func (cfg *JoinConfig) connect(ctx context.Context) (*client, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := cfg.Dial(ctx, cfg.Address)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, fmt.Sprintf("cannot connect to %q", cfg.Address))
	}
	var refused error
	c, err := newClient(ctx, raw, clientConfig(JoinUser, cfg.Key, func(host string, remote net.Addr, key ssh.PublicKey) error {
		_, refused = cfg.pinned(host, remote, key)
		return refused
	}))
	switch {
	case refused != nil:
		return nil, fault.Wrap(fault.Denied, refused, fmt.Sprintf("the host at %q is not of the cluster that the pin is of", cfg.Address)).
			WithHint(`compare the pin with what "accessd ca pin" prints at the authority; the token was not sent`)
	case err != nil:
		return nil, fault.Wrap(fault.Unavailable, err, fmt.Sprintf("no SSH connection to %q", cfg.Address))
	}
	return c, nil
}

// pinned checks that a host key is certified by a pinned CA, and returns that.
func (cfg *JoinConfig) pinned(host string, remote net.Addr, key ssh.PublicKey) (ca ssh.PublicKey, err error) {
	err = sshca.PinnedHostKeyCallback(cfg.Pins, cfg.Now, func(k ssh.PublicKey) { ca = k })(host, remote, key)
	return ca, err
}

// authorityKey checks the host key of the nested connection: pinned as well, and
// the authority's, for any member has a certificate of the same CA.
func (cfg *JoinConfig) authorityKey(host string, remote net.Addr, key ssh.PublicKey) error {
	ca, err := cfg.pinned(host, remote, key)
	if err != nil {
		return err
	}
	return sshca.Trust{Host: []ssh.PublicKey{ca}}.HostKeyCallback(defaults.AuthorityName, cfg.Now)(host, remote, key)
}
