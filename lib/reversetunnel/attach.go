package reversetunnel

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// Why a tunnel ended, other than with its connection.
var (
	errReplaced  = fault.New(fault.Conflict, "the node has connected anew and this connection does not answer")
	errCancelled = fault.New(fault.Unavailable, "the node cancelled its forward")
)

type connKey struct{}

// API returns the path and the handler of the tunnel service for the member at
// the other end of c.
func (s *Server) API(c *sshserver.Conn) (path string, h http.Handler) {
	return s.path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.api.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), connKey{}, c)))
	})
}

// Forward answers a node's tcpip-forward or cancel-tcpip-forward request. Each
// connection has one forward; port 0 is refused, since nobody asks a node for a
// port by number.
func (s *Server) Forward(c *sshserver.Conn, r *ssh.Request) (ok bool, payload []byte) {
	f, err := sshwire.ParseTCPIPForward(r.Payload)
	if err != nil || f.Port == 0 || c.Identity == nil || c.Identity.Kind != sshca.KindNode {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have, taken := s.forwards[c]
	if r.Type == sshwire.RequestCancelTCPIPForward {
		if !taken || have != f {
			return false, nil
		}
		delete(s.forwards, c)
		if t := s.tunnels[c.Identity.Member]; t != nil && t.conn == c {
			t.end(errCancelled)
		}
		return true, nil
	}
	if taken || c.Context().Err() != nil {
		return false, nil
	}
	s.forwards[c] = f
	context.AfterFunc(c.Context(), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.forwards, c)
	})
	return true, nil
}

// service implements the tunnel service.
type service struct{ *Server }

