package integration

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/accessd/accessd/integration/harness"
	"github.com/accessd/accessd/lib/events"
)

// hook is somebody's webhook: it keeps the uids of what it confirmed, in order.
type hook struct {
	url string

	mu      sync.Mutex
	away    bool // it refuses everything
	refused int
	uids    []string
}

func newHook(t *testing.T) *hook {
	t.Helper()
	h := &hook{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.away {
			h.refused++
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			var e harness.Event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Errorf("line %q: %v", lines.Text(), err)
			}
			h.uids = append(h.uids, e.Str("uid"))
		}
	}))
	t.Cleanup(server.Close)
	h.url = server.URL
	return h
}

func (h *hook) be(away bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.away = away
}

// got returns each event once, in the order in which they first came, and how often
// the first of all came.
func (h *hook) got() (uids []string, first int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := map[string]bool{}
	for _, uid := range h.uids {
		if !seen[uid] {
			uids = append(uids, uid)
		}
		seen[uid] = true
		if uid == uids[0] {
			first++
		}
	}
	return uids, first
}

// await waits until the hook has what is in the log now, in the log's order and with
// nothing left out.
func (h *hook) await(t *testing.T, c *harness.Cluster) {
	t.Helper()
	var want []string
	for _, e := range c.Events("--limit", "1000", "--order", "log") {
		want = append(want, e.Str("uid"))
	}
	harness.Eventually(t, "the hook has the log", func() bool { uids, _ := h.got(); return len(uids) >= len(want) })
	if uids, _ := h.got(); !slices.Equal(uids[:len(want)], want) {
		t.Errorf("the hook got\n%q\nthe log is\n%q", uids, want)
	}
}

// witness runs somebody's witness of the log with that key, and returns where it is
// and its own key.
func witness(t *testing.T, log string) (url, key string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "witness")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".")
	build.Dir = filepath.Join("..", "tools", "witness")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the witness: %v\n%s", err, out)
	}
	secret, key, err := events.NewAuditKey("witness.example/w1")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, log, secret)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + strings.TrimSpace(address), key
}

// What the log tells others outlives the authority: a webhook that was away over two
// kills gets every event, in order, and none from the beginning again; a witness
// that came later cosigns, and an auditor can demand that.
func TestLogElsewhere(t *testing.T) {
	t.Parallel()
	h := newHook(t)
	config := filepath.Join(t.TempDir(), "accessd.yaml")
	configure := func(more string) {
		harness.WriteFile(t, config, "audit:\n  sinks: [{name: hook, type: webhook, url: \""+h.url+"\"}]\n"+more)
	}
	configure("")
	c := harness.New(t, "--config", config)
	c.Admin("tokens", "add")
	h.await(t, c)
	harness.Eventually(t, "the place behind them is kept", func() bool {
		place, err := os.ReadFile(filepath.Join(c.Dir, "sinks", "place", "hook"))
		return err == nil && len(place) > 0
	})
	key := c.Admin("ca", "export", "--type", "audit")
	at, cosigner := witness(t, strings.TrimSpace(key))
	configure("  witnesses: [{url: \"" + at + "\", key: \"" + cosigner + "\"}]\n")
	h.be(true)
	c.Main.Kill()
	c.StartMain()
	for range 3 {
		c.Admin("tokens", "add")
	}
	harness.Eventually(t, "the hook refused", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.refused > 0
	})
	c.Main.Kill()
	c.StartMain()
	h.be(false)
	c.Admin("tokens", "add")
	h.await(t, c)
	if _, first := h.got(); first != 1 {
		t.Errorf("the first event came %d times, want once: its place was kept", first)
	}

	auditor := c.File("audit.pub", key)
	harness.Eventually(t, "the log is cosigned", func() bool {
		r := harness.Run(t, nil, harness.Binary(t), "audit", "verify", "--log", filepath.Join(c.Dir, "audit"), "--key", auditor, "--witness", cosigner)
		return r.Code == 0 && strings.Contains(r.Stdout, "cosigned by witness.example/w1")
	})
	_, other, err := events.NewAuditKey("witness.example/w2")
	if err != nil {
		t.Fatal(err)
	}
	found(t, harness.Run(t, nil, harness.Binary(t), "audit", "verify", "--log", filepath.Join(c.Dir, "audit"), "--key", auditor, "--witness", other), "witness.example/w2")
}
