package integration

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// forwardChecks are ports and sockets.
func forwardChecks() []check {
	strict := []string{"-N", "-o", "ExitOnForwardFailure=yes"}
	return []check{
		{openssh, "-L", "a local port leads to a service the node reaches, half-close included", nil, func(t *testing.T, x target) {
			at := "127.0.0.1:" + port(t)
			b := x.background(t, x.command(append(strict, "-L", at+":"+echo(t))))
			b.throughEcho(t, "tcp", at, 1<<20)
		}},
		{openssh, "-R", "a port on the node leads to a service the person reaches", nil, func(t *testing.T, x target) {
			at := "127.0.0.1:" + port(t)
			b := x.background(t, x.command(append(strict, "-R", at+":"+echo(t))))
			b.throughEcho(t, "tcp", at, 1<<20)
		}},
		{openssh, "-R 0", "the node chooses the port and says which", nil, func(t *testing.T, x target) {
			words := filepath.Join(t.TempDir(), "words")
			b := x.background(t, x.command(append(strict, "-E", words, "-R", "127.0.0.1:0:"+echo(t))))
			var at string
			b.eventually(t, "the port is told", func() bool {
				text, _ := os.ReadFile(words)
				m := regexp.MustCompile(`Allocated port (\d+) for remote forward`).FindSubmatch(text)
				if m == nil {
					return false
				}
				at = "127.0.0.1:" + string(m[1])
				return true
			})
			b.throughEcho(t, "tcp", at, 1<<20)
		}},
		{openssh, "-R cancelled", "ssh -O cancel closes the port on the node", nil, cancelRemote},
		{openssh, "-R SOCKS", "a port on the node is a proxy into the person's network", nil, func(t *testing.T, x target) {
			at := "127.0.0.1:" + port(t)
			b := x.background(t, x.command(append(strict, "-R", at)))
			socks(t, x, b, at)
		}},
		{openssh, "-D", "curl --socks5-hostname through the node", nil, func(t *testing.T, x target) {
			at := "127.0.0.1:" + port(t)
			b := x.background(t, x.command(append(strict, "-D", at)))
			socks(t, x, b, at)
		}},
		{openssh, "-T -D with a script on stdin", "VS Code Remote's way: a script starts a server, which is used over SOCKS and outlives the connection", nil, editor},
		{openssh, "-W", "standard streams lead to a service the node reaches", nil, func(t *testing.T, x target) {
			body := noise(1 << 20)
			r := x.feed(t, bytes.NewReader(body), []string{"-W", echo(t)})
			if r.Code != 0 || digest([]byte(r.Stdout)) != digest(body) {
				t.Errorf("exit %d, %d of %d bytes or others came back: %s", r.Code, len(r.Stdout), len(body), r.Stderr)
			}
		}},
		{openssh, "-L refused", "a closed port behind the node is a failed open, and the connection lives", nil, func(t *testing.T, x target) {
			r := x.ssh(t, []string{"-W", "127.0.0.1:1"})
			if r.Code != 255 || !strings.Contains(r.Stderr, "open failed") {
				t.Errorf("exit %d, stderr %q", r.Code, r.Stderr)
			}
		}},
		{openssh, "-L to a unix socket", "a local socket leads to one on the node, opened as the login", nil, localSocket},
		{openssh, "-R of a unix socket", "a socket on the node, owned by the login, leads to one here", nil, remoteSocket},
	}
}

// socks fetches a page through a SOCKS proxy.
func socks(t *testing.T, x target, b *background, at string) {
	t.Helper()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("page")) }))
	t.Cleanup(web.Close)
	var r harness.Result
	b.eventually(t, "the proxy answers", func() bool {
		r = x.run(t, nil, "curl", "-sS", "--noproxy", "", "--socks5-hostname", at, web.URL)
		return r.Code != 7 // no connection yet
	})
	same(t, r, 0, "page", "")
}

// setUp is a script as an editor that works on another machine sends it: it leaves
// a server behind, says where it listens, and answers as long as it is asked.
const setUp = `cd "$DIR" && echo page >page
nohup python3 -u -m http.server --bind 127.0.0.1 0 >log 2>&1 </dev/null &
echo $! >pid
for _ in $(seq 600); do grep -q ' port ' log && break; sleep 0.1; done
sed -n 's/.* port \([0-9]*\) .*/listening on \1/p' log
while read -r word; do echo "heard $word"; done
`

