package sftp

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const (
	serverProgram = "/usr/lib/openssh/sftp-server"
	bridge        = "ACCESSD_TEST_BRIDGE" // a socket that this binary joins to its standard streams
)

func TestMain(m *testing.M) {
	if path := os.Getenv(bridge); path != "" {
		joinSocket(path)
		return
	}
	os.Exit(m.Run())
}

// joinSocket is the program that stock clients take for their connection.
func joinSocket(path string) {
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() {
		_, _ = io.Copy(c, os.Stdin)
		_ = c.(*net.UnixConn).CloseWrite()
	}()
	_, _ = io.Copy(os.Stdout, c)
}

// desk is where rights are given and reports end up.
type desk struct {
	mu         sync.Mutex
	ops        []Operation
	denyRead   error
	denyWrite  error
	failReport error
}

func (d *desk) allow(write bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if write {
		return d.denyWrite
	}
	return d.denyRead
}

func (d *desk) report(_ context.Context, op Operation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ops = append(d.ops, op)
	return d.failReport
}

// find returns the reports of action about a path that ends with name.
func (d *desk) find(action, name string) []Operation {
	d.mu.Lock()
	defer d.mu.Unlock()
	var found []Operation
	for _, op := range d.ops {
		if op.Action == action && strings.HasSuffix(op.Path, name) {
			found = append(found, op)
		}
	}
	return found
}

// one is find for what must have happened once.
func (d *desk) one(t *testing.T, action, name string) Operation {
	t.Helper()
	found := d.find(action, name)
	if len(found) != 1 {
		t.Fatalf("%d reports of %s %q, want 1; all: %+v", len(found), action, name, d.ops)
	}
	return found[0]
}

// pump is what a Filter and a Copier have in common.
type pump interface {
	FromClient(ctx context.Context, r io.Reader) error
	FromServer(ctx context.Context, r io.Reader) error
}

// front makes the pump of one session.
type front func(client io.Writer, server io.WriteCloser) pump

func (d *desk) filter(client io.Writer, server io.WriteCloser) pump {
	return New(Config{Allow: d.allow, Report: d.report}, client, server)
}

// through runs client, a stock program whose connection is this binary, against
// server by way of what open returns. It returns what the client says.
func through(t *testing.T, open front, client, server *exec.Cmd) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := async(func() error { return serveOne(t, ln, open, server) })
	client.Env = append(os.Environ(), bridge+"="+path)
	out, failed := client.CombinedOutput()
	_ = ln.Close() // a client that never connected
	if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
		t.Errorf("session: %v\n%s", err, out)
	}
	return string(out), failed
}

func async(f func() error) chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

func serveOne(t *testing.T, ln net.Listener, open front, server *exec.Cmd) error {
	c, err := ln.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	stdin, err := server.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	f := open(c, stdin)
	fromClient := async(func() error { return f.FromClient(t.Context(), c) })
	err = f.FromServer(t.Context(), stdout)
	_ = c.(*net.UnixConn).CloseWrite()
	if err != nil {
		_ = c.Close()
	}
	err = errors.Join(err, <-fromClient)
	_ = server.Wait() // its status is not what is tested
	return err
}

// sftp runs the stock client with a batch of commands in dir.
func (d *desk) sftp(t *testing.T, dir string, batch ...string) (string, error) {
	t.Helper()
	client := exec.Command("sftp", "-D", os.Args[0], "-b", "-")
	client.Dir = dir
	client.Stdin = strings.NewReader(strings.Join(batch, "\n") + "\n")
	server := exec.Command(serverProgram)
	server.Dir = dir
	return through(t, d.filter, client, server)
}

