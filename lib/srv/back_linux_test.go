package srv

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshwire"
)

// far is a client's end of channels, which says back what it gets.
type far struct {
	mu     sync.Mutex
	opened []string // types and extra data
}

func (f *far) open(kind string, payload []byte) (ssh.Channel, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened = append(f.opened, kind+" "+string(payload))
	r, w := io.Pipe()
	return &echoChannel{PipeReader: r, PipeWriter: w}, nil
}

func (f *far) list() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.opened...)
}

type echoChannel struct {
	*io.PipeReader
	*io.PipeWriter
}

func (c *echoChannel) Close() error {
	_ = c.PipeReader.Close()
	return c.PipeWriter.Close()
}

func (c *echoChannel) CloseWrite() error { return c.PipeWriter.Close() }

func (c *echoChannel) SendRequest(string, bool, []byte) (bool, error) { return false, nil }

func (c *echoChannel) Stderr() io.ReadWriter { return nil }

// begun starts c and returns the first lines that it prints.
func begun(t *testing.T, l *Local, c Command, lines int) (Process, []string) {
	t.Helper()
	p, err := l.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	out, printed := bufio.NewReader(p.Pipes().Stdout), []string{}
	for range lines {
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatalf("%q, then %v", printed, err)
		}
		printed = append(printed, strings.TrimSpace(line))
	}
	return p, printed
}

func newLocal(t *testing.T) *Local {
	t.Helper()
	l, err := NewLocal(LocalConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// says returns whether what is sent to conn comes back.
func says(t *testing.T, conn net.Conn, words string) bool {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(words))
	if _, err := io.WriteString(conn, words); err != nil {
		return false
	}
	_, err := io.ReadFull(conn, got)
	return err == nil && string(got) == words
}

func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func awaitExit(t *testing.T, p Process) {
	t.Helper()
	select {
	case <-p.Exited():
	case <-time.After(20 * time.Second):
		t.Fatal("the process lives on")
	}
}

// The agent's socket is the login's alone, leads to the client, and ends with the
// process. Its name is OpenSSH's.
func TestAgentOfASession(t *testing.T) {
	login, client := me(t), &far{}
	p, printed := begun(t, newLocal(t), Command{
		Account: Account{Login: names.Login(login)}, Kind: KindExec, Agent: true, Open: client.open,
		Line: "echo $SSH_AUTH_SOCK; stat -c '%U %a %F' $SSH_AUTH_SOCK; stat -c '%U %a' $(dirname $SSH_AUTH_SOCK); read x",
	}, 3)
	path := printed[0]
	if !regexp.MustCompile(`^/tmp/ssh-\w{8,}/agent\.\d+$`).MatchString(path) {
		t.Errorf("SSH_AUTH_SOCK is %q", path)
	}
	if printed[1] != login+" 600 socket" || printed[2] != login+" 700" {
		t.Errorf("socket %q in a directory %q, want that both are the login's alone", printed[1], printed[2])
	}
	for i := range 3 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if !says(t, conn, "hello") {
			t.Errorf("connection %d leads nowhere", i)
		}
		conn.Close()
	}
	if got := client.list(); len(got) != 3 || got[0] != sshwire.ChannelAgent+" " {
		t.Errorf("channels %q, want three to the agent", got)
	}
	if os.Geteuid() == 0 { // another account of this machine
		_, err := newLocal(t).Dial(t.Context(), Account{Login: "nobody"}, Endpoint{Path: path}, func(netip.Addr) error { return nil })
		if fault.Public(err) != "connect failed: Permission denied" {
			t.Errorf("another account connects: %v", err)
		}
	}
	_ = p.Pipes().Stdin.Close()
	awaitExit(t, p)
	if !gone(path) || !gone(filepath.Dir(path)) {
		t.Errorf("%s is there after the process", path)
	}
}

// Mallory, who has the login's rights, swaps the socket while the session runs:
// nothing that the name leads to now is touched.
func TestAgentSocketSwapped(t *testing.T) {
	dir, err := os.MkdirTemp("", "victim") //nolint:usetesting // the account must get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	victim := filepath.Join(dir, "agent")
	for _, swap := range []string{
		"rm $S; ln -s " + victim + " $S",
		"rm $S; echo secret > $S",
		"mv $D $D.moved; ln -s " + dir + " $D; mv " + victim + " " + dir + "/$(basename $S)",
	} {
		p, printed := begun(t, newLocal(t), Command{
			Account: Account{Login: names.Login(me(t))}, Kind: KindExec, Agent: true, Open: (&far{}).open,
			Line: "S=$SSH_AUTH_SOCK; D=$(dirname $S); echo $D; " + swap + "; echo; read x; exit 0",
		}, 2)
		t.Cleanup(func() {
			_ = os.RemoveAll(printed[0])
			_ = os.RemoveAll(printed[0] + ".moved")
		})
		_ = p.Pipes().Stdin.Close()
		awaitExit(t, p)
		list, err := os.ReadDir(dir)
		if os.Geteuid() == 0 && (err != nil || len(list) != 1 || list[0].Type() != fs.ModeSocket) {
			t.Errorf("%s: the victim's directory holds %v, %v", swap, list, err)
		}
	}
}

