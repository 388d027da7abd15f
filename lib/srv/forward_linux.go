package srv

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
)

const (
	// connectTime bounds a look-up and all connection attempts of one dial.
	connectTime = 10 * time.Second
	// maxAddresses bounds the addresses of one name that are tried.
	maxAddresses = 8
	// firstPort is the first port that anybody but root may listen on.
	firstPort = 1024
)

// Dial implements [Executor].
func (l *Local) Dial(ctx context.Context, a Account, e Endpoint, admit Admit) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	if e.Path != "" {
		return l.dialSocket(ctx, a, e.Path, admit)
	}
	addresses, err := lookUp(ctx, e.Host)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "this node does not know the host "+strconv.Quote(e.Host))
	}
	var failed, refused error
	for _, addr := range addresses {
		if err := admit(addr); err != nil {
			refused = err
			continue
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, e.Port).String())
		if err == nil {
			return conn, nil
		}
		failed = fault.Wrap(fault.Unavailable, err, "connect failed: "+errorText(err))
	}
	return nil, cmp.Or(failed, refused)
}

// lookUp returns the addresses that host stands for on this machine.
func lookUp(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, ok := services.LiteralAddr(host); ok {
		return []netip.Addr{addr}, nil
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("the name has no address")
	}
	found = found[:min(len(found), maxAddresses)]
	for i, addr := range found {
		found[i] = addr.Unmap()
	}
	return found, nil
}

// Listen implements [Executor]. It listens on loopback whatever the client asks
// for, as sshd does without GatewayPorts.
func (l *Local) Listen(ctx context.Context, a Account, e Endpoint) (net.Listener, error) {
	acct, leave, err := l.enter(ctx, a)
	if err != nil {
		return nil, err
	}
	ln, err := l.listenAs(ctx, acct, e)
	if err != nil {
		leave()
		return nil, err
	}
	return lease{ln, leave}, nil
}

// listenAs listens on e as acct.
func (l *Local) listenAs(ctx context.Context, acct account, e Endpoint) (net.Listener, error) {
	if e.Path != "" {
		return l.listenSocket(ctx, acct, e.Path)
	}
	if e.Port != 0 && e.Port < firstPort && acct.uid != 0 {
		return nil, fault.New(fault.Denied, "only root may listen on port %d", e.Port)
	}
	first, err := listenOn(ctx, "127.0.0.1", e.Port)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "listen failed: "+errorText(err))
	}
	at, err := netip.ParseAddrPort(first.Addr().String())
	if err != nil {
		first.Close()
		return nil, err
	}
	second, err := listenOn(ctx, "::1", at.Port())
	if err != nil { // no IPv6 here, or somebody else has that port
		return first, nil //nolint:nilerr // sshd does with one address, too
	}
	return newBoth(first, second), nil
}

func listenOn(ctx context.Context, host string, port uint16) (net.Listener, error) {
	var c net.ListenConfig
	return c.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
}

// both is one listener on two addresses.
type both struct {
	net.Listener // the first

	second net.Listener
	conns  chan net.Conn
	done   chan struct{}
	once   sync.Once
	work   sync.WaitGroup

	mu  sync.Mutex
	err error // why the first of them has ended
}

func newBoth(first, second net.Listener) *both {
	b := &both{Listener: first, second: second, conns: make(chan net.Conn), done: make(chan struct{})}
	b.work.Go(func() { b.accept(first) })
	b.work.Go(func() { b.accept(second) })
	return b
}

func (b *both) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			b.end(err)
			return
		}
		select {
		case b.conns <- conn:
		case <-b.done:
			conn.Close()
		}
	}
}

// end closes both because of err.
func (b *both) end(err error) {
	b.once.Do(func() {
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
		close(b.done)
		b.Listener.Close()
		b.second.Close()
	})
}

// Accept implements [net.Listener].
func (b *both) Accept() (net.Conn, error) {
	select {
	case conn := <-b.conns:
		return conn, nil
	case <-b.done:
		b.mu.Lock()
		defer b.mu.Unlock()
		return nil, b.err
	}
}

// Close implements [net.Listener].
func (b *both) Close() error {
	b.end(net.ErrClosed)
	b.work.Wait()
	return nil
}
