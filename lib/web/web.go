// Package web serves the HTTPS side of the listener: health, readiness and
// metrics.
package web

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Config configures a [Server]. The zero value of every field is usable.
type Config struct {
	// Unready returns the names of the roles that do not serve; none means
	// ready. nil is always ready.
	Unready func() []string
	// Gatherer is what /metrics shows; nil serves no /metrics.
	Gatherer prometheus.Gatherer
	// MetricsFrom are the networks that may read /metrics; nil means loopback
	// and private addresses.
	MetricsFrom []netip.Prefix
	Grace       time.Duration // for requests at shutdown; 0 means defaults.Grace
	Log         *zap.Logger   // nil discards
}

// Server is the HTTPS server.
type Server struct{ cfg Config }

// New returns a Server that has started nothing.
func New(cfg Config) (*Server, error) { return &Server{cfg: cfg}, nil }

// Handler returns the routes.
func (s *Server) Handler() http.Handler { return nil }

// Serve serves HTTP on connections from ln, on which TLS is done already, until
// ctx ends. It always closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error { return nil }
