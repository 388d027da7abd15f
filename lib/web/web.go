// Package web serves the HTTPS side of the listener: is the process alive
// (/healthz), do all its roles serve (/readyz), what does it count (/metrics),
// pages for people, and the services for whoever has an API token.
//
// It is small and strict: headers of at most 8 KiB, short deadlines, few streams
// per HTTP/2 connection, GET and HEAD only but for its forms, which are small and
// taken from our own pages only. What is for everybody holds no name of a user,
// role or node, and no byte of the request. TLS has been done by the listener.
//
// The pages for people are plain HTML that needs nothing from elsewhere. They
// decide nothing: they ask the authority.
package web

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/defaults"
)

// Config configures a [Server]. The zero value of every field is usable.
type Config struct {
	// Unready returns the names of the roles that do not serve; none means
	// ready. nil is always ready.
	Unready func() []string
	// Gatherer is what /metrics shows; nil serves no /metrics.
	Gatherer prometheus.Gatherer
	// MetricsFrom are the networks that may read /metrics; nil means loopback
	// and private addresses. To others there is no such page.
	MetricsFrom []netip.Prefix
	// SignOn is asked about sign-ins through a browser; nil serves no pages for
	// them.
	SignOn accessdv1connect.SignOnServiceClient
	// Bots lets in bots; nil does not.
	Bots accessdv1connect.BotSignInServiceClient
	// API answers the calls of the services, which come under [rpc.TokenPrefix]
	// as [rpc.Bearer] passes them on; nil serves none.
	API http.Handler
	// Events is told of calls that nobody may make; nil tells nobody.
	Events emitter

	Grace time.Duration // for requests at shutdown; 0 means defaults.Grace
	Log   *zap.Logger   // nil discards
}

// Bounds of one connection and one request.
const (
	headerTimeout = 5 * time.Second
	answerTimeout = 15 * time.Second // /metrics of a large cluster over a slow line
	idleTimeout   = 30 * time.Second
	maxHeader     = 8 << 10
	maxStreams    = 16 // per HTTP/2 connection
)

// Server is the HTTPS server.
type Server struct {
	cfg     Config
	pages   *pages
	handler http.Handler
}

// addPages adds what people see.
func (s *Server) addPages(routes map[string]route) error {
	var err error
	if s.pages, err = newPages(s.cfg.Log); err != nil {
		return err
	}
	style, err := asset("style.css", "text/css; charset=utf-8")
	if err != nil {
		return err
	}
	script, err := asset("passkey.js", "text/javascript; charset=utf-8")
	routes["/style.css"], routes[passkeyScript] = route{get: style}, route{get: script}
	s.addSignOn(routes)
	s.addBots(routes)
	return err
}

// New returns a Server that has started nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Unready == nil {
		cfg.Unready = func() []string { return nil }
	}
	if cfg.Grace == 0 {
		cfg.Grace = defaults.Grace
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Log = cfg.Log.Named("web")
	s := &Server{cfg: cfg}
	routes := map[string]route{
		"/healthz": {get: func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") }},
		"/readyz":  {get: s.ready},
	}
	if cfg.Gatherer != nil {
		metrics := promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{
			ErrorLog: promLog{cfg.Log}, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 2,
		})
		routes["/metrics"] = route{get: s.local(metrics)}
	}
	if err := s.addPages(routes); err != nil {
		return nil, err
	}
	s.handler = strict(routes)
	if cfg.API != nil {
		calls, rest := newAPI(cfg), s.handler
		s.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, apiPrefix) {
				setHeaders(w.Header())
				calls.ServeHTTP(w, r)
				return
			}
			rest.ServeHTTP(w, r)
		})
	}
	return s, nil
}

// Handler returns the routes.
func (s *Server) Handler() http.Handler { return s.handler }

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if roles := s.cfg.Unready(); len(roles) > 0 {
		answer(w, http.StatusServiceUnavailable, "not serving: "+strings.Join(roles, ", "))
		return
	}
	answer(w, http.StatusOK, "ready")
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintln(w, text) // an error means that the client has gone
}

// local serves next to the networks that may read metrics.
func (s *Server) local(next http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !s.mayRead(from.Addr().Unmap()) {
			notFound(w)
			return
		}
		next.ServeHTTP(w, r)
	}
}

func (s *Server) mayRead(from netip.Addr) bool {
	if s.cfg.MetricsFrom == nil {
		return from.IsLoopback() || from.IsPrivate()
	}
	for _, p := range s.cfg.MetricsFrom {
		if p.Contains(from) {
			return true
		}
	}
	return false
}

func notFound(w http.ResponseWriter) { answer(w, http.StatusNotFound, "not found") }

// A route is what answers at one path. Without post it takes no forms.
type route struct{ get, post http.HandlerFunc }

// methods lists what r takes.
func (r route) methods() string {
	if r.post == nil {
		return "GET, HEAD"
	}
	return "GET, HEAD, POST"
}

// handler returns what answers a request with the method, or nil.
func (r route) handler(method string) http.HandlerFunc {
	switch method {
	case http.MethodGet, http.MethodHead:
		return r.get
	case http.MethodPost:
		return r.post
	}
	return nil
}

// setHeaders sets the headers that every answer has.
func setHeaders(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("Strict-Transport-Security", "max-age=31536000")
}

// strict sets the headers every answer has. It takes the routes' exact paths and
// no others: a ServeMux would redirect some, and repeat the request in doing so.
func strict(routes map[string]route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		setHeaders(h)
		route, ok := routes[r.URL.Path]
		if !ok {
			notFound(w)
			return
		}
		serve := route.handler(r.Method)
		if serve == nil {
			h.Set("Allow", route.methods())
			answer(w, http.StatusMethodNotAllowed, "method not allowed")
			return
		}
		serve(w, r)
	})
}

// Serve serves HTTP on connections from ln, on which TLS is done already, until
// ctx ends; requests under way then have Grace to finish. It always closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // TLS is below: what ALPN chose comes as it is
	srv := &http.Server{
		Handler:           s.handler,
		Protocols:         &protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: 1 << 14},
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       headerTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          zap.NewStdLog(s.cfg.Log),
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.WithoutCancel(ctx), stoppingKey{}, ctx)
		},
	}
	stopped := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Grace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(ln)
	if !unhook() {
		<-stopped // Shutdown makes Serve return at once, and then still waits
	} else {
		srv.Close()
	}
	if orderly := ctx.Err() != nil || errors.Is(err, http.ErrServerClosed); !orderly {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// promLog passes errors of the metrics page to the log.
type promLog struct{ log *zap.Logger }

func (l promLog) Println(v ...any) {
	l.log.Warn("cannot gather metrics", zap.String("error", fmt.Sprint(v...)))
}
