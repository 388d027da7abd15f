package rpc_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service answers as the test case wants.
type service struct {
	accessdv1connect.UnimplementedAuditServiceHandler
	err     error
	release chan struct{}
}

func (s *service) ListEvents(ctx context.Context, req *connect.Request[accessdv1.ListEventsRequest]) (*connect.Response[accessdv1.ListEventsResponse], error) {
	if s.err != nil {
		return nil, s.err
	}
	p, _ := rpc.PeerFrom(ctx)
	if req.Msg.GetBefore() == "panic" {
		panic("as asked")
	}
	return connect.NewResponse(&accessdv1.ListEventsResponse{NextBefore: p.Addr.String(), Events: [][]byte{[]byte(req.Msg.GetBefore())}}), nil
}

func (s *service) TailEvents(ctx context.Context, _ *connect.Request[accessdv1.TailEventsRequest], out *connect.ServerStream[accessdv1.TailEventsResponse]) error {
	for _, e := range []string{"one", "two"} {
		if err := out.Send(&accessdv1.TailEventsResponse{Events: [][]byte{[]byte(e)}}); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.release:
		return s.err
	}
}

// eachWay runs a test over a connection and inside the process.
func eachWay(t *testing.T, s *service, test func(*testing.T, accessdv1connect.AuditServiceClient)) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewAuditServiceHandler(s, rpc.ServerOptions(nil)...))
	t.Run("connection", func(t *testing.T) {
		near, far := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- rpc.Serve(context.Background(), far, rpc.Peer{Local: true}, mux) }()
		hc := rpc.Client(func(context.Context) (net.Conn, error) { return near, nil })
		test(t, accessdv1connect.NewAuditServiceClient(hc, rpc.BaseURL, rpc.ClientOptions()...))
		near.Close()
		hc.CloseIdleConnections()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil after the peer hung up", err)
		}
	})
	t.Run("local", func(t *testing.T) {
		test(t, accessdv1connect.NewAuditServiceClient(rpc.Local(mux, rpc.Peer{Local: true}), rpc.BaseURL, rpc.ClientOptions()...))
	})
}

func TestCallReachesServiceWithItsPeer(t *testing.T) {
	eachWay(t, &service{}, func(t *testing.T, c accessdv1connect.AuditServiceClient) {
		res, err := c.ListEvents(t.Context(), connect.NewRequest(&accessdv1.ListEventsRequest{Before: "x"}))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(res.Msg.GetEvents()[0]); got != "x" {
			t.Errorf("echo = %q, want x", got)
		}
	})
}

func TestFaultsCrossTheWireWithoutTheirCause(t *testing.T) {
	secret := errors.New("/var/lib/accessd/keys: permission denied")
	cases := map[string]struct {
		err    error
		kind   fault.Kind
		public string
		hint   string
	}{
		"not found":    {fault.New(fault.NotFound, "no user %q", "bob").WithHint("run %q; 50%% off", "accessd users ls"), fault.NotFound, `no user "bob"`, `run "accessd users ls"; 50% off`},
		"conflict":     {fault.New(fault.Conflict, "user exists"), fault.Conflict, "user exists", ""},
		"denied":       {fault.New(fault.Denied, "not yours"), fault.Denied, "not yours", ""},
		"bad input":    {fault.New(fault.BadInput, "line 3: zwölf"), fault.BadInput, "line 3: zwölf", ""},
		"unavailable":  {fault.Wrap(fault.Unavailable, secret, "the log cannot be written"), fault.Unavailable, "the log cannot be written", ""},
		"unclassified": {secret, fault.Internal, "internal error", ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			eachWay(t, &service{err: tc.err}, func(t *testing.T, c accessdv1connect.AuditServiceClient) {
				_, err := c.ListEvents(t.Context(), connect.NewRequest(&accessdv1.ListEventsRequest{}))
				if fault.KindOf(err) != tc.kind || fault.Public(err) != tc.public || fault.Hint(err) != tc.hint {
					t.Errorf("error = %v %q hint %q, want %v %q %q", fault.KindOf(err), fault.Public(err), fault.Hint(err), tc.kind, tc.public, tc.hint)
				}
				if err != nil && strings.Contains(err.Error(), "/var/lib") {
					t.Errorf("the cause crossed the wire: %v", err)
				}
			})
		})
	}
}

