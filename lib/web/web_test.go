package web

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestRoutes(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "accessd_test_total"}))
	var unready atomic.Pointer[[]string]
	unready.Store(&[]string{"proxy", "node"})
	s, err := New(Config{Unready: func() []string { return *unready.Load() }, Gatherer: reg})
	if err != nil {
		t.Fatal(err)
	}
	get := func(method, path, from string) *httptest.ResponseRecorder {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
		r.RemoteAddr = from
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		return w
	}
	local, far := "127.0.0.1:1", "203.0.113.9:1"
	for _, row := range []struct {
		method, path, from string
		status             int
		body               string
	}{
		{"GET", "/healthz", far, 200, "ok\n"},
		{"HEAD", "/healthz", far, 200, ""},
		{"GET", "/readyz", far, 503, "not serving: proxy, node\n"},
		{"GET", "/metrics", local, 200, "accessd_test_total 0"},
		{"GET", "/metrics", "[::ffff:10.0.0.1]:1", 200, "accessd_test_total 0"},
		{"GET", "/metrics", far, 404, "not found\n"},
		{"GET", "/metrics", "@", 404, "not found\n"},
		{"POST", "/healthz", far, 405, "method not allowed\n"},
		{"PRI", "/healthz", far, 405, "method not allowed\n"},
		{"GET", "/", far, 404, "not found\n"},
		{"GET", "/healthz/", far, 404, "not found\n"},
		{"GET", "/x/..//healthz?<script>", far, 404, "not found\n"},
		{"GET", "/%3Cscript%3E%1b[2J", far, 404, "not found\n"},
	} {
		resp := get(row.method, row.path, row.from)
		body := resp.Body.String()
		if resp.Code != row.status || (row.method != "HEAD" && !strings.Contains(body, row.body)) {
			t.Errorf("%s %s from %s = %d %q, want %d %q", row.method, row.path, row.from, resp.Code, body, row.status, row.body)
		}
		if got := resp.Header().Get("Content-Security-Policy"); !strings.HasPrefix(got, "default-src 'none'") {
			t.Errorf("%s %s: Content-Security-Policy = %q", row.method, row.path, got)
		}
	}
	unready.Store(&[]string{})
	if resp := get("GET", "/readyz", far); resp.Code != 200 {
		t.Errorf("GET /readyz once all roles serve = %d, want 200", resp.Code)
	}

	s, err = New(Config{Gatherer: reg, MetricsFrom: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}})
	if err != nil {
		t.Fatal(err)
	}
	if resp := get("GET", "/metrics", far); resp.Code != 200 {
		t.Errorf("GET /metrics from a configured network = %d, want 200", resp.Code)
	}
	if resp := get("GET", "/metrics", local); resp.Code != 404 {
		t.Errorf("GET /metrics from elsewhere = %d, want 404", resp.Code)
	}
}

// served hands out connections on which TLS is done, as the listener does: they
// are not *tls.Conn any more.
type served struct {
	net.Listener
	cert *Certificate
}

func (l served) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{tls.Server(c, &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: l.cert.Get, NextProtos: []string{"h2", "http/1.1"},
	})}, nil
}

// start serves on loopback and returns the address and a function that stops.
func start(t *testing.T) (addr string, stop func()) {
	t.Helper()
	cert, err := NewCertificate(CertificateConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, served{ln, cert}) }()
	return ln.Addr().String(), func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil after an orderly stop", err)
		}
	}
}

func TestServeBothVersionsOfHTTP(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	addr, stop := start(t)
	for version, h2 := range map[int]bool{1: false, 2: true} {
		var p http.Protocols
		p.SetHTTP1(!h2)
		p.SetHTTP2(h2)
		tr := &http.Transport{
			Protocols:       &p,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatalf("HTTP/%d: %v", version, err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.ProtoMajor != version || string(body) != "ok\n" {
			t.Errorf("HTTP/%d: got HTTP/%d %q, want ok", version, resp.ProtoMajor, body)
		}
		tr.CloseIdleConnections()
	}
	stop()
}

// TestServeBoundsHeaders: F12, a request without end is refused at 8 KiB.
func TestServeBoundsHeaders(t *testing.T) {
	addr, stop := start(t)
	defer stop()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// More than net/http's own slack beyond MaxHeaderBytes.
	io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("x", maxHeader+4096))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status = %d, want 431", resp.StatusCode)
	}
}
