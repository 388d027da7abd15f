// Package listener shares one port between SSH, HTTPS and data connections.
package listener

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Protocol is what a connection speaks.
type Protocol string

// The protocols.
const (
	ProtocolSSH   Protocol = "ssh"   // SSH, bare or inside TLS (ALPN "accessd-ssh")
	ProtocolHTTPS Protocol = "https" // HTTP inside TLS
	ProtocolData  Protocol = "data"  // a node's data connection
)

// DataPreface begins a data connection without TLS. The listener takes it off.
const DataPreface = "ACCESSD-DATA/1\n"

// The names in TLS's ALPN extension (RFC 7301) by which peers choose a
// protocol other than HTTP.
const (
	ALPNSSH  = "accessd-ssh"
	ALPNData = "accessd-data"
)

// Bind is an address to listen on.
type Bind struct {
	Addr      string     // host:port; port 0 lets the system choose
	Protocols []Protocol // what may be spoken there; nil means all
}

// Config configures a [Listener].
type Config struct {
	Bind         // the main address; required
	Extra []Bind // further addresses

	// TrustedProxies are the networks of load balancers. A connection from them
	// must begin with a PROXY header, v1 or v2; from anywhere else the header
	// is garbage.
	TrustedProxies []netip.Prefix
	// Certificate returns the certificate for a TLS client; nil serves no TLS
	// but that of data connections.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Data configures TLS of data connections; nil refuses them. Its NextProtos
	// is set to ALPNData.
	Data *tls.Config
	// PlainData takes data connections without TLS too.
	PlainData bool

	Limits     Limits
	Now        func() time.Time      // nil is time.Now
	Registerer prometheus.Registerer // nil keeps the counters private
	Log        *zap.Logger           // nil discards
}

// Listener accepts connections and gives them out by protocol.
type Listener struct{ cfg Config }

// New returns a Listener that has opened nothing yet.
func New(cfg Config) (*Listener, error) { return &Listener{cfg: cfg}, nil }

// Listen binds the addresses, so that Addr is known before Run.
func (l *Listener) Listen(context.Context) error { return nil }

// Addr returns the main address once Listen has succeeded, else nil.
func (l *Listener) Addr() net.Addr { return nil }

// Addrs returns all addresses, the main one first.
func (l *Listener) Addrs() []net.Addr { return nil }

// Run accepts until ctx ends; it calls Listen unless that was done.
func (l *Listener) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// SSH returns the listener of SSH connections. What it accepts is a [*Conn].
func (l *Listener) SSH() net.Listener { return nil }

// HTTPS returns the listener of HTTP connections, TLS already done; what it
// accepts is a [*Conn].
func (l *Listener) HTTPS() net.Listener { return nil }

// Data returns the listener of data connections. What it accepts is a [*Conn];
// with TLS its handshake is done, without the preface is taken off. Who serves
// it must call Authenticated once the ticket is good; until then the connection
// holds a place among the unauthenticated and is closed after 30 s.
func (l *Listener) Data() net.Listener { return nil }
