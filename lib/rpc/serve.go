package rpc

import (
	"context"
	"net"
	"net/http"
	"sync"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/net/http2"
)

// BaseURL is what clients are made with; the connection decides where calls go.
const BaseURL = "http://accessd"

// Bounds of one connection. Members hold a handful of streams; the small frames
// and windows keep an idle tunnel cheap at the proxy.
const (
	maxStreams   = 64
	maxHeader    = 16 << 10 // bytes
	maxFrame     = 16 << 10 // bytes
	streamWindow = 64 << 10 // bytes
	connWindow   = 1 << 20  // bytes
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
//
// It uses golang.org/x/net's server because net/http's has no way to serve one
// connection: with a listener around it, it keeps the buffers of HTTP/1 and
// another goroutine, 16 KiB more for each idle tunnel of a proxy.
func Serve(ctx context.Context, conn net.Conn, peer Peer, h http.Handler) error {
	ctx, cancel := context.WithCancel(WithPeer(ctx, peer))
	defer cancel()
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	calls := &calls{next: h}
	var srv http2.Server                      //nolint:staticcheck // SA1019: see above
	srv.ServeConn(conn, &http2.ServeConnOpts{ //nolint:staticcheck // SA1019: see above
		Context: ctx,
		Handler: calls,
		BaseConfig: &http.Server{ //nolint:gosec // G112: the carrier of conn bounds its time
			HTTP2:          h2(),
			MaxHeaderBytes: maxHeader,
			ErrorLog:       zap.NewStdLog(zap.NewNop()), // what a peer does wrong ends its connection only
		},
	})
	cancel()
	calls.wait()
	return nil
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

// Service returns the client of one service over calls; with is the function that
// the generator has made for it.
func Service[S any](calls connect.HTTPClient, with func(connect.HTTPClient, string, ...connect.ClientOption) S) S {
	return with(calls, BaseURL, ClientOptions()...)
}
