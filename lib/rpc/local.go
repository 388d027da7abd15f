package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"sync"
)

// Local returns a client that calls h in this process as peer, streams
// included, without a connection.
func Local(h http.Handler, peer Peer) *http.Client {
	return &http.Client{Transport: localTransport{h, peer}}
}

type localTransport struct {
	h    http.Handler
	peer Peer
}

// RoundTrip implements [http.RoundTripper]. The handler has returned when the
// response's body is closed.
func (t localTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(WithPeer(req.Context(), t.peer))
	in := req.Clone(ctx)
	in.Proto, in.ProtoMajor, in.ProtoMinor = "HTTP/2.0", 2, 0
	in.RequestURI, in.RemoteAddr = req.URL.RequestURI(), "local"
	if in.Body == nil {
		in.Body = http.NoBody
	}
	pr, pw := io.Pipe()
	w := &localWriter{header: http.Header{}, body: pw, begun: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer in.Body.Close()
		pw.CloseWithError(run(t.h, w, in))
		w.WriteHeader(http.StatusOK)
	}()
	body := &localBody{PipeReader: pr, cancel: cancel, done: done}
	select {
	case <-w.begun:
	case <-ctx.Done():
		_ = body.Close() // closing a pipe does not fail
		return nil, ctx.Err()
	}
	return &http.Response{
		Status: http.StatusText(w.status), StatusCode: w.status,
		Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: w.sent, Body: body, ContentLength: -1, Request: req,
	}, nil
}

// run calls h and returns what a reader of the response meets at its end.
func run(h http.Handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint,err113 // a panic value
			err = fmt.Errorf("rpc: handler panicked: %v\n%s", p, debug.Stack())
		} else if p != nil {
			err = errors.New("rpc: handler aborted")
		}
	}()
	h.ServeHTTP(w, r)
	return io.EOF
}

// localWriter is the response writer of a call inside the process.
type localWriter struct {
	header http.Header
	body   *io.PipeWriter

	once   sync.Once
	begun  chan struct{} // closed once status and sent are set
	status int
	sent   http.Header
}

// Header implements [http.ResponseWriter].
func (w *localWriter) Header() http.Header { return w.header }

// WriteHeader implements [http.ResponseWriter].
func (w *localWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.begun)
	})
}

// Write implements [http.ResponseWriter].
func (w *localWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

// Flush implements [http.Flusher].
func (w *localWriter) Flush() { w.WriteHeader(http.StatusOK) }

// localBody is the response body of a call inside the process.
type localBody struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   <-chan struct{}
}

// Close ends the call and waits for its handler.
func (b *localBody) Close() error {
	b.cancel()
	err := b.PipeReader.Close()
	<-b.done
	return err
}
