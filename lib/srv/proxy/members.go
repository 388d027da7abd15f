package proxy

import (
	"context"
	"net"
	"net/http"
	"net/netip"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"

	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// serveAPIChannel serves an accessd-api channel: of a person's connection the
// authority's services; of a member's the tunnel service where there are tunnels,
// and the authority's services where the authority is.
func (s *Server) serveAPIChannel(c *sshserver.Conn, nc ssh.NewChannel) {
	if who, ok := c.Value.(*person); ok {
		s.servePersonAPI(c, nc, who)
		return
	}
	if m, ok := c.Value.(*member); !ok || m.stock {
		refuse(nc, errMembersOnly)
		return
	}
	mux := http.NewServeMux()
	if s.cfg.Authority != nil {
		mux.Handle("/", s.cfg.Authority)
	}
	if s.cfg.Tunnels != nil {
		mux.Handle(s.cfg.Tunnels.API(c))
	}
	s.serveAPI(c, nc, mux)
}

// serveAuthorityAPI serves an accessd-api channel of a nested connection: the
// authority's services to members and people, of whom it knows what each may, and
// the join service to joiners.
func (s *Server) serveAuthorityAPI(c *sshserver.Conn, nc ssh.NewChannel) {
	switch v := c.Value.(type) {
	case *person:
		s.serveAPI(c, nc, s.cfg.Authority)
	case *applicant:
		s.serveAPI(c, nc, joinOnly{next: s.cfg.Authority, conn: c, who: v})
	case *member:
		if !v.stock {
			s.serveAPI(c, nc, s.cfg.Authority)
			return
		}
		refuse(nc, errMembersOnly)
	default:
		refuse(nc, errMembersOnly)
	}
}

// serveAPI answers calls on nc until the channel ends, or the server stops and
// no bridge needs the connection any more.
func (s *Server) serveAPI(c *sshserver.Conn, nc ssh.NewChannel, h http.Handler) {
	ch, done, err := accept(nc)
	if err != nil {
		return
	}
	defer done()
	ctx, stop := context.WithCancel(c.Context())
	defer stop()
	defer context.AfterFunc(s.live.quiet, stop)()
	peer := rpc.Peer{Identity: c.Identity, Joiner: c.Joiner, Addr: c.Remote}
	if err := rpc.Serve(ctx, rpc.ChannelConn(ch, c.LocalAddr(), c.RemoteAddr()), peer, h); err != nil {
		s.log.Info("api channel ended", zap.Error(err))
	}
}

// joinOnly lets a joiner call Join and nothing else, and counts against its
// source what it tries in vain.
type joinOnly struct {
	next http.Handler
	conn *sshserver.Conn
	who  *applicant
}

// ServeHTTP implements [http.Handler]. Only Connect's own form of a unary call
// passes: it shows in its status whether the call went well.
func (j joinOnly) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != accessdv1connect.JoinServiceJoinProcedure || r.Header.Get("Content-Type") != "application/proto" {
		j.conn.Penalize(listener.OffenceProtocol)
		w.WriteHeader(http.StatusNotFound)
		return
	}
	seen := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	j.next.ServeHTTP(seen, r)
	switch {
	case seen.status == http.StatusOK && j.who.outer != nil:
		j.who.outer.joined.Store(true)
	case seen.status >= http.StatusBadRequest && seen.status < http.StatusInternalServerError:
		j.conn.Penalize(listener.OffenceAuthFailed)
	}
}

// statusWriter remembers the status of a response.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements [http.ResponseWriter].
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// serveAuthority serves an accessd-authority channel: it carries an SSH
// connection that ends at the authority, here or further on.
func (s *Server) serveAuthority(c *sshserver.Conn, nc ssh.NewChannel) {
	var opens *rate.Limiter
	var outer *joiner
	switch v := c.Value.(type) {
	case *member:
		if !v.stock {
			opens = v.opens
		}
	case *joiner:
		opens, outer = v.opens, v
	}
	if opens == nil {
		refuse(nc, errMembersOnly)
		return
	}
	origin, err := originOf(c, nc)
	if err == nil && !opens.Allow() {
		err = fault.New(fault.Unavailable, "too many of these")
	}
	switch {
	case err != nil:
		refuse(nc, err)
	case s.nested != nil:
		s.serveNested(c, nc, origin)
	case s.cfg.OpenAuthority != nil:
		s.passOn(c, nc, origin, outer)
	default:
		refuse(nc, fault.New(fault.Unavailable, "this process reaches no authority"))
	}
}

