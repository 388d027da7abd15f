package rpc

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
)

// BaseURL is what clients are made with; the connection decides where calls go.
const BaseURL = "http://accessd"

// Bounds of one connection. Members hold a handful of streams; the small frames
// and windows keep an idle tunnel cheap at the proxy.
const (
	maxStreams    = 64
	maxHeader     = 16 << 10 // bytes
	maxFrame      = 16 << 10 // bytes
	streamWindow  = 64 << 10 // bytes
	connWindow    = 1 << 20  // bytes
	headerTimeout = 10 * time.Second
)

// h2 are the HTTP/2 settings of both ends.
func h2() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams:          maxStreams,
		MaxReadFrameSize:              maxFrame,
		MaxReceiveBufferPerStream:     streamWindow,
		MaxReceiveBufferPerConnection: connWindow,
		MaxDecoderHeaderTableSize:     4 << 10,
		MaxEncoderHeaderTableSize:     4 << 10,
	}
}

func clearHTTP2() *http.Protocols {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &p
}

// Serve answers peer's calls on conn with h until the peer closes conn or ctx
// ends; it always closes conn and waits for every handler.
func Serve(ctx context.Context, conn net.Conn, peer Peer, h http.Handler) error {
	ctx, cancel := context.WithCancel(WithPeer(ctx, peer))
	defer cancel()
	calls := &calls{next: h}
	srv := &http.Server{
		Handler:           calls,
		Protocols:         clearHTTP2(),
		HTTP2:             h2(),
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          zap.NewStdLog(zap.NewNop()), // what a peer does wrong ends its connection only
		ReadHeaderTimeout: headerTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	ln := newOneConn(conn)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err := srv.Serve(ln)
	cancel()
	srv.Close()
	calls.wait()
	if errors.Is(err, net.ErrClosed) {
		return nil // the peer hung up, or ctx ended
	}
	return err
}

// calls counts the calls that run, and begins none once wait was called: net/http
// starts handlers in goroutines that may get here after their connection is gone.
type calls struct {
	next http.Handler

	mu   sync.Mutex
	over bool
	live sync.WaitGroup
}

// ServeHTTP implements [http.Handler].
func (c *calls) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		return
	}
	c.live.Add(1)
	c.mu.Unlock()
	defer c.live.Done()
	c.next.ServeHTTP(w, r)
}

func (c *calls) wait() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.live.Wait()
}

// oneConn is a listener that yields one connection and ends with it.
type oneConn struct {
	conn   net.Conn
	first  sync.Once
	closed chan struct{}
	once   sync.Once
}

func newOneConn(c net.Conn) *oneConn { return &oneConn{conn: c, closed: make(chan struct{})} }

// Accept implements [net.Listener].
func (l *oneConn) Accept() (net.Conn, error) {
	var c net.Conn
	l.first.Do(func() { c = watchedConn{l.conn, l} })
	if c != nil {
		return c, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

// Close implements [net.Listener].
func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements [net.Listener].
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// watchedConn ends its listener when the server closes it.
type watchedConn struct {
	net.Conn
	ln *oneConn
}

// Close implements [net.Conn].
func (c watchedConn) Close() error {
	err := c.Conn.Close()
	return errors.Join(err, c.ln.Close())
}

// Client returns a client whose connections dial makes; calls share one
// connection, which is made anew when it breaks.
func Client(dial func(context.Context) (net.Conn, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{
		Protocols:          clearHTTP2(),
		HTTP2:              h2(),
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableCompression: true,
		IdleConnTimeout:    0,
	}}
}
