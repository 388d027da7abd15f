package sftp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestParseSCP(t *testing.T) {
	good := map[string]SCP{
		"scp -t /tmp/x":              {Write: true, Path: "/tmp/x", Argv: []string{"scp", "-t", "/tmp/x"}},
		"scp -f /tmp/x":              {Path: "/tmp/x", Argv: []string{"scp", "-f", "/tmp/x"}},
		"scp -r -p -d -t -- x":       {Write: true, Path: "x", Argv: []string{"scp", "-r", "-p", "-d", "-t", "--", "x"}},
		"scp -rpt .":                 {Write: true, Path: ".", Argv: []string{"scp", "-rpt", "."}},
		"/usr/bin/scp -v -f 'a b'":   {Path: "a b", Argv: []string{"/usr/bin/scp", "-v", "-f", "a b"}},
		`scp -t a\ b\;c`:             {Write: true, Path: "a b;c", Argv: []string{"scp", "-t", "a b;c"}},
		`scp -f "a b"`:               {Path: "a b", Argv: []string{"scp", "-f", "a b"}},
		"scp -t backup~":             {Write: true, Path: "backup~", Argv: []string{"scp", "-t", "backup~"}},
		"  scp   -t\t/tmp/50%=half ": {Write: true, Path: "/tmp/50%=half", Argv: []string{"scp", "-t", "/tmp/50%=half"}},
	}
	for line, want := range good {
		got, ok := ParseSCP(line)
		if !ok || got.Write != want.Write || got.Path != want.Path || !slices.Equal(got.Argv, want.Argv) {
			t.Errorf("ParseSCP(%q) = %+v, %v, want %+v", line, got, ok, want)
		}
	}
	for _, line := range []string{
		"", "scp", "scp -t", "scp x y", "scp -t x; bash", "scp -t x;bash", "scp -t x && id", "scp -t x | sh", "scp -t `id`",
		"scp -t $(id)", "scp -t $HOME", `scp -t "$(id)"`, "scp -t x > /etc/passwd", "scp -t x\nid", "scp -t 'x", `scp -t "x`,
		`scp -t x\`, "scp -t *.c", "scp -t ~root/x", "scp -t {a,b}", "scp -t -f x", "scp -S /tmp/evil -t x", "scp -o ProxyCommand=x -t y",
		"scp -t x y", "FOO=1 scp -t x", "/tmp/scp -t x", "./scp -t x", "scp\x00 -t x", "bash -c scp", "scp -t #x", "scp -t !x", "scp - x",
		"scp -t <(id)", "scp -t x &", "(scp -t x)", "scp --version", "sh -t x", `scp -t "a\"; id; \""`,
	} {
		if got, ok := ParseSCP(line); ok {
			t.Errorf("ParseSCP(%q) = %+v, want it refused", line, got)
		}
	}
}

// FuzzParseSCP holds what is taken to be what a shell makes of it.
func FuzzParseSCP(f *testing.F) {
	for _, line := range []string{"scp -t x", "scp -f 'a b'", `scp -rt a\ b`, "scp -t x; id", `scp -t "x"`} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		c, ok := ParseSCP(line)
		if !ok {
			return
		}
		cmd := exec.Command("/bin/sh", "-c", strings.Replace(line, c.Argv[0], "printf '%s\\0' "+c.Argv[0], 1))
		cmd.Dir = t.TempDir()
		out, err := cmd.Output()
		if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); err != nil || !slices.Equal(got, c.Argv) {
			t.Errorf("%q is %q to a shell (%v), %q here", line, got, err, c.Argv)
		}
	})
}

// journal keeps what is reported.
type journal struct {
	mu   sync.Mutex
	list []Operation
	deny error
}

func (j *journal) config() Config {
	return Config{
		Allow: func(bool) error { return j.deny },
		Report: func(_ context.Context, op Operation) error {
			j.mu.Lock()
			defer j.mu.Unlock()
			j.list = append(j.list, op)
			return nil
		},
	}
}

// between joins two ends of scp by a filter and returns how they ended.
func between(t *testing.T, j *journal, c SCP, near, far *exec.Cmd) (filtered, nearly, farther error) {
	t.Helper()
	toNear, fromNear := plumb(t, near)
	toFar, fromFar := plumb(t, far)
	f := NewSCP(j.config(), c, toNear, toFar)
	var wg sync.WaitGroup
	var up, down error
	wg.Go(func() { up = f.FromClient(t.Context(), fromNear) })
	wg.Go(func() {
		down = f.FromServer(t.Context(), fromFar)
		_ = toNear.Close()
	})
	farther = far.Wait()
	wg.Wait()
	return errors.Join(up, down), near.Wait(), farther
}

func plumb(t *testing.T, cmd *exec.Cmd) (io.WriteCloser, io.Reader) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%q: %s", cmd.Args, &stderr)
		}
	})
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	back, answers, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout = in, answers
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()      // the process has its own
	_ = answers.Close() // the same
	t.Cleanup(func() { _ = out.Close(); _ = back.Close() })
	return out, back
}

// Two real ends of scp notice nothing of the filter between them, which sees
// every file.
func TestSCPBetweenRealEnds(t *testing.T) {
	for _, write := range []bool{true, false} {
		t.Run(fmt.Sprintf("write %v", write), func(t *testing.T) {
			from, to := t.TempDir(), t.TempDir()
			want := map[string]string{}
			for name, size := range map[string]int{"tree/a": 0, "tree/b c": 1, "tree/sub/d": 300_000, "tree/sub/e": 65536} {
				data := make([]byte, size)
				for i := range data {
					data[i] = byte(rand.IntN(256))
				}
				path := filepath.Join(from, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
					t.Fatal(err)
				}
				sum := sha256.Sum256(data)
				want[filepath.Base(name)] = hex.EncodeToString(sum[:])
			}
			source, sink := exec.Command("scp", "-r", "-p", "-f", filepath.Join(from, "tree")), exec.Command("scp", "-r", "-p", "-t", to)
			near, far, c := source, sink, SCP{Write: true, Path: to}
			if !write {
				near, far, c = sink, source, SCP{Path: filepath.Join(from, "tree")}
			}
			j := &journal{}
			if filtered, nearly, farther := between(t, j, c, near, far); filtered != nil || nearly != nil || farther != nil {
				t.Fatalf("ended with %v, %v, %v", filtered, nearly, farther)
			}
			if out, err := exec.Command("diff", "-r", filepath.Join(from, "tree"), filepath.Join(to, "tree")).CombinedOutput(); err != nil {
				t.Errorf("the trees differ: %s", out)
			}
			for _, op := range j.list {
				if op.Action == actMkdir {
					continue
				}
				name := filepath.Base(op.Path)
				if write {
					name = filepath.Base(op.Target)
				}
				if op.SHA256 != want[name] || !op.Sequential || op.Status != 0 || op.Write != write {
					t.Errorf("reported %+v, want hash %s", op, want[name])
				}
				delete(want, name)
			}
			if len(want) > 0 {
				t.Errorf("not reported: %v", want)
			}
		})
	}
}

// What a source may not say ends the session, and what it had begun is on record.
func TestSCPHostileSource(t *testing.T) {
	tests := []struct{ name, sent, want string }{
		{"traversal", "C0644 1 ../x\nx\x00", "leads elsewhere"},
		{"absolute", "C0644 1 /etc/passwd\nx\x00", "leads elsewhere"},
		{"parent", "D0755 0 ..\n", "leads elsewhere"},
		{"NUL", "C0644 1 a\x00b\nx\x00", "leads elsewhere"},
		{"no name", "C0644 1 \n", "leads elsewhere"},
		{"size", "C0644 -1 x\n", "no mode or size"},
		{"mode", "C9999 1 x\n", "no mode or size"},
		{"fields", "C0644\n", "without mode"},
		{"unknown", "Z\n", "unknown kind"},
		{"end", "E\n", "has not begun"},
		{"long", "C0644 1 " + strings.Repeat("x", maxLine+1) + "\n", "more than"},
		{"deep", strings.Repeat("D0755 0 d\n", maxDepth+1), "in each other"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var passed bytes.Buffer
			if err := push(t, (&journal{}).config(), &passed, test.sent); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("FromClient = %v, want %q", err, test.want)
			}
			if test.name != "deep" && passed.Len() > 0 {
				t.Errorf("passed on %q", passed.String())
			}
		})
	}
	j := &journal{}
	if err := push(t, j.config(), io.Discard, "C0644 10 x\nabc"); err != nil {
		t.Errorf("push = %v", err)
	}
	if len(j.list) != 1 || j.list[0].Error != ended || j.list[0].BytesWritten != 3 {
		t.Errorf("reported %+v, want a file that was cut after 3 bytes", j.list)
	}
	if err := push(t, (&journal{deny: errors.New("no more")}).config(), io.Discard, "C0644 1 x\nx\x00"); err == nil || err.Error() != "no more" {
		t.Errorf("push = %v, want the refusal", err)
	}
}

// push has a source send what, to a sink that answers each write with success but
// for a file called refused.
func push(t *testing.T, cfg Config, passed io.Writer, what string) error {
	t.Helper()
	answers, say := io.Pipe()
	f := NewSCP(cfg, SCP{Write: true, Path: "/tmp"}, io.Discard, &yes{passed, say})
	served := async(func() error { return f.FromServer(t.Context(), answers) })
	_, _ = say.Write([]byte{0})
	err := f.FromClient(t.Context(), strings.NewReader(what))
	_ = say.Close()
	return errors.Join(err, <-served)
}

type yes struct {
	io.Writer

	say io.Writer
}

func (y *yes) Write(p []byte) (int, error) {
	answer := "\x00"
	if bytes.Contains(p, []byte("refused")) {
		answer = "\x01scp: refused: Permission denied\n"
	}
	_, _ = y.say.Write([]byte(answer))
	return y.Writer.Write(p)
}

func (*yes) Close() error { return nil }

// A client announces a file that the sink will refuse, and in what looks like its
// content another one: the sink takes that for the next announcement, so must
// whoever keeps the record.
func TestSCPContentOfRefusedFile(t *testing.T) {
	j := &journal{}
	if err := push(t, j.config(), io.Discard, "C0644 1000 refused\nC0644 4 hidden\nevil\x00"); err != nil {
		t.Fatal(err)
	}
	if len(j.list) != 2 || j.list[0].Target != "refused" || j.list[0].Status == 0 ||
		j.list[1].Target != "hidden" || j.list[1].SHA256 != sum([]byte("evil")) {
		t.Errorf("reported %+v, want a refused file and a hidden one", j.list)
	}
	if err := push(t, j.config(), io.Discard, "C0644 1000 refused\nC0644 4 ../hidden\nevil\x00"); err == nil {
		t.Error("a name that leads elsewhere passes behind a refused file")
	}
}

// An honest source goes on behind a file that the sink refuses; so must the
// filter.
func TestSCPGoesOnBehindRefusedFile(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		if err := os.MkdirAll(filepath.Join(from, "tree"), 0o700); err != nil {
			t.Fatal(err)
		}
		noise(t, filepath.Join(from, "tree", name), 100_000)
	}
	if err := os.MkdirAll(filepath.Join(to, "tree", "b"), 0o700); err != nil { // no file can be there
		t.Fatal(err)
	}
	j := &journal{}
	filtered, _, _ := between(t, j, SCP{Write: true, Path: to},
		exec.Command("scp", "-r", "-f", filepath.Join(from, "tree")), exec.Command("scp", "-r", "-t", to))
	if filtered != nil {
		t.Fatal(filtered)
	}
	status := map[string]uint32{}
	for _, op := range j.list {
		status[op.Target] = op.Status
	}
	if len(status) != 4 || status["tree/a"] != 0 || status["tree/b"] == 0 || status["tree/c"] != 0 {
		t.Errorf("reported %+v, want b alone refused", j.list)
	}
	sameFile(t, filepath.Join(from, "tree", "a"), filepath.Join(to, "tree", "a"))
	sameFile(t, filepath.Join(from, "tree", "c"), filepath.Join(to, "tree", "c"))
}