// serveNested serves the connection that nc carries.
func (s *Server) serveNested(c *sshserver.Conn, nc ssh.NewChannel, origin netip.AddrPort) {
	ch, done, err := accept(nc)
	if err != nil {
		return
	}
	defer done()
	conn := nestedConn{Conn: rpc.ChannelConn(ch, c.LocalAddr(), net.TCPAddrFromAddrPort(origin)), outer: c}
	ctx := context.WithValue(c.Context(), outerKey{}, c)
	if err := s.nested.ServeConn(ctx, conn); err != nil {
		s.log.Info("nested connection ended", zap.Stringer("origin", origin), zap.Error(err))
	}
}

// joinBytes is what the authority says at least to who joins: a key exchange
// and two certificates. Who has heard less has not joined.
const joinBytes = 2 << 10

// passOn carries nc to the authority over the process's own link.
func (s *Server) passOn(c *sshserver.Conn, nc ssh.NewChannel, origin netip.AddrPort, outer *joiner) {
	far, err := s.cfg.OpenAuthority(c.Context(), origin)
	if err != nil {
		refuse(nc, fault.Wrap(fault.Unavailable, err, "the authority is away"))
		return
	}
	defer far.Close()
	ch, done, err := accept(nc)
	if err != nil {
		return
	}
	defer done()
	if _, heard := relay.Pipe(c.Context(), ch, far); outer != nil && heard >= joinBytes {
		outer.joined.Store(true)
	}
}

// originOf returns where the peer of a nested connection comes from: what a
// proxy says, for it relays others; the outer connection's own address for
// everybody else.
func originOf(c *sshserver.Conn, nc ssh.NewChannel) (netip.AddrPort, error) {
	open, err := sshwire.ParseAuthorityOpen(nc.ExtraData())
	if err != nil || c.Identity == nil || c.Identity.Kind == sshca.KindNode {
		return c.Remote, err
	}
	origin := sshwire.ParseOrigin(open.OriginAddr, open.OriginPort)
	if !origin.IsValid() {
		return origin, fault.New(fault.BadInput, "origin %s: want an address", quote(open.OriginAddr))
	}
	return origin, nil
}

// nestedConn is the transport of a nested connection. It owes its listener
// nothing, but a joiner's offences are its source's.
type nestedConn struct {
	net.Conn
	outer *sshserver.Conn
}

var _ listener.Guard = nestedConn{}

// KexDone implements [listener.Guard].
func (nestedConn) KexDone() {}

// Parked implements [listener.Guard]: nobody types on a nested connection.
func (nestedConn) Parked() error { return fault.New(fault.Denied, "no sign-in here") }

// Authenticated implements [listener.Guard].
func (nestedConn) Authenticated() {}

// Penalize implements [listener.Guard]. A member that relays others is not to
// blame for them.
func (n nestedConn) Penalize(o listener.Offence) {
	if n.outer.Joiner != nil {
		n.outer.Penalize(o)
	}
}

// forward answers what nodes may ask for, and passes on what visitors do.
func (s *Server) forward(c *sshserver.Conn, r *ssh.Request) (bool, []byte) {
	if who, ok := c.Value.(*person); ok && who.visitor != nil {
		return s.forwardVisitor(c, who, r)
	}
	if r.Type != sshwire.RequestTCPIPForward && r.Type != sshwire.RequestCancelTCPIPForward {
		return false, nil
	}
	m, ok := c.Value.(*member)
	if !ok || s.cfg.Tunnels == nil || c.Identity.Kind != sshca.KindNode {
		return false, nil
	}
	if m.stock {
		return s.cfg.Tunnels.ForwardStock(c, r)
	}
	return s.cfg.Tunnels.Forward(c, r)
}
