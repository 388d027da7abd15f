package backend_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sync/errgroup"

	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/backend/backendtest"
	"github.com/accessd/accessd/lib/fault"
)

// childDir, when set, makes the test binary a process that writes to the store
// in that directory until it is killed, and says on stdout what was acknowledged.
const childDir = "ACCESSD_TEST_BACKEND_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, writeForever(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func writeForever(dir string) error {
	b, err := backend.Open(context.Background(), backend.Config{Dir: dir})
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		if _, err := b.Put(context.Background(), fmt.Sprintf("n/%08d", i), []byte("x")); err != nil {
			return err
		}
		fmt.Println(i)
	}
}

// startChild starts a writer on dir and returns it once it has acknowledged n
// writes.
func startChild(t *testing.T, dir string, n int) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked := bufio.NewScanner(out)
	for range n {
		if !acked.Scan() {
			t.Fatal("the writer ended early")
		}
	}
	return cmd, acked
}

func TestEmbedded(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	b := backendtest.Open(t)
	backendtest.Run(t, b, b.Compact)
}

func TestExternal(t *testing.T) {
	c := backendtest.StartCluster(t)
	backendtest.Run(t, c.Open(t), c.Compact)
	t.Run("watch survives restarts", func(t *testing.T) { testWatchAcrossRestarts(t, c) })
	t.Run("endpoints away", func(t *testing.T) { testEndpointsAway(t, c) })
}

