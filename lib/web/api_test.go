package web

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/rpc"
)

// heard remembers events.
type heard struct {
	mu   sync.Mutex
	list []events.Event
}

func (h *heard) Emit(_ context.Context, ev events.Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, ev)
	return nil
}

func (h *heard) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.list)
}

const apiPath = "/accessd.v1.NodeService/ListNodes"

// newAPISite returns a server whose calls next answers.
func newAPISite(t *testing.T, next http.HandlerFunc) (*Server, *heard) {
	t.Helper()
	h := &heard{}
	s, err := New(Config{API: next, Events: h})
	if err != nil {
		t.Fatal(err)
	}
	return s, h
}

func apiRequest(body io.Reader, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, apiPath, body)
	r.RemoteAddr = "203.0.113.7:50122"
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

// TestCallsArePassedOnForTheirToken: nothing that a client says stands for the
// token that it shows or for where it is.
func TestCallsArePassedOnForTheirToken(t *testing.T) {
	var got *http.Request
	var bearer rpc.Bearer
	authority := rpc.Bearers(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = r
		bearer, _ = rpc.BearerFrom(r.Context())
	}))
	s, _ := newAPISite(t, authority.ServeHTTP)
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, apiRequest(strings.NewReader("{}"), "Authorization", "bearer  secret", "Accessd-Token", "another's", "Accessd-Client", "192.0.2.1:1",
		"Connection", "Accessd-Token, Accessd-Client", "Cookie", "a=b", "X-Forwarded-For", "192.0.2.1", "Connect-Protocol-Version", "1"))
	if w.Code != http.StatusOK || bearer.Token != "secret" || bearer.Addr.String() != "203.0.113.7:50122" || got.URL.Path != apiPath {
		t.Fatalf("status %d, passed on for %+v as %v", w.Code, bearer, got.URL)
	}
	for _, name := range []string{"Authorization", "Cookie", "Connection", "X-Forwarded-For"} {
		if v := got.Header.Get(name); v != "" {
			t.Errorf("%s: %q is passed on", name, v)
		}
	}
	if got.Header.Get("Connect-Protocol-Version") != "1" || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("what the protocol needs is not passed on: %v", got.Header)
	}
}

// TestCallsWithoutAToken: the authority does not hear of them, the log does, but
// not without end.
func TestCallsWithoutAToken(t *testing.T) {
	s, log := newAPISite(t, func(http.ResponseWriter, *http.Request) { t.Error("a call was passed on") })
	for name, headers := range map[string][]string{
		"none":      nil,
		"empty":     {"Authorization", "Bearer "},
		"basic":     {"Authorization", "Basic YTpi"},
		"two":       {"Authorization", "Bearer a", "Authorization", "Bearer b"},
		"very long": {"Authorization", "Bearer " + strings.Repeat("a", maxAPIToken+1)},
	} {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, apiRequest(strings.NewReader("{}"), headers...))
		if w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), `"code":"unauthenticated"`) ||
			w.Header().Get("Www-Authenticate") == "" || w.Header().Get("Connection") != "close" {
			t.Errorf("%s: %d %v %q", name, w.Code, w.Header(), w.Body)
		}
	}
	if n := log.count(); n != 5 {
		t.Errorf("%d events, want 5", n)
	}
	for range 100 * maxRefused {
		s.Handler().ServeHTTP(httptest.NewRecorder(), apiRequest(http.NoBody))
	}
	if n := log.count(); n >= 50*maxRefused {
		t.Errorf("the log hears of %d calls at once", n)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, apiPath, nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET = %d", w.Code)
	}
}

// TestCallsAtATimeAreBounded: with one token, whatever else there is room for.
func TestCallsAtATimeAreBounded(t *testing.T) {
	var under sync.WaitGroup
	under.Add(maxTokenCalls)
	release := make(chan struct{})
	s, _ := newAPISite(t, func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.Header.Get("User-Agent"), "waits") {
			under.Done()
			<-release
		}
	})
	do := func(token, agent string) int {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, apiRequest(strings.NewReader("{}"), "Authorization", "Bearer "+token, "User-Agent", agent))
		return w.Code
	}
	var calls sync.WaitGroup
	for range maxTokenCalls {
		calls.Go(func() { do("a", "waits") })
	}
	under.Wait()
	if got := do("a", ""); got != http.StatusTooManyRequests {
		t.Errorf("one more with the token = %d, want 429", got)
	}
	if got := do("b", ""); got != http.StatusOK {
		t.Errorf("with another token = %d", got)
	}
	close(release)
	calls.Wait()
	if got := do("a", ""); got != http.StatusOK {
		t.Errorf("when they are over = %d", got)
	}
}

