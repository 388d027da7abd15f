package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// loopbackWait is how long the browser may take; the proxy's patience ends
	// about then.
	loopbackWait = 5 * time.Minute
	// loopbackTimeout bounds one request to the loopback.
	loopbackTimeout = 5 * time.Second
)

// A loopback is where the browser comes back to: an address of this machine
// only, with a port of the system's choice and a path that nobody guesses (RFC
// 8252, sections 7.3 and 8.3). What the browser brings is of use only together
// with the verifier, which stays here (section 8.1).
type loopback struct {
	ln       net.Listener
	path     string
	verifier string
	receipts chan string
	server   *http.Server
	served   sync.WaitGroup
}

func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

func listenLoopback(ctx context.Context) (*loopback, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fault.New(fault.Internal, "listen for the browser: %w", err)
	}
	l := &loopback{ln: ln, path: "/" + randomText(24), verifier: randomText(32), receipts: make(chan string, 1)}
	l.server = &http.Server{Handler: l, ReadTimeout: loopbackTimeout, WriteTimeout: loopbackTimeout, MaxHeaderBytes: 16 << 10}
	l.served.Go(func() { _ = l.server.Serve(ln) }) // ends with close
	return l, nil
}

func (l *loopback) url() string { return "http://" + l.ln.Addr().String() + l.path }

// challenge is what the verifier is recognized by (RFC 7636, section 4.2).
func (l *loopback) challenge() string {
	sum := sha256.Sum256([]byte(l.verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// close lets the answer to the browser go out and stops listening.
func (l *loopback) close() {
	ctx, stop := context.WithTimeout(context.Background(), loopbackTimeout) //nolint:forbidigo // what it ends has no other
	defer stop()
	if l.server.Shutdown(ctx) != nil {
		_ = l.server.Close() // nothing is left to lose
	}
	l.served.Wait()
}

// ServeHTTP takes the receipt from the browser.
func (l *loopback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	receipt := r.URL.Query().Get("receipt")
	if r.Method != http.MethodGet || r.URL.Path != l.path || receipt == "" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	select {
	case l.receipts <- receipt:
	default: // the first one counts
	}
	_, _ = w.Write([]byte("You are signed in. You can close this window.\n")) // an error means that the browser has gone
}

// visit opens the browser at a page of the proxy's and waits until it comes back.
func (l *loopback) visit(ctx context.Context, e *env, page string) ([]string, error) {
	ctx, stop := context.WithTimeout(ctx, loopbackWait)
	defer stop()
	e.say("opening your browser; if nothing happens, open this link on this machine:\n  %s", page)
	open := browserCommand()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), open[0], append(open[1:], page)...) //nolint:gosec // the person's own choice; no shell
	if err := cmd.Start(); err != nil {
		e.say("the browser does not start: %v", err)
	} else {
		l.served.Go(func() { _ = cmd.Wait() }) // whatever becomes of it
	}
	select {
	case receipt := <-l.receipts:
		return []string{receipt + " " + l.verifier}, nil
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "the browser did not come back").WithHint("try again, or with --headless")
	}
}

// browserCommand returns what opens the person's browser, or nil where there is
// none: on a machine without a screen, or at the far end of an ssh.
func browserCommand() []string {
	if own := os.Getenv("BROWSER"); own != "" {
		if path, err := exec.LookPath(own); err == nil {
			return []string{path}
		}
	}
	var open []string
	switch runtime.GOOS {
	case "darwin":
		open = []string{"open"}
	case "windows":
		open = []string{"rundll32", "url.dll,FileProtocolHandler"}
	default:
		if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
			return nil
		}
		open = []string{"xdg-open"}
	}
	if os.Getenv("SSH_CONNECTION") != "" {
		return nil
	}
	path, err := exec.LookPath(open[0])
	if err != nil {
		return nil
	}
	open[0] = path
	return open
}
