package web

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/srv/listener"
)

// apiPrefix begins the path of every call of the services.
const apiPrefix = "/accessd.v1."

// Bounds of calls over HTTPS.
const (
	maxAPICalls   = 128     // at a time; the way to the authority is shared with the proxy's own
	maxTokenCalls = 16      // of these, with one token, streams among them
	maxReading    = 128     // requests that are being read; whose tokens they are, nobody has asked yet
	maxFrom       = 32      // of these, from one source
	maxAPIRequest = 1 << 20 // bytes of body; what people ask is small
	apiReadTime   = 30 * time.Second
	apiStallTime  = time.Minute // for the client to take what was written
	maxAPIToken   = 256         // bytes of what is taken for one
)

// maxRefused bounds the requests without a token that the log hears of, in a
// second; whoever sends more closes their connection each time.
const maxRefused = 10

// An emitter records events; *events.Emitter is one.
type emitter interface {
	Emit(ctx context.Context, ev events.Event) error
}

// api passes calls of the services on to the authority for whoever has an API
// token. It decides nothing: the authority does, about the token and about each
// call, as it does about a person's connection. There are no cookies, so a page of
// another site's can make a browser send nothing that counts.
type api struct {
	next   http.Handler // takes calls under [rpc.TokenPrefix]
	events emitter      // nil records nothing
	refuse *connect.ErrorWriter
	log    *zap.Logger

	mu      sync.Mutex // guards what follows
	all     int
	with    map[string]int // calls under way, by token
	reading int
	from    map[netip.Prefix]int // requests that are being read, by source
	noted   int                  // refusals recorded since
	since   time.Time
}

func newAPI(cfg Config) *api {
	return &api{next: cfg.API, events: cfg.Events, refuse: connect.NewErrorWriter(), log: cfg.Log, with: map[string]int{}, from: map[netip.Prefix]int{}}
}

// ServeHTTP answers one call.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		answer(w, http.StatusMethodNotAllowed, "method not allowed")
		return
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		a.fail(w, r, rpc.Unauthenticated("where you are is not known"))
		return
	}
	token, ok := bearerToken(r.Header)
	if !ok {
		// With something unread the connection would be reset, and the answer lost.
		_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxAPIRequest)) // the answer is the same
		a.note(r, from)
		a.fail(&patient{ResponseWriter: w, c: http.NewResponseController(w)}, r, rpc.Unauthenticated("an API token is needed: \"accessd api-tokens add\""))
		return
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	body, err := a.read(w, r, from.Addr())
	if err == nil && !a.begin(token) {
		err = rpc.TooMany("too many calls at a time")
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	defer a.end(token)
	a.pass(w, r, body, rpc.Bearer{Token: token, Addr: from})
}

// read returns the body of r. Every request is one message: with all of it here
// nothing is left to read, and a stream need not end with the time for that. Until it
// is here no call is under way: anybody can send one slowly, with any token.
func (a *api) read(w http.ResponseWriter, r *http.Request, from netip.Addr) ([]byte, error) {
	source := listener.SourceOf(from)
	if !a.beginReading(source) {
		return nil, rpc.TooMany("too many requests at a time")
	}
	defer a.endReading(source)
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(apiReadTime)) // every server of ours can
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAPIRequest))
	if err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, errors.New("the request is too large, or does not come"))
	}
	_ = c.SetReadDeadline(time.Time{})
	return body, nil
}

func (a *api) beginReading(source netip.Prefix) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reading >= maxReading || a.from[source] >= maxFrom {
		return false
	}
	a.reading++
	a.from[source]++
	return true
}

func (a *api) endReading(source netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reading--
	if a.from[source]--; a.from[source] == 0 {
		delete(a.from, source)
	}
}

// bearerToken returns the token of RFC 6750, section 2.1. There is no other place
// for one.
func bearerToken(h http.Header) (string, bool) {
	if len(h.Values("Authorization")) != 1 {
		return "", false
	}
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	token = strings.Trim(token, " ")
	return token, strings.EqualFold(scheme, "Bearer") && token != "" && len(token) <= maxAPIToken
}

// fail answers in the form of the protocol that the call is in.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	if !a.refuse.IsSupported(r) { // else the form is that of Connect's unary calls
		r = r.Clone(r.Context())
		r.Header.Set("Content-Type", "application/json")
	}
	if err := a.refuse.Write(w, r, err); err != nil {
		a.log.Debug("a refusal was not written", zap.Error(err))
	}
}

