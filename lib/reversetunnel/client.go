package reversetunnel

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/sshwire"
)

// maxWaiting bounds what waits on one connection at the dialing side: channels of
// the authority's services, and relayed ones, with a few goroutines each.
const maxWaiting = 4096

// client is the dialing side of one SSH connection, to a proxy or through one
// to the authority.
type client struct {
	raw   net.Conn
	conn  ssh.Conn
	chans <-chan ssh.NewChannel
	reqs  <-chan *ssh.Request
	work  gate // what waits on the connection
}

// clientConfig returns what the dialing side negotiates: the best of what our
// servers offer, and certificates only.
func clientConfig(user string, signer ssh.Signer, hostKey ssh.HostKeyCallback) *ssh.ClientConfig {
	return &ssh.ClientConfig{
		Config: ssh.Config{
			KeyExchanges: []string{ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519},
			Ciphers:      []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305},
		},
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: hostKey,
		HostKeyAlgorithms: []string{
			ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
			ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01,
		},
		ClientVersion: "SSH-2.0-accessd",
	}
}

// newClient does the SSH handshake on raw, which it closes when that fails or
// ctx ends before.
func newClient(ctx context.Context, raw net.Conn, cfg *ssh.ClientConfig) (*client, error) {
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	conn, chans, reqs, err := ssh.NewClientConn(raw, "", cfg)
	if !stop() && err == nil {
		conn.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return &client{raw: raw, conn: conn, chans: chans, reqs: reqs}, nil
}

// finish refuses what the peer asks for until the connection has ended, and
// waits for all that waits on it.
func (c *client) finish() {
	var wg sync.WaitGroup
	wg.Go(func() { ssh.DiscardRequests(c.reqs) })
	for nc := range c.chans {
		_ = nc.Reject(ssh.Prohibited, "nothing is offered here")
	}
	wg.Wait()
	_ = c.conn.Wait()
	<-c.work.close()
}

// spawn runs f, which must end with the connection, in a goroutine that finish
// waits for, unless it no longer does.
func (c *client) spawn(f func()) bool {
	if !c.work.enter(maxWaiting) {
		return false
	}
	go func() {
		defer c.work.leave()
		f()
	}()
	return true
}

// open opens a channel, and closes it again when it comes only after ctx has
// ended. The open ends with the connection at the latest.
func (c *client) open(ctx context.Context, name string, data []byte) (net.Conn, error) {
	out := make(chan opening)
	ok := c.spawn(func() {
		o := c.tryOpen(name, data)
		select {
		case out <- o:
		case <-ctx.Done():
			if o.err == nil {
				o.conn.Close()
			}
		}
	})
	if !ok {
		return nil, net.ErrClosed
	}
	select {
	case o := <-out:
		return o.conn, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (c *client) tryOpen(name string, data []byte) opening {
	ch, reqs, err := c.conn.OpenChannel(name, data)
	if err != nil {
		return opening{err: err}
	}
	if !c.spawn(func() { ssh.DiscardRequests(reqs) }) || !c.spawn(func() { discard(ch.Stderr()) }) {
		ch.Close()
		return opening{err: net.ErrClosed}
	}
	return opening{conn: rpc.ChannelConn(ch, c.raw.LocalAddr(), c.raw.RemoteAddr())}
}

// openAPI opens a channel to the services of the peer.
func (c *client) openAPI(ctx context.Context) (net.Conn, error) {
	conn, err := c.open(ctx, sshwire.ChannelAPI, nil)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "no answer from the cluster")
	}
	return conn, nil
}

// openAuthority opens a raw stream to the authority for a peer at origin.
func (c *client) openAuthority(ctx context.Context, origin netip.AddrPort) (net.Conn, error) {
	if !origin.IsValid() {
		origin = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	conn, err := c.open(ctx, sshwire.ChannelAuthority, sshwire.AuthorityOpen{
		OriginAddr: origin.Addr().String(), OriginPort: uint32(origin.Port()),
	}.Marshal())
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the authority cannot be reached")
	}
	return conn, nil
}

// openNested opens a channel to the authority's services, inside an SSH
// connection of its own that ends at the authority, with which it ends.
func (c *client) openNested(ctx context.Context, cfg *ssh.ClientConfig) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, err := c.openAuthority(ctx, addrPort(c.raw.LocalAddr()))
	if err != nil {
		return nil, err
	}
	inner, err := newClient(ctx, raw, cfg)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the authority cannot be reached")
	}
	if !c.spawn(inner.finish) {
		raw.Close()
		inner.finish()
		return nil, net.ErrClosed
	}
	api, err := inner.openAPI(ctx)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return &nestedConn{Conn: api, inner: inner}, nil
}

// nestedConn is a channel that is all there is on its connection.
type nestedConn struct {
	net.Conn
	inner *client
}

// Close closes the connection with the channel.
func (c *nestedConn) Close() error {
	c.Conn.Close()
	return c.inner.raw.Close()
}

// discard reads r to its end, so that what nobody wants does not pile up. The
// buffer waits with the channel, so it is small.
func discard(r io.Reader) {
	var b [256]byte
	for {
		if _, err := r.Read(b[:]); err != nil {
			return
		}
	}
}

// nested returns the way to the authority's services through a connection of
// its own.
func (l *link) nested() http.RoundTripper {
	return rpc.Client(func(ctx context.Context) (net.Conn, error) {
		name, signer := l.agent.cfg.Identity()
		check := l.agent.cfg.Trust().HostKeyCallback(defaults.AuthorityName, l.agent.cfg.Now)
		return l.openNested(ctx, clientConfig(string(name), signer, check))
	}).Transport
}

// Authority returns a client for the authority's services, over whichever link
// is up. A call waits for one and is Unavailable when its context ends first.
func (a *Agent) Authority() *http.Client { return &http.Client{Transport: toAuthority{a}} }

// OpenAuthority opens a raw stream to the authority for a peer at origin, which
// runs its own SSH handshake with the authority on it.
func (a *Agent) OpenAuthority(ctx context.Context, origin netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	l, err := a.link(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := l.openAuthority(ctx, origin)
	if err != nil {
		a.demote(l)
	}
	return conn, err
}

// toAuthority sends each request by the first link that is up.
type toAuthority struct{ agent *Agent }

// RoundTrip implements [http.RoundTripper].
func (t toAuthority) RoundTrip(req *http.Request) (*http.Response, error) {
	l, err := t.agent.link(req.Context())
	if err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	resp, err := l.authority.RoundTrip(req)
	if err != nil && req.Context().Err() == nil {
		t.agent.demote(l)
	}
	return resp, err
}

// hostOf returns the host part of an address, as host certificates have it.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return strings.ToLower(host)
}
