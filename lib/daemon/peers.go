package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/reversetunnel"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// peers reaches the other authorities of the cluster as a proxy reaches its
// authority. Each call has a connection of its own: somebody asks seldom, and who
// is back is reached at once.
type peers struct {
	cache *services.Cache
	trust func() sshca.Trust

	self atomic.Pointer[member] // this authority's; nil until it was admitted
}

// peerAgain is the pause before another attempt after one that reached another
// member than was meant: behind one address may be several.
const peerAgain = 100 * time.Millisecond

// What keeps a call from an authority.
var (
	errPeerHere  = fault.New(fault.Unavailable, "this process does not know yet where it is")
	errPeerOther = fault.New(fault.Unavailable, "another member answers at its address")
)

// Peer returns a client of the services of the authority with the given id.
func (p *peers) Peer(id names.NodeID) *http.Client {
	return &http.Client{Transport: roundTrip(func(req *http.Request) (*http.Response, error) {
		for {
			res, err := p.call(req, id)
			if err == nil {
				return res, nil
			}
			if !errors.Is(err, errPeerOther) || !sleep(req.Context(), peerAgain) {
				req.Body.Close()
				return nil, err
			}
		}
	})}
}

// call makes a call on a new connection, which ends with the answer's body.
func (p *peers) call(req *http.Request, id names.NodeID) (*http.Response, error) {
	self := p.self.Load()
	m, ok := p.cache.Member(id)
	if self == nil || !ok || len(m.Addresses) == 0 {
		return nil, errPeerHere
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	agent, err := reversetunnel.NewAgent(reversetunnel.AgentConfig{
		Addresses: func() []string { return m.Addresses }, Identity: self.credentials, Trust: p.trust,
		Dial: dialPeer(len(m.Addresses), cancel),
	})
	if err != nil {
		cancel(nil)
		return nil, err
	}
	gone := make(chan struct{})
	go func() { // end waits for it
		defer close(gone)
		_ = agent.Run(ctx) // it ends with ctx only
	}()
	end := func() {
		cancel(nil)
		<-gone
	}
	err = up(ctx, agent)
	if err == nil && !slices.Contains(agent.Up(), id) {
		err = errPeerOther
	}
	var res *http.Response
	if err == nil {
		res, err = agent.Authority().Transport.RoundTrip(req.WithContext(ctx))
	}
	if err != nil {
		end()
		return nil, err
	}
	res.Body = &lastBody{res.Body, end}
	return res, nil
}

// up waits until the agent has a link.
func up(ctx context.Context, agent *reversetunnel.Agent) error {
	for {
		changed := agent.Changed()
		if len(agent.Up()) > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Unavailable, context.Cause(ctx), "it cannot be reached")
		case <-changed:
		}
	}
}

// dialPeer returns a function that opens TCP connections, and calls failed when
// as many attempts as there are addresses have come to nothing.
func dialPeer(addresses int, failed func(error)) func(ctx context.Context, address string) (net.Conn, error) {
	var fails atomic.Int64
	return func(ctx context.Context, address string) (net.Conn, error) {
		d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: defaults.KeepaliveInterval, Interval: defaults.KeepaliveInterval, Count: defaults.KeepaliveMisses,
		}}
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil && fails.Add(1) >= int64(addresses) {
			failed(err)
		}
		return conn, err
	}
}

// lastBody is the body of the last answer on a connection.
type lastBody struct {
	io.ReadCloser
	end func()
}

// Close closes the body, and the connection with it.
func (b *lastBody) Close() error {
	err := b.ReadCloser.Close()
	b.end()
	return err
}