func editor(t *testing.T, x target) {
	dir, at := x.scratch(t), "127.0.0.1:"+port(t)
	t.Cleanup(func() {
		if pid, err := strconv.Atoi(strings.TrimSpace(readOr(filepath.Join(dir, "pid")))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL) // fails when it has gone, which the test finds
		}
	})
	cmd := x.command([]string{"-T", "-D", at, "-o", "ExitOnForwardFailure=yes"}, "bash")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := filepath.Join(t.TempDir(), "said")
	out, err := os.Create(said)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = out
	b := x.background(t, cmd)
	heard := func(form string) string {
		t.Helper()
		var m []string
		b.eventually(t, form, func() bool { m = regexp.MustCompile(form).FindStringSubmatch(readOr(said)); return m != nil })
		return m[len(m)-1]
	}
	say := func(text string) {
		t.Helper()
		if _, err := io.WriteString(in, text); err != nil {
			t.Fatal(err)
		}
	}
	say(strings.ReplaceAll(setUp, "$DIR", dir))
	page := "http://127.0.0.1:" + heard(`listening on (\d+)\n`) + "/page"
	get := []string{"-sS", "--noproxy", "", "--socks5-hostname", at, page}
	same(t, x.run(t, nil, "curl", get...), 0, "page\n", "")
	say("ping\n")
	heard(`heard ping\n`)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if r := b.wait(t); r.Code != 0 {
		t.Errorf("exit %d: %s", r.Code, r.Stderr)
	}
	same(t, x.ssh(t, nil, "curl -sS --noproxy '*' "+page), 0, "page\n", "")
}

func cancelRemote(t *testing.T, x target) {
	sock := filepath.Join(shortDir(t), "m")
	b := x.background(t, x.command([]string{"-M", "-N", "-S", sock}))
	b.exists(t, sock)
	at := "127.0.0.1:" + port(t)
	forward := at + ":" + echo(t)
	must(t, x.run(t, nil, "ssh", "-F", x.config, "-S", sock, "-O", "forward", "-R", forward, x.alias()))
	b.throughEcho(t, "tcp", at, 1000)
	must(t, x.run(t, nil, "ssh", "-F", x.config, "-S", sock, "-O", "cancel", "-R", forward, x.alias()))
	harness.Eventually(t, "the port is closed", func() bool {
		c, err := net.Dial("tcp", at)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	must(t, x.run(t, nil, "ssh", "-F", x.config, "-S", sock, "-O", "forward", "-R", forward, x.alias()))
	b.throughEcho(t, "tcp", at, 1000)
}

// echoSocket is an echo service at a unix socket that everybody may use.
func echoSocket(t *testing.T, path string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	serveEcho(ln)
}

func localSocket(t *testing.T, x target) {
	far, near := filepath.Join(x.scratch(t), "far"), filepath.Join(shortDir(t), "near")
	echoSocket(t, far)
	b := x.background(t, x.command([]string{"-N", "-L", near + ":" + far}))
	b.throughEcho(t, "unix", near, 1<<20)
	closed := filepath.Join(x.scratch(t), "closed")
	echoSocket(t, closed)
	if err := os.Chmod(closed, 0o600); err != nil {
		t.Fatal(err)
	}
	barred := filepath.Join(shortDir(t), "barred")
	b = x.background(t, x.command([]string{"-N", "-L", barred + ":" + closed}))
	b.exists(t, barred)
	var c net.Conn
	b.eventually(t, "ssh listens", func() (ok bool) {
		var err error
		c, err = net.Dial("unix", barred)
		return err == nil
	})
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("a socket that the login may not open answered with %d bytes", n)
	}
}

func remoteSocket(t *testing.T, x target) {
	far, near := filepath.Join(x.scratch(t), "far"), filepath.Join(shortDir(t), "near")
	echoSocket(t, near)
	b := x.background(t, x.command([]string{"-N", "-o", "ExitOnForwardFailure=yes", "-R", far + ":" + near}))
	b.exists(t, far)
	fi, err := os.Stat(far)
	if err != nil {
		t.Fatal(err)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || st.Uid != 4801 || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v of uid %d, want 0600 of the login", fi.Mode(), st.Uid)
	}
	b.throughEcho(t, "unix", far, 1<<20)
}