// noise writes a file of size random bytes and returns their hash.
func noise(t *testing.T, path string, size int) string {
	t.Helper()
	b := make([]byte, size)
	_, _ = rand.Read(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return sum(b)
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func sameFile(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("%s has %d bytes, %s other %d", a, len(x), b, len(y))
	}
}

func TestStockClient(t *testing.T) {
	dir, d := t.TempDir(), &desk{}
	want := noise(t, filepath.Join(dir, "a"), 3<<20+17)
	if err := os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := d.sftp(t, dir, "put a b", "get b c", "put empty e2", "ls -l", "df", "mkdir dir", "rename b dir/b",
		"symlink dir/b link", "ln dir/b hard", "chmod 640 hard", "rm hard", "ls link", "rm link", "mkdir gone", "rmdir gone")
	if err != nil {
		t.Fatalf("sftp: %v\n%s", err, out)
	}
	sameFile(t, filepath.Join(dir, "a"), filepath.Join(dir, "c"))
	sameFile(t, filepath.Join(dir, "a"), filepath.Join(dir, "dir/b"))
	size := int64(3<<20 + 17)
	closes := d.find("close", "/b")
	if len(closes) != 2 {
		t.Fatalf("closes of b: %+v, want an upload and a download", closes)
	}
	for i, got := range closes {
		if got.SHA256 != want || !got.Sequential || got.BytesRead+got.BytesWritten != size || got.Write != (i == 0) {
			t.Errorf("close %d = %+v, want %d bytes with hash %s", i, got, size, want)
		}
	}
	if op := d.one(t, "close", "/e2"); op.SHA256 != sum(nil) {
		t.Errorf("close of an empty upload = %+v", op)
	}
	if op := d.find("open", "/b")[0]; op.Flags != "write,create,truncate" || op.Attrs == "" || !op.Write {
		t.Errorf("open = %+v", op)
	}
	if op := d.one(t, "symlink", "link"); op.Target != "dir/b" {
		t.Errorf("symlink = %+v, want it to lead to dir/b", op)
	}
	if op := d.one(t, "link", "hard"); !strings.HasSuffix(op.Target, "/dir/b") {
		t.Errorf("link = %+v, want one of dir/b", op)
	}
	if op := d.one(t, "setstat", "hard"); op.Attrs != "mode=0640" {
		t.Errorf("setstat = %+v, want the mode", op)
	}
	if op := d.one(t, "rename", "/b"); !strings.HasSuffix(op.Target, "/dir/b") {
		t.Errorf("rename = %+v", op)
	}
	for _, x := range [][2]string{{"mkdir", "/dir"}, {"remove", "/hard"}, {"remove", "/link"}, {"mkdir", "/gone"}, {"rmdir", "/gone"}} {
		d.one(t, x[0], x[1])
	}
	if len(d.find("readdir", filepath.Base(dir))) == 0 && len(d.find("readdir", "")) == 0 {
		t.Error("no report of the directory that was listed")
	}
	for _, op := range d.ops {
		if op.Status != 0 || op.Error != "" {
			t.Errorf("%+v, want success", op)
		}
	}
}

func TestResumedIsNotWhole(t *testing.T) {
	dir, d := t.TempDir(), &desk{}
	noise(t, filepath.Join(dir, "a"), 1<<20)
	whole, err := os.ReadFile(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"up", "down"} {
		if err := os.WriteFile(filepath.Join(dir, name), whole[:1000], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := d.sftp(t, dir, "reput a up", "reget a down"); err != nil {
		t.Fatalf("sftp: %v\n%s", err, out)
	}
	sameFile(t, filepath.Join(dir, "a"), filepath.Join(dir, "up"))
	sameFile(t, filepath.Join(dir, "a"), filepath.Join(dir, "down"))
	for _, name := range []string{"/up", "/a"} {
		op := d.one(t, "close", name)
		if op.Sequential || op.SHA256 != "" || op.BytesRead+op.BytesWritten != 1<<20-1000 {
			t.Errorf("close = %+v, want the rest of the bytes and no hash", op)
		}
	}
}

func TestStockClientDenied(t *testing.T) {
	dir := t.TempDir()
	noise(t, filepath.Join(dir, "a"), 100)
	no := errors.New("no rule allows it")
	for _, x := range []struct {
		desk   *desk
		batch  string
		action string
		name   string
	}{
		{&desk{denyWrite: no}, "put a b", "open", "/b"},
		{&desk{denyWrite: no}, "rm a", "remove", "/a"},
		{&desk{denyWrite: no}, "rename a b", "rename", "/a"},
		{&desk{denyWrite: no}, "mkdir x", "mkdir", "/x"},
		{&desk{denyWrite: no}, "symlink a x", "symlink", "/x"},
		{&desk{denyWrite: no}, "ln a x", "link", "/x"},
		{&desk{denyWrite: no}, "chmod 777 a", "setstat", "/a"},
		{&desk{denyRead: no}, "get a c", "open", "/a"},
	} {
		out, err := x.desk.sftp(t, dir, x.batch)
		if err == nil {
			t.Errorf("%s: success, want it denied\n%s", x.batch, out)
		}
		if op := x.desk.one(t, x.action, x.name); op.Status != statusDenied || op.Error != no.Error() {
			t.Errorf("%s: %+v, want it denied", x.batch, op)
		}
	}
	if got := names(t, dir); got != "a" {
		t.Errorf("directory has %s, want what was there before", got)
	}
	if out, err := (&desk{denyWrite: no}).sftp(t, dir, "get a fetched", "ls -l"); err != nil {
		t.Errorf("reading without the right to write: %v\n%s", err, out)
	}
	if out, err := (&desk{denyRead: no}).sftp(t, dir, "put a put", "ls -l"); err != nil {
		t.Errorf("writing without the right to read: %v\n%s", err, out)
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range entries {
		s = append(s, e.Name())
	}
	return strings.Join(s, " ")
}

func TestLargeFileAndManySmallOnes(t *testing.T) {
	dir, d := t.TempDir(), &desk{}
	want := noise(t, filepath.Join(dir, "large"), 64<<20)
	if err := os.Mkdir(filepath.Join(dir, "many"), 0o700); err != nil {
		t.Fatal(err)
	}
	const many = 2000
	for i := range many {
		if err := os.WriteFile(filepath.Join(dir, "many", fmt.Sprint("f", i)), []byte(fmt.Sprint(i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := d.sftp(t, dir, "put large up", "get large down", "put -r many copy"); err != nil {
		t.Fatalf("sftp: %v\n%s", err, out)
	}
	sameFile(t, filepath.Join(dir, "large"), filepath.Join(dir, "up"))
	sameFile(t, filepath.Join(dir, "large"), filepath.Join(dir, "down"))
	for _, name := range []string{"/up", "/large"} {
		if op := d.one(t, "close", name); op.SHA256 != want {
			t.Errorf("close = %+v, want hash %s", op, want)
		}
	}
	for i := range many {
		if op := d.one(t, "close", fmt.Sprint("/copy/f", i)); op.SHA256 != sum([]byte(fmt.Sprint(i))) {
			t.Fatalf("close = %+v", op)
		}
	}
}