// Attach registers the caller's tunnel and serves it until the call ends.
func (s service) Attach(
	ctx context.Context, req *connect.Request[accessdv1.AttachRequest], out *connect.ServerStream[accessdv1.AttachResponse],
) error {
	c, _ := ctx.Value(connKey{}).(*sshserver.Conn)
	if c == nil || c.Identity == nil || c.Identity.Kind != sshca.KindNode {
		return fault.New(fault.Denied, "only nodes have tunnels")
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	t, err := s.newTunnel(c, req.Msg, end)
	if err != nil {
		return err
	}
	if err := s.register(ctx, t); err != nil {
		return err
	}
	defer s.unregister(ctx, t)
	return s.stream(ctx, t, out)
}

func (s *Server) newTunnel(c *sshserver.Conn, req *accessdv1.AttachRequest, end context.CancelCauseFunc) (*tunnel, error) {
	t := tunnelOf(c, end, probeTimeout)
	if k := req.GetDataKeySha256(); len(k) > 0 {
		var ok bool
		if t.key, ok = parseKeyHash(k); !ok {
			return nil, fault.New(fault.BadInput, "data key hash has %d bytes, want %d", len(k), len(t.key))
		}
		t.dialsBack = !s.cfg.NoDialBack
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var ok bool
	if t.forward, ok = s.forwards[c]; !ok {
		return nil, fault.New(fault.BadInput, "no tcpip-forward was asked for on this connection")
	}
	return t, nil
}

// register makes t its node's tunnel. While another connection holds the node's
// tunnel and answers, t is refused: two live hosts with one identity are a
// cloned disk or a stolen key, and clients must never land on either by chance.
// A holder that does not answer is cut.
func (s *Server) register(ctx context.Context, t *tunnel) error {
	for told := false; ; {
		s.mu.Lock()
		old := s.tunnels[t.node]
		if old == nil && told {
			s.tunnels[t.node] = t
			s.notifyLocked()
			s.mu.Unlock()
			s.log.Info("tunnel up", t.fields()...)
			return nil
		}
		s.mu.Unlock()
		switch {
		case old == nil: // the event comes before what it tells
			if err := s.cfg.Events.Emit(ctx, s.event(t, events.TunnelUp, nil)); err != nil {
				return fault.Wrap(fault.Unavailable, err, "the tunnel cannot be recorded")
			}
			told = true
		case s.answers(ctx, old):
			return s.refuse(ctx, t, old)
		default:
			old.conn.Cut(errReplaced)
			s.abandon(old)
		}
	}
}

// refuse turns away a second live connection of one identity.
func (s *Server) refuse(ctx context.Context, t, old *tunnel) error {
	err := fault.New(fault.Conflict, "node %q is connected from another place", t.conn.Identity.MemberName).
		WithHint("two hosts with the same data directory? Let each join with its own token")
	s.log.Warn("second connection with one identity refused", append(t.fields(), zap.Stringer("holder", old.conn.Remote))...)
	if failed := s.cfg.Events.Emit(ctx, s.event(t, events.TunnelUp, err)); failed != nil {
		s.log.Error("event not recorded", zap.Error(failed))
	}
	return err
}

// unregister ends t, whose call is over.
func (s *Server) unregister(ctx context.Context, t *tunnel) {
	s.remove(t)
	reason := context.Cause(ctx)
	if cause := context.Cause(t.conn.Context()); cause != nil {
		reason = cause
	}
	s.log.Info("tunnel down", append(t.fields(), zap.NamedError("reason", reason))...)
	ev := s.event(t, events.TunnelDown, nil)
	ev.Fields["duration_ms"] = time.Since(t.since).Milliseconds()
	ev.Fields["reason"] = "the node left"
	if reason != nil {
		ev.Fields["reason"] = reason.Error()
	}
	if err := s.cfg.Events.Emit(context.WithoutCancel(ctx), ev); err != nil {
		s.log.Error("event not recorded", zap.Error(err))
	}
}

// remove takes t out, if it is still there, and drops what it kept.
func (s *Server) remove(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.removed {
		return
	}
	t.removed = true
	close(t.gone)
	t.closeIdleLocked()
	for _, h := range t.tickets {
		delete(s.tickets, h)
	}
	if s.tunnels[t.node] == t {
		delete(s.tunnels, t.node)
		s.notifyLocked()
	}
}

func (s *Server) notifyLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// stream sends what there is to tell until ctx ends.
func (s *Server) stream(ctx context.Context, t *tunnel, out *connect.ServerStream[accessdv1.AttachResponse]) error {
	if err := out.Send(s.welcome()); err != nil {
		return err
	}
	var told news
	var again <-chan time.Time
	for {
		fresh := s.latest()
		if fresh.peers != told.peers {
			if err := out.Send(fresh.peers); err != nil {
				return err
			}
		}
		if fresh.drain != told.drain {
			if err := out.Send(fresh.drain); err != nil {
				return err
			}
		}
		told = fresh
		if tickets := s.issue(t); len(tickets) > 0 {
			if err := out.Send(dialBack(tickets)); err != nil {
				return err
			}
			again = time.After(ticketTTL + time.Second) // those not used by then are lost
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Unavailable, context.Cause(ctx), "the tunnel is over")
		case <-t.gone:
			return errReplaced
		case <-t.wake:
		case <-again:
		case <-told.next:
		}
	}
}

func (s *Server) welcome() *accessdv1.AttachResponse {
	w := &accessdv1.Welcome{ProxyId: string(s.cfg.ID), AuthorityHere: s.cfg.AuthorityHere, Plain: s.cfg.Plain}
	if s.key != nil {
		w.DataKeySha256 = s.key.hash[:]
	}
	return &accessdv1.AttachResponse{What: &accessdv1.AttachResponse_Welcome{Welcome: w}}
}

func dialBack(tickets [][]byte) *accessdv1.AttachResponse {
	return &accessdv1.AttachResponse{What: &accessdv1.AttachResponse_DialBack{DialBack: &accessdv1.DialBack{
		Tickets: tickets, TtlSeconds: int32(ticketTTL / time.Second),
	}}}
}

// event returns an event about t.
func (s *Server) event(t *tunnel, name events.Name, err error) events.Event {
	id := t.conn.Identity
	ev := events.Event{
		Name: name, Success: err == nil, AddrRemote: t.conn.Remote.String(), Proto: "ssh",
		Fields: map[string]any{
			"proxy_id": string(s.cfg.ID), "proxy_name": string(s.cfg.Name),
			"node_id": string(t.node), "node_name": string(id.MemberName),
		},
	}
	if name == events.TunnelUp {
		ev.Fields["cert_serial"] = strconv.FormatUint(id.Serial, 10)
		ev.Fields["fingerprint"] = id.Fingerprint
	}
	if err != nil {
		ev.Error = fault.Public(err)
		ev.Fields["reason"] = fault.Public(err)
	}
	return ev
}