// A client that does not answer holds up neither the hangup nor the end.
func TestCloseDoesNotWaitForTheClient(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	late := &echoChannel{}
	late.PipeReader, late.PipeWriter = io.Pipe()
	p, printed := begun(t, newLocal(t), Command{
		Account: Account{Login: names.Login(me(t))}, Kind: KindExec, Agent: true, Line: "echo $SSH_AUTH_SOCK; exec sleep 1000",
		Open: func(string, []byte) (ssh.Channel, error) {
			close(asked)
			<-answer
			return late, nil
		},
	}, 1)
	conn, err := net.Dial("unix", printed[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-asked
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		p.Close()
	}()
	awaitExit(t, p)
	<-closed
	if !gone(printed[0]) {
		t.Errorf("%s is there after Close", printed[0])
	}
	close(answer)
	if _, err := late.Read(make([]byte, 1)); err == nil {
		t.Error("a channel that came too late is left open")
	}
}

// The display of a session leads to the client's; the login's programs find its
// cookie.
func TestDisplayOfASession(t *testing.T) {
	login, client := me(t), &far{}
	cookies := []string{strings.Repeat("1a", 16), strings.Repeat("2b", 16)}
	var displays []string
	for i, cookie := range cookies {
		_, printed := begun(t, newLocal(t), Command{
			Account: Account{Login: names.Login(login)}, Kind: KindExec, Open: client.open,
			X11:  &sshwire.X11Request{Protocol: "MIT-MAGIC-COOKIE-1", Cookie: cookie, Screen: 0, SingleConnection: i == 1},
			Line: "echo $DISPLAY; xauth list $DISPLAY; read x",
		}, 2)
		m := regexp.MustCompile(`^localhost:(\d+)\.0$`).FindStringSubmatch(printed[0])
		if m == nil {
			t.Fatalf("DISPLAY is %q", printed[0])
		}
		displays = append(displays, m[1])
		if !regexp.MustCompile(`/unix:` + m[1] + `\s+MIT-MAGIC-COOKIE-1\s+` + cookie + `$`).MatchString(printed[1]) {
			t.Errorf("xauth lists %q, want the cookie %s of display %s", printed[1], cookie, m[1])
		}
	}
	if displays[0] == displays[1] {
		t.Errorf("two sessions have display %s", displays[0])
	}
	port := func(n string) string {
		var d int
		_, _ = fmt.Sscan(n, &d)
		return itoa(displayPort + d)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := net.Dial("tcp", net.JoinHostPort(host, port(displays[0])))
		if err != nil {
			t.Fatal(err)
		}
		if !says(t, conn, "hello") {
			t.Errorf("%s leads nowhere", host)
		}
		opened := client.list()
		kind, payload, _ := strings.Cut(opened[len(opened)-1], " ")
		x, err := sshwire.ParseX11Open([]byte(payload))
		if kind != sshwire.ChannelX11 || err != nil || net.JoinHostPort(x.OriginAddr, itoa(int(x.OriginPort))) != conn.LocalAddr().String() {
			t.Errorf("channel %s from %+v, %v, want x11 from %s", kind, x, err, conn.LocalAddr())
		}
		conn.Close()
	}
	for i, want := range []bool{true, false} { // the second session takes a single connection
		conn, err := net.Dial("tcp", "127.0.0.1:"+port(displays[1]))
		if got := err == nil && says(t, conn, "hello"); got != want {
			t.Errorf("connection %d to a display for one: %v, want %v", i+1, got, want)
		}
		if err == nil {
			conn.Close()
		}
	}
}

// Sockets are made and dialled with the login's rights, whatever the server's are.
func TestSocketsAreTheLogins(t *testing.T) {
	l, login := newLocal(t), me(t)
	account := Account{Login: names.Login(login)}
	dir, err := os.MkdirTemp("", "sockets") //nolint:usetesting // the account must get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil { // as /tmp
		t.Fatal(err)
	}
	at := func(name string) Endpoint { return Endpoint{Path: filepath.Join(dir, name)} }
	allow := func(netip.Addr) error { return nil }

	ln, err := l.Listen(t.Context(), account, at("s"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(run(t, "stat", "-c", "%U %a %F", at("s").Path)); got != login+" 600 socket" {
		t.Errorf("the socket is %q, want the login's alone", got)
	}
	if _, err := l.Listen(t.Context(), account, at("s")); fault.Public(err) != "listen failed: Address already in use" {
		t.Errorf("a second listener: %v", err)
	}
	go func() {
		c, err := ln.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	conn, err := l.Dial(t.Context(), account, at("s"), allow)
	if err != nil {
		t.Fatal(err)
	}
	if !says(t, conn, "hello") {
		t.Error("the socket leads nowhere")
	}
	conn.Close()
	if err := ln.Close(); err != nil || !gone(at("s").Path) {
		t.Errorf("Close: %v; the socket is gone: %v", err, gone(at("s").Path))
	}
	for name, want := range map[string]string{
		"none":                   "connect failed: No such file or directory",
		strings.Repeat("x", 200): "connect failed: Invalid argument",
	} {
		if _, err := l.Dial(t.Context(), account, at(name), allow); fault.Public(err) != want {
			t.Errorf("Dial %.10s: %v, want %q", name, err, want)
		}
	}
	no := errors.New("no")
	if _, err := l.Dial(t.Context(), account, at("none"), func(netip.Addr) error { return no }); !errors.Is(err, no) {
		t.Errorf("Dial that is not admitted: %v", err)
	}
	if os.Geteuid() == 0 {
		root, err := net.Listen("unix", at("root").Path) // mode 0755: the login may not write to it
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if _, err := l.Dial(t.Context(), account, at("root"), allow); fault.Public(err) != "connect failed: Permission denied" {
			t.Errorf("Dial to root's socket: %v", err)
		}
		if _, err := l.Listen(t.Context(), account, Endpoint{Path: "/etc/accessd-test"}); fault.Public(err) != "listen failed: Permission denied" {
			t.Errorf("Listen in /etc: %v", err)
		}
	}

	swapped, err := l.Listen(t.Context(), account, at("swapped"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(at("swapped").Path), os.WriteFile(at("swapped").Path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := swapped.Close(); err == nil || gone(at("swapped").Path) {
		t.Errorf("Close removes what is no socket of its own: %v", err)
	}
}

// The privilege separation row, for the child that serves files: it is the login
// and has nothing of the server's. Its client going away ends it.
func TestFilesAreServedAsTheLogin(t *testing.T) {
	login := me(t)
	leaked, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leaked)
	p, err := newLocal(t).Start(t.Context(), Command{Account: Account{Login: names.Login(login)}, Kind: KindSubsystem, Line: SubsystemSFTP})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Pipes().Stdin.Write([]byte{0, 0, 0, 5, 1, 0, 0, 0, 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p.Pipes().Stdout, make([]byte, 9)); err != nil { // it runs now
		t.Fatal(err)
	}
	proc := "/proc/" + itoa(p.(*process).proc.Pid)
	data, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for _, m := range statusLine.FindAllStringSubmatch(string(data), -1) {
		status[m[1]] = strings.Join(strings.Fields(m[2]), " ")
	}
	uid, gid := strings.TrimSpace(run(t, "id", "-u", login)), strings.TrimSpace(run(t, "id", "-g", login))
	want := map[string]string{"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{gid, gid, gid, gid}, " ")}
	if uid != "0" {
		want["CapEff"], want["CapPrm"] = "0000000000000000", "0000000000000000"
	}
	for key, value := range want {
		if status[key] != value {
			t.Errorf("%s is %q, want %q", key, status[key], value)
		}
	}
	if groups := strings.Fields(run(t, "id", "-G", login)); !sameSet(strings.Fields(status["Groups"]), groups) {
		t.Errorf("groups %q, want %v", status["Groups"], groups)
	}
	files, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		to, _ := os.Readlink(proc + "/fd/" + f.Name())
		own := strings.HasPrefix(to, "anon_inode:") || strings.HasPrefix(to, "/sys/fs/cgroup/") // its runtime's
		if !own && !strings.HasPrefix(to, "pipe:") {
			t.Errorf("file %s is %s", f.Name(), to)
		}
	}
	_ = p.Pipes().Stdin.Close()
	select {
	case e := <-p.Exited():
		if e != (Exit{}) {
			t.Errorf("exit %+v", e)
		}
	case <-time.After(20 * time.Second):
		t.Error("it lives on without a client")
	}
}

// An argument list runs without a shell, found by the login's PATH.
func TestArgumentsWithoutAShell(t *testing.T) {
	l := newLocal(t)
	account := Account{Login: names.Login(me(t))}
	stdout, _, e := outcomeOf(t, l, Command{Account: account, Kind: KindExec, Line: "rm -rf /", Argv: []string{"printf", "%s|", "a b", "$(id)", ";"}})
	if stdout != "a b|$(id)|;|" || e != (Exit{}) {
		t.Errorf("printed %q, %+v", stdout, e)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := l.Start(ctx, Command{Account: account, Kind: KindExec, Argv: []string{"no-such-program"}}); fault.Public(err) != `this node has no program "no-such-program"` {
		t.Errorf("Start of what is not there: %v", err)
	}
}
