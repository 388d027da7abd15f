package integration

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/semver"

	"github.com/accessd/accessd/integration/harness"
)

// The program is linked with a golang.org/x/crypto that has every fix we rely
// on, and without cgo as it is released.
func TestBinaryIsBuiltFromWhatWeRelyOn(t *testing.T) {
	t.Parallel()
	info, err := buildinfo.ReadFile(harness.Binary(t))
	if err != nil {
		t.Fatal(err)
	}
	const floor = "v0.55.0"
	for _, dep := range info.Deps {
		if dep.Path == "golang.org/x/crypto" {
			if semver.Compare(dep.Version, floor) < 0 {
				t.Errorf("x/crypto is %s, want at least %s", dep.Version, floor)
			}
			return
		}
	}
	t.Error("the binary's build info names no golang.org/x/crypto")
}

// The released binary needs nothing of the machine and stays under its budget.
func TestReleaseBinaryIsStaticAndSmall(t *testing.T) {
	t.Parallel()
	path := os.Getenv("ACCESSD_BINARY") // built as it is released
	if path == "" {
		path = filepath.Join(t.TempDir(), "accessd")
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "../cmd/accessd")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if most := int64(60e6); fi.Size() > most {
		t.Errorf("the binary has %d bytes, want at most %d", fi.Size(), most)
	}
	if out, err := exec.Command("ldd", path).CombinedOutput(); err == nil && !strings.Contains(string(out), "not a dynamic executable") {
		t.Errorf("the binary needs libraries:\n%s", out)
	}
}

// No secret that the cluster keeps is readable in its files: CA keys, tokens,
// invites (the keys at rest are sealed, the rest is hashed).
func TestDataDirectoryHoldsNoReadableSecret(t *testing.T) {
	t.Parallel()
	c := harness.New(t, "--config", noPenalties(t))
	c.Node("n1")
	token := strings.TrimSpace(c.Admin("tokens", "add", "--quiet", "--ttl", "1h"))
	_, secret, _ := strings.Cut(token, ".")
	invite := strings.TrimSpace(c.Admin("users", "add", "alice", "--roles", "access", "--logins", c.Login))
	bob := strings.TrimSpace(c.Admin("users", "add", "bob", "--roles", "access", "--logins", c.Login))
	a, r := enrol(t, c, "bob", bob, c.Key("bob-key"))
	if r.Code != 0 {
		t.Fatalf("login = %d\n%s", r.Code, r.Stderr)
	}
	if code := c.Main.Stop(); code != 0 {
		t.Fatalf("stop = %d", code)
	}
	wanted := map[string]string{
		"the token's secret": secret, "an invite": invite, "a used invite": bob, "a password": password, "a TOTP secret": a.secret,
	}
	err := filepath.WalkDir(c.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(c.Dir, path)
		for what, s := range wanted {
			if s != "" && strings.Contains(string(text), s) {
				t.Errorf("%s stands readable in %s", what, rel)
			}
		}
		if strings.HasPrefix(rel, "cluster") && strings.Contains(string(text), "PRIVATE KEY") {
			t.Errorf("a private key stands readable in %s", rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for what, s := range wanted {
		if s != "" && strings.Contains(c.Main.Log(), s) {
			t.Errorf("%s stands in the diagnostics", what)
		}
	}
}
