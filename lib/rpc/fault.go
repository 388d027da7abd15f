package rpc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
)

// maxMessage bounds one message either way, in bytes. Events come in batches;
// the largest single thing is an event of 64 KiB.
const maxMessage = 4 << 20

// The metadata that carries what a Connect code cannot. Texts are escaped, since
// metadata is ASCII.
const (
	kindHeader = "Accessd-Kind"
	hintHeader = "Accessd-Hint"
)

// wireKinds are the kinds' names on the wire, and the code closest to each.
var wireKinds = []struct { //nolint:gochecknoglobals // a table, never changed
	kind fault.Kind
	code connect.Code
}{
	{fault.Internal, connect.CodeInternal},
	{fault.BadInput, connect.CodeInvalidArgument},
	{fault.Denied, connect.CodePermissionDenied},
	{fault.NotFound, connect.CodeNotFound},
	{fault.Conflict, connect.CodeFailedPrecondition},
	{fault.Unavailable, connect.CodeUnavailable},
}

// ServerOptions are the options of every handler: bounded messages, classified
// errors, and a panic ends one call only. Errors that lose their cause on the
// wire leave it in log.
func ServerOptions(log *zap.Logger) []connect.HandlerOption {
	if log == nil {
		log = zap.NewNop()
	}
	return []connect.HandlerOption{
		connect.WithReadMaxBytes(maxMessage),
		connect.WithCompression("gzip", nil, nil), // no peer may have us inflate
		connect.WithInterceptors(serverFaults{log}),
		connect.WithRecover(func(_ context.Context, spec connect.Spec, _ http.Header, p any) error {
			log.Error("a call panicked", zap.String("procedure", spec.Procedure), zap.Any("panic", p), zap.Stack("stack"))
			return errors.New("panic")
		}),
	}
}

// ClientOptions are the options of every client. Nothing is compressed: most
// messages are small, and the connection below may compress.
func ClientOptions() []connect.ClientOption {
	return []connect.ClientOption{
		connect.WithReadMaxBytes(maxMessage),
		connect.WithAcceptCompression("gzip", nil, nil),
		connect.WithInterceptors(clientFaults{}),
	}
}

// toWire turns a service's error into what crosses the wire.
func toWire(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		if _, classified := errors.AsType[*fault.Error](err); !classified {
			return err
		}
	}
	if ours, ok := errors.AsType[*connect.Error](err); ok && ours.Code() != connect.CodeUnknown {
		return err // the protocol's own: a malformed or an oversized message
	}
	kind := fault.KindOf(err)
	wire := connect.NewError(codeOf(kind), errors.New(fault.Public(err)))
	wire.Meta().Set(kindHeader, kind.String())
	if hint := fault.Hint(err); hint != "" {
		wire.Meta().Set(hintHeader, url.QueryEscape(hint))
	}
	return wire
}

func codeOf(k fault.Kind) connect.Code {
	for _, w := range wireKinds {
		if w.kind == k {
			return w.code
		}
	}
	return connect.CodeInternal
}

// fromWire turns what a call returned into a classified error.
func fromWire(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if ours, ok := errors.AsType[*fault.Error](err); ok {
		return ours // the dialler's own words
	}
	wire, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return err
	}
	if errors.Is(wire, context.Canceled) { // the caller's own; the peer's has no cause
		return context.Canceled
	}
	return classify(wire)
}

func classify(wire *connect.Error) error {
	kind, public := fault.Internal, wire.Message()
	name := wire.Meta().Get(kindHeader)
	for _, w := range wireKinds {
		if w.kind.String() == name || (name == "" && w.code == wire.Code()) {
			kind = w.kind
		}
	}
	switch {
	case !connect.IsWireError(wire): // the connection, or what came over it, is broken
		return fault.Wrap(fault.Unavailable, wire, "no answer")
	case name == "" && (kind == fault.Unavailable || wire.Code() == connect.CodeDeadlineExceeded || wire.Code() == connect.CodeCanceled):
		return fault.Wrap(fault.Unavailable, wire, "no answer")
	case name == "" && wire.Code() == connect.CodeUnimplemented:
		return fault.Wrap(fault.Unavailable, wire, "the peer does not offer this service")
	}
	f := fault.Wrap(kind, nil, public)
	if hint, err := url.QueryUnescape(wire.Meta().Get(hintHeader)); err == nil && hint != "" {
		f = f.WithHint("%s", hint)
	}
	return f
}

// serverFaults classifies what handlers return.
type serverFaults struct{ log *zap.Logger }

func (s serverFaults) done(ctx context.Context, spec connect.Spec, err error) error {
	if err != nil && fault.KindOf(err) == fault.Internal && ctx.Err() == nil {
		s.log.Error("a call ended in an internal error", zap.String("procedure", spec.Procedure), zap.Error(err))
	}
	return toWire(err)
}

// WrapUnary implements [connect.Interceptor].
func (s serverFaults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		return res, s.done(ctx, req.Spec(), err)
	}
}

// WrapStreamingClient implements [connect.Interceptor].
func (s serverFaults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements [connect.Interceptor].
func (s serverFaults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return s.done(ctx, conn.Spec(), next(ctx, conn))
	}
}

// clientFaults classifies what calls return.
type clientFaults struct{}

// WrapUnary implements [connect.Interceptor].
func (clientFaults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		return res, fromWire(err)
	}
}

// WrapStreamingClient implements [connect.Interceptor].
func (clientFaults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return faultConn{next(ctx, spec)}
	}
}

// WrapStreamingHandler implements [connect.Interceptor].
func (clientFaults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// faultConn classifies the errors of a stream.
type faultConn struct{ connect.StreamingClientConn }

// Send implements [connect.StreamingClientConn].
func (c faultConn) Send(msg any) error { return fromWire(c.StreamingClientConn.Send(msg)) }

// Receive implements [connect.StreamingClientConn].
func (c faultConn) Receive(msg any) error { return fromWire(c.StreamingClientConn.Receive(msg)) }

// CloseRequest implements [connect.StreamingClientConn].
func (c faultConn) CloseRequest() error { return fromWire(c.StreamingClientConn.CloseRequest()) }

// CloseResponse implements [connect.StreamingClientConn].
func (c faultConn) CloseResponse() error { return fromWire(c.StreamingClientConn.CloseResponse()) }
