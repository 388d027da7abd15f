package harness

import (
	"bytes"
	"crypto/ed25519"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/prototext"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

// secrets are what must be readable nowhere, by value, with what each is; and
// the data directories that will be searched for them.
var secrets = struct {
	sync.Mutex
	what map[string]string
	dirs map[string]bool
}{what: map[string]string{}, dirs: map[string]bool{}}

// Secret says that text is a secret. Every process's diagnostics and every file
// of its data directory are searched for it when the test is over.
func Secret(what, text string) {
	secrets.Lock()
	defer secrets.Unlock()
	if len(text) >= 8 { // anything shorter stands in a file by chance
		secrets.what[text] = what
	}
}

// printed takes note of the secrets that an administrative verb prints.
func printed(args []string, stdout string) {
	stdout = strings.TrimSpace(stdout)
	if len(args) < 2 || strings.ContainsAny(stdout, " \n{") {
		return
	}
	switch args[0] + " " + args[1] {
	case "tokens add":
		if _, secret, ok := strings.Cut(stdout, "."); ok {
			Secret("a join token", secret)
		}
	case "users add", "users reset":
		Secret("an invite", stdout)
	}
}

// shown takes note of the TOTP secrets among what was on a screen.
func shown(groups []string) {
	for _, g := range groups[1:] {
		if regexp.MustCompile(`^[A-Z2-7]{16,}$`).MatchString(g) {
			Secret("a TOTP secret", g)
		}
	}
}

// privateKey takes note of an Ed25519 key that ssh-keygen made, as it is and as
// the line of the file that has it.
func privateKey(t testing.TB, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ssh.ParseRawPrivateKey(text)
	key, ok := parsed.(*ed25519.PrivateKey)
	if err != nil || !ok {
		t.Fatalf("%s: %v, want an Ed25519 key", file, err)
	}
	Secret("a private key", string(key.Seed()))
	Secret("a private key", strings.Split(string(text), "\n")[4])
}

// dataDir returns the data directory among args.
func dataDir(args []string) string {
	if i := slices.Index(args, "--data-dir"); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// searched has the data directory among args searched once the test is over and
// its processes have ended.
func searched(t testing.TB, args []string) {
	t.Helper()
	dir := dataDir(args)
	secrets.Lock()
	defer secrets.Unlock()
	if dir == "" || secrets.dirs[dir] {
		return
	}
	secrets.dirs[dir] = true
	t.Cleanup(func() {
		for _, leak := range Leaks(t, dir) {
			t.Errorf("readable in the data directory: %s", leak)
		}
	})
}

// Leaks returns the secrets that are readable in a directory's files, each with
// the file. Recordings hold what people printed, so of those only the header is
// read, besides the file as it is.
func Leaks(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // gone meanwhile
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		text = bytes.TrimRight(text, "\x00") // what a store has set aside
		if d.Name() == "000001.part" {
			text = append(text, header(text)...)
		}
		rel, _ := filepath.Rel(dir, path)
		for _, what := range LeaksIn(text) {
			found = append(found, what+" in "+rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// LeaksIn returns what secrets are readable in text.
func LeaksIn(text []byte) []string {
	secrets.Lock()
	defer secrets.Unlock()
	var found []string
	for secret, what := range secrets.what {
		if bytes.Contains(text, []byte(secret)) {
			found = append(found, what)
		}
	}
	return found
}

// header returns the first frame of a recording's first part as text; nothing
// where it is sealed.
func header(part []byte) []byte {
	cmd := exec.Command("zstd", "-dc")
	cmd.Stdin = bytes.NewReader(part)
	frames, err := cmd.Output()
	if err != nil {
		return nil
	}
	var frame accessdv1.Frame
	if err := protodelim.UnmarshalFrom(bytes.NewReader(frames), &frame); err != nil {
		return nil
	}
	text, _ := prototext.Marshal(frame.GetStart())
	return text
}