// TestSlowRequestsKeepNobodyOut: requests that never come whole, with tokens that are
// made up, take no call's place, and one source's take no other source's.
func TestSlowRequestsKeepNobodyOut(t *testing.T) {
	s, _ := newAPISite(t, func(http.ResponseWriter, *http.Request) {})
	do := func(body io.Reader, from, token string) int {
		w := httptest.NewRecorder()
		r := apiRequest(body, "Authorization", "Bearer "+token)
		r.RemoteAddr = from
		s.Handler().ServeHTTP(w, r)
		return w.Code
	}
	var slow sync.WaitGroup
	var ends []*io.PipeWriter
	for i := range maxAPICalls {
		body, end := io.Pipe()
		ends = append(ends, end)
		taken, refused := make(chan struct{}), make(chan struct{})
		slow.Go(func() {
			defer close(refused)
			do(body, "203.0.113.7:50122", strconv.Itoa(i))
		})
		slow.Go(func() {
			if _, err := end.Write([]byte("{")); err == nil {
				close(taken)
			}
		})
		select {
		case <-taken:
		case <-refused:
		}
	}
	if got := do(strings.NewReader("{}"), "203.0.113.7:50123", "good"); got != http.StatusTooManyRequests {
		t.Errorf("one more from the source = %d, want 429", got)
	}
	for _, from := range []string{"198.51.100.9:1", "[2001:db8::1]:1"} {
		if got := do(strings.NewReader("{}"), from, "good"); got != http.StatusOK {
			t.Errorf("from %s = %d", from, got)
		}
	}
	for _, end := range ends {
		end.Close()
	}
	slow.Wait()
	if got := do(strings.NewReader("{}"), "203.0.113.7:50123", "good"); got != http.StatusOK {
		t.Errorf("when they are over = %d", got)
	}
}

func TestRequestsAreSmall(t *testing.T) {
	s, _ := newAPISite(t, func(http.ResponseWriter, *http.Request) { t.Error("a call was passed on") })
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, apiRequest(strings.NewReader(strings.Repeat("x", maxAPIRequest+1)), "Authorization", "Bearer a"))
	if w.Code != http.StatusTooManyRequests || !strings.Contains(w.Body.String(), `"resource_exhausted"`) {
		t.Errorf("a large request = %d %s", w.Code, w.Body)
	}
}

// TestStreamsEndWithTheServer: one that would never finish does not hold a stop up,
// over either version of HTTP, and the deadlines of pages do not end it before.
func TestStreamsEndWithTheServer(t *testing.T) {
	for _, proto := range []string{"http/1.1", "h2"} {
		t.Run(proto, func(t *testing.T) {
			s, err := New(Config{Grace: time.Hour, API: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, "begun\n")
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			})})
			if err != nil {
				t.Fatal(err)
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			cert, err := NewCertificate(CertificateConfig{Dir: t.TempDir(), Names: []string{"127.0.0.1"}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			done := make(chan error, 1)
			go func() {
				done <- s.Serve(ctx, tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.Get, NextProtos: []string{proto}}))
			}()
			tr := &http.Transport{ForceAttemptHTTP2: proto == "h2", TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
			defer tr.CloseIdleConnections()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+ln.Addr().String()+apiPath, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer a")
			req.Header.Set("Content-Type", "application/connect+json")
			resp, err := (&http.Client{Transport: tr}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var first [6]byte
			if _, err := io.ReadFull(resp.Body, first[:]); err != nil || string(first[:]) != "begun\n" {
				t.Fatalf("read %q, %v", first, err)
			}
			stop()
			if _, err := io.ReadAll(resp.Body); err != nil && !strings.Contains(err.Error(), "EOF") {
				t.Logf("the stream ended with %v", err)
			}
			if err := <-done; err != nil {
				t.Errorf("Serve = %v", err)
			}
		})
	}
}