func TestStreamDeliversThenEndsWithItsFault(t *testing.T) {
	s := &service{release: make(chan struct{}), err: fault.New(fault.Unavailable, "draining")}
	close(s.release)
	eachWay(t, s, func(t *testing.T, c accessdv1connect.AuditServiceClient) {
		stream, err := c.TailEvents(t.Context(), connect.NewRequest(&accessdv1.TailEventsRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		var got []string
		for stream.Receive() {
			got = append(got, string(stream.Msg().GetEvents()[0]))
		}
		if strings.Join(got, " ") != "one two" {
			t.Errorf("received %q, want one two", got)
		}
		if err := stream.Err(); !fault.Is(err, fault.Unavailable) || fault.Public(err) != "draining" {
			t.Errorf("stream ended with %v, want unavailable: draining", err)
		}
	})
}

func TestCallerLeavesAStream(t *testing.T) {
	eachWay(t, &service{}, func(t *testing.T, c accessdv1connect.AuditServiceClient) {
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := c.TailEvents(ctx, connect.NewRequest(&accessdv1.TailEventsRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		stream.Receive()
		cancel()
		for stream.Receive() {
		}
		if err := stream.Err(); !errors.Is(err, context.Canceled) {
			t.Errorf("stream ended with %v, want canceled", err)
		}
		stream.Close()
	})
}

func TestPanicEndsOneCallOnly(t *testing.T) {
	eachWay(t, &service{}, func(t *testing.T, c accessdv1connect.AuditServiceClient) {
		_, err := c.ListEvents(t.Context(), connect.NewRequest(&accessdv1.ListEventsRequest{Before: "panic"}))
		if !fault.Is(err, fault.Internal) {
			t.Errorf("error = %v, want internal", err)
		}
		if _, err := c.ListEvents(t.Context(), connect.NewRequest(&accessdv1.ListEventsRequest{})); err != nil {
			t.Errorf("the next call: %v", err)
		}
	})
}

func TestDialErrorKeepsItsWords(t *testing.T) {
	want := fault.New(fault.Denied, "open admin socket: permission denied").WithHint("be root")
	hc := rpc.Client(func(context.Context) (net.Conn, error) { return nil, want })
	c := accessdv1connect.NewAuditServiceClient(hc, rpc.BaseURL, rpc.ClientOptions()...)
	_, err := c.ListEvents(t.Context(), connect.NewRequest(&accessdv1.ListEventsRequest{}))
	if !errors.Is(err, want) || fault.Hint(err) != "be root" {
		t.Errorf("error = %v, want the dialler's", err)
	}
	if _, err := c.TailEvents(t.Context(), connect.NewRequest(&accessdv1.TailEventsRequest{})); err != nil && !errors.Is(err, want) {
		t.Errorf("stream error = %v, want the dialler's", err)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewAuditServiceHandler(&service{}, rpc.ServerOptions(nil)...))
	near, far := net.Pipe()
	defer near.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, far, rpc.Peer{}, mux) }()
	hc := rpc.Client(func(context.Context) (net.Conn, error) { return near, nil })
	stream, err := accessdv1connect.NewAuditServiceClient(hc, rpc.BaseURL, rpc.ClientOptions()...).TailEvents(t.Context(), connect.NewRequest(&accessdv1.TailEventsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	stream.Receive()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Serve outlived its context")
	}
	for stream.Receive() {
	}
	if err := stream.Err(); !fault.Is(err, fault.Unavailable) || errors.Is(err, context.Canceled) {
		t.Errorf("the stream of a server that stops ended with %v, want unavailable and not the caller's own cancel", err)
	}
}

func TestOversizedMessageIsRefused(t *testing.T) {
	eachWay(t, &service{}, func(t *testing.T, c accessdv1connect.AuditServiceClient) {
		_, err := c.ListEvents(t.Context(), connect.NewRequest(&accessdv1.ListEventsRequest{Before: strings.Repeat("x", 5<<20)}))
		if err == nil || fault.Is(err, fault.Internal) && fault.Public(err) == "internal error" {
			t.Errorf("error = %v, want a refusal that says why", err)
		}
		if _, err := c.ListEvents(t.Context(), connect.NewRequest(&accessdv1.ListEventsRequest{})); err != nil {
			t.Errorf("the next call: %v", err)
		}
	})
}
