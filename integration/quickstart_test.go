package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// The first thing a newcomer types.
func TestQuickstart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "quick")
	p := harness.Start(t, "quickstart", "--data-dir", dir, "--listen", "127.0.0.1:0")
	config := filepath.Join(dir, "client", "ssh_config")
	node := p.Field("name")
	if r := harness.Run(t, nil, "ssh", "-F", config, "-o", "BatchMode=yes", node, "echo", "hello"); r.Code != 0 || r.Stdout != "hello\n" {
		t.Errorf("ssh -F = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	r := harness.Run(t, nil, "ssh", "-F", config, "-o", "BatchMode=yes", "-J", "accessd-proxy", node, "echo", "jumped")
	if r.Code != 0 || r.Stdout != "jumped\n" {
		t.Errorf("ssh -J = %d %q %q", r.Code, r.Stdout, r.Stderr)
	}
	id := p.Field("id")
	p.Signal(syscall.SIGINT) // Ctrl-C
	if code := p.Wait(); code != 0 {
		t.Errorf("Ctrl-C ended it with %d, want 0", code)
	}
	again := harness.Start(t, "quickstart", "--data-dir", dir, "--listen", "127.0.0.1:0")
	if got := again.Field("id"); got != id {
		t.Errorf("the second start is %s, want the same cluster's %s", got, id)
	}
	if r := harness.Run(t, nil, "ssh", "-F", config, "-o", "BatchMode=yes", node, "true"); r.Code != 0 {
		t.Errorf("after the second start: ssh = %d %q", r.Code, r.Stderr)
	}
}

// One command through the whole path, with its output, its events and its exit
// status.
func TestQuickstartCommand(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "quick")
	r := harness.Run(t, strings.NewReader("from stdin\n"), harness.Binary(t), "quickstart", "--data-dir", dir, "--listen", "127.0.0.1:0", "--", "cat; echo bye; exit 9")
	if r.Code != 9 {
		t.Errorf("exit %d, want the command's 9\n%s", r.Code, r.Stderr)
	}
	for _, want := range []string{"from stdin\nbye\n", "access.decision", "session.start", "session.end", "exit_code=9"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("stdout lacks %q:\n%s", want, r.Stdout)
		}
	}
}

// The example that embeds a cluster runs as it is printed.
func TestEmbedExample(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	binary := filepath.Join(dir, "embed")
	if out, err := exec.Command("go", "build", "-o", binary, "../examples/embed").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	text, err := os.ReadFile("../examples/embed/main.go")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n >= 60 {
		t.Errorf("the example has %d lines, want under 60", n)
	}
	k := harness.Type(t, "sh", "-c", "exec "+binary+" "+filepath.Join(dir, "data")+" >&2")
	invite := k.Expect(`invite of alice: (\S+)\s`)[1]
	if len(invite) < 52 {
		t.Errorf("invite %q, want 256 bits", invite)
	}
	k.Interrupt()
	if r := k.Wait(); r.Code != 0 {
		t.Errorf("the example ended with %d\n%s", r.Code, r.Stderr)
	}
}