// note records a call without a token.
func (a *api) note(r *http.Request, from netip.AddrPort) {
	if a.events == nil || !a.mayNote(time.Now()) {
		return
	}
	ev := events.Event{Name: events.AuthRejected, AddrRemote: from.String(), Proto: "https", Error: "no API token", Fields: map[string]any{
		"method": "api_token", "reason": "no API token",
	}}
	if err := a.events.Emit(context.WithoutCancel(r.Context()), ev); err != nil {
		a.log.Error("an event is lost", zap.String("event", string(ev.Name)), zap.Error(err))
	}
}

func (a *api) mayNote(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Sub(a.since) >= time.Second {
		a.since, a.noted = now, 0
	}
	a.noted++
	if a.noted == maxRefused+1 {
		a.log.Warn("more calls without an API token than the audit log is told of", zap.Int("per_second", maxRefused))
	}
	return a.noted <= maxRefused
}

// begin counts a call with token, if there may be one more.
func (a *api) begin(token string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all >= maxAPICalls || a.with[token] >= maxTokenCalls {
		return false
	}
	a.all++
	a.with[token]++
	return true
}

func (a *api) end(token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all--
	if a.with[token]--; a.with[token] == 0 {
		delete(a.with, token)
	}
}

// passedHeaders returns those of a call that mean something to the services. What
// a client says of itself in others goes nowhere.
func passedHeaders() []string {
	return []string{
		"Content-Type", "Content-Encoding", "Accept-Encoding", "Te", "User-Agent",
		"Connect-Protocol-Version", "Connect-Timeout-Ms", "Connect-Content-Encoding", "Connect-Accept-Encoding",
		"Grpc-Timeout", "Grpc-Encoding", "Grpc-Accept-Encoding", "X-Grpc-Web", "X-User-Agent",
	}
}

// pass passes a call with this body on for b.
func (a *api) pass(w http.ResponseWriter, r *http.Request, body []byte, b rpc.Bearer) {
	c := http.NewResponseController(w)
	_ = c.SetWriteDeadline(time.Time{})
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if stopping, ok := ctx.Value(stoppingKey{}).(context.Context); ok && streaming(r.Header.Get("Content-Type")) {
		defer context.AfterFunc(stopping, cancel)() // it would never finish by itself
	}
	out := r.Clone(ctx)
	maps.DeleteFunc(out.Header, func(name string, _ []string) bool { return !slices.Contains(passedHeaders(), name) })
	b.PassOn(out.Header)
	out.URL.Path, out.URL.RawPath = rpc.TokenPrefix+r.URL.Path, ""
	out.URL.RawQuery, out.RequestURI = "", out.URL.Path
	out.Body, out.ContentLength, out.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	a.next.ServeHTTP(&patient{ResponseWriter: w, c: c}, out)
}

// streaming reports whether a call of this type may be a stream.
func streaming(contentType string) bool {
	return strings.HasPrefix(contentType, "application/connect+") || strings.HasPrefix(contentType, "application/grpc")
}

// patient is a response that may take long to begin and to go on, but not to be
// taken by the client.
type patient struct {
	http.ResponseWriter

	c *http.ResponseController
}

// Unwrap is for [http.ResponseController].
func (p *patient) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// WriteHeader implements [http.ResponseWriter]. Whoever guesses has to connect each
// time, which the listener bounds.
func (p *patient) WriteHeader(status int) {
	if status == http.StatusUnauthorized {
		p.Header().Set("WWW-Authenticate", `Bearer realm="accessd"`)
		p.Header().Set("Connection", "close")
	}
	p.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (p *patient) Write(b []byte) (int, error) {
	p.hurry()
	n, err := p.ResponseWriter.Write(b)
	p.rest()
	return n, err
}

// Flush implements [http.Flusher].
func (p *patient) Flush() {
	p.hurry()
	_ = p.c.Flush() // what is wrong shows at the next write
	p.rest()
}

func (p *patient) hurry() { _ = p.c.SetWriteDeadline(time.Now().Add(apiStallTime)) }
func (p *patient) rest()  { _ = p.c.SetWriteDeadline(time.Time{}) }

type stoppingKey struct{}