// testWatchAcrossRestarts stops each member in turn while a writer goes on: the
// watch tells every write once and in order.
func testWatchAcrossRestarts(t *testing.T, c *backendtest.Cluster) {
	const each = 20
	b := c.Open(t)
	rev, err := b.Put(t.Context(), "restart/begin", nil)
	if err != nil {
		t.Fatal(err)
	}
	last := fmt.Sprintf("restart/%04d", 3*each-1)
	var got []string
	done := errors.New("seen all")
	g, ctx := errgroup.WithContext(t.Context())
	g.Go(func() error {
		err := b.Watch(ctx, "restart/", rev+1, func(events []backend.Event) error {
			for _, e := range events {
				got = append(got, e.Key)
			}
			if got[len(got)-1] == last {
				return done
			}
			return nil
		})
		if errors.Is(err, done) {
			return nil
		}
		return err
	})
	for i := range 3 {
		c.Stop(i)
		for n := i * each; n < (i+1)*each; n++ {
			key := fmt.Sprintf("restart/%04d", n)
			for { // while a leader is elected, writes fail; Create tells those that happened all the same
				_, err := b.Create(t.Context(), key, nil)
				if err == nil || fault.Is(err, fault.Conflict) {
					break
				}
				if !fault.Is(err, fault.Unavailable) {
					t.Fatal(err)
				}
			}
		}
		c.StartAll(t)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for n, key := range got {
		if want := fmt.Sprintf("restart/%04d", n); key != want {
			t.Fatalf("event %d is %q, want %q", n, key, want)
		}
	}
}

func testEndpointsAway(t *testing.T, c *backendtest.Cluster) {
	cfg := c.Config()
	cfg.Timeout = 200 * time.Millisecond
	b, err := backend.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		c.Stop(i)
	}
	if _, err := b.Get(t.Context(), "k"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Get = %v, want Unavailable", err)
	}
	if _, err := b.Put(t.Context(), "k", nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Put = %v, want Unavailable", err)
	}
	if _, err := b.Grant(t.Context(), time.Second); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Grant = %v, want Unavailable", err)
	}
	if _, err := b.KeepAliveOnce(t.Context(), 1); !fault.Is(err, fault.Unavailable) {
		t.Errorf("KeepAliveOnce = %v, want Unavailable", err)
	}
	if _, err := backend.Open(t.Context(), cfg); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Open = %v, want Unavailable", err)
	}
	c.StartAll(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		if _, err = b.Put(ctx, "k", nil); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		t.Errorf("Put after the members came back = %v", err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
}

func TestKillKeepsAcknowledgedWrites(t *testing.T) {
	dir := t.TempDir()
	child, acked := startChild(t, dir, 50)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	last := acked.Text()
	for acked.Scan() { // what it had said before it died counts too
		last = acked.Text()
	}
	_ = child.Wait() // it was killed
	b, err := backend.Open(t.Context(), backend.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	items, _, err := b.List(t.Context(), "n/")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(last, &n); err != nil {
		t.Fatal(err)
	}
	if len(items) < n+1 {
		t.Errorf("%d writes are left, want the %d that were acknowledged", len(items), n+1)
	}
	for i, item := range items {
		if want := fmt.Sprintf("n/%08d", i); item.Key != want {
			t.Fatalf("item %d is %q, want %q", i, item.Key, want)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	child, _ := startChild(t, dir, 1)
	_, err := backend.Open(t.Context(), backend.Config{Dir: dir})
	if !fault.Is(err, fault.Conflict) || !strings.Contains(fault.Public(err), dir) || fault.Hint(err) == "" {
		t.Errorf("Open = %v, want a conflict that names %q and a hint", err, dir)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	b, err := backend.Open(t.Context(), backend.Config{Dir: dir})
	if err != nil {
		t.Fatalf("Open after the other died = %v", err)
	}
	if _, err := backend.Open(t.Context(), backend.Config{Dir: dir}); !fault.Is(err, fault.Conflict) {
		t.Errorf("second Open in one process = %v, want Conflict", err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	notPEM := filepath.Join(t.TempDir(), "not.pem")
	if err := os.WriteFile(notPEM, []byte("no"), 0o600); err != nil {
		t.Fatal(err)
	}
	https := []string{"https://127.0.0.1:1"}
	cases := []struct {
		name string
		cfg  backend.Config
		want string
	}{
		{"nothing", backend.Config{}, "want a directory or endpoints"},
		{"plain http", backend.Config{Endpoints: []string{"http://10.0.0.1:2379"}}, "want https"},
		{"mixed", backend.Config{Endpoints: []string{"http://127.0.0.1:2379", "https://127.0.0.1:2379"}}, "all endpoints"},
		{"no URL", backend.Config{Endpoints: []string{"db:2379"}}, "https://HOST:PORT"},
		{"path", backend.Config{Endpoints: []string{"https://db:2379/x"}}, "https://HOST:PORT"},
		{"half a certificate", backend.Config{Endpoints: https, CertFile: "x"}, "come together"},
		{"no CA file", backend.Config{Endpoints: https, CAFile: "/nowhere"}, "etcd CA"},
		{"CA file without PEM", backend.Config{Endpoints: https, CAFile: notPEM}, "no PEM certificate"},
		{"no client certificate", backend.Config{Endpoints: https, CertFile: notPEM, KeyFile: notPEM}, "client certificate"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := backend.Open(t.Context(), c.cfg)
			if !fault.Is(err, fault.BadInput) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Open = %v, want bad input about %q", err, c.want)
			}
		})
	}
}

// A damaged file is an error that names the directory, not a panic or an exit.
func TestDamagedFilesAreAnError(t *testing.T) {
	junk := []byte(strings.Repeat("junk", 4096))
	for _, pattern := range []string{"etcd/member/snap/db", "etcd/member/wal/*.wal"} {
		t.Run(pattern, func(t *testing.T) {
			dir := t.TempDir()
			b, err := backend.Open(t.Context(), backend.Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			files, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil || len(files) == 0 {
				t.Fatalf("Glob = %q, %v, want a file to damage", files, err)
			}
			if err := os.WriteFile(files[0], junk, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err = backend.Open(t.Context(), backend.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), dir) {
				t.Errorf("Open = %v, want an error that names %q", err, dir)
			}
		})
	}
}

// An ordinary life of the store is no news: nothing at all is logged.
func TestEmbeddedIsQuiet(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	dir := t.TempDir()
	for range 2 {
		b, err := backend.Open(t.Context(), backend.Config{Dir: dir, Log: zap.New(core)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Put(t.Context(), "k", []byte("v")); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range logs.All() {
		t.Errorf("log: %v %s %v", e.Level, e.Message, e.ContextMap())
	}
}

func TestWatchEndsWithClose(t *testing.T) {
	b, err := backend.Open(t.Context(), backend.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	rev, err := b.Put(t.Context(), "d/k", nil)
	if err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- b.Watch(t.Context(), "d/", rev, func([]backend.Event) error {
			close(started)
			return nil
		})
	}()
	<-started
	if err := b.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	if err := <-ended; !fault.Is(err, fault.Unavailable) {
		t.Errorf("Watch = %v, want Unavailable after Close", err)
	}
}
