package integration

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// otherChecks are clients that bring a transport of their own. Those that know
// no certificates come by login@node@proxy with a key that is enrolled.
func otherChecks() []check {
	at, notJump := []string{"at"}, []string{"command", "at"}
	all := []check{
		{"curl (libssh2)", "sftp://", "put and get with a plain ECDSA key", at, curlFiles},
		{"dbclient", "exec", "streams and exit status with a plain key", at, func(t *testing.T, x target) {
			same(t, x.dbclient(t, nil, "echo out; echo err >&2; exit 7"), 7, "out\n", "err\n")
			// One direction after the other: with a lot in both at once dbclient hangs now
			// and then, also at a stock sshd.
			body, file := noise(1<<20), filepath.Join(x.scratch(t), "body")
			same(t, x.dbclient(t, body, "cat > "+file), 0, "", "")
			sameFile(t, file, digest(body))
			if r := x.dbclient(t, nil, "cat "+file); r.Code != 0 || digest([]byte(r.Stdout)) != digest(body) {
				t.Errorf("exit %d, %d of %d bytes or others came: %s", r.Code, len(r.Stdout), len(body), r.Stderr)
			}
		}},
		{"dbclient", "-L and -R", "forwards both ways", at, dbclientForwards},
		{"plink", "exec", "streams and exit status, with a certificate and PuTTY's own host CA store", notJump, plinkExec},
		{"plink", "-L and -R", "forwards both ways", notJump, plinkForwards},
		{"psftp", "files", "put, get, ls, mv and rm", notJump, psftpFiles},
	}
	for _, c := range []struct {
		client, script string
		ways           []string
	}{
		{"paramiko", "paramiko", notJump},
		{"asyncssh", "asyncssh", []string{"jump", "at"}},
		{"npm's ssh2", "ssh2", at},
	} {
		for _, k := range [][3]string{
			{"exec", "command", "streams, exit status and, where the client tells, signal"},
			{"shell", "terminal", "a terminal of a given size"},
			{"sftp", "files", "write, rename, list, read, remove"},
			{"direct-tcpip", "forward", "a channel to a service behind the node"},
			{"tcpip-forward", "remote", "a port of the node's choice, and its end"},
		} {
			all = append(all, check{c.client, k[0], k[2], c.ways, func(t *testing.T, x target) { x.script(t, c.script, k[1]) }})
		}
	}
	return all
}

// place is how a client that reads no ssh_config reaches a target.
type place struct {
	host, port, user string
	hostkey          string // authorized_keys format, where one is known beforehand
}

// place returns where to connect: for the ways other than at through a command
// or a tunnel.
func (x target) place(t *testing.T) place {
	t.Helper()
	switch {
	case x.kind == stock:
		host, port, _ := net.SplitHostPort(x.base.Addr)
		return place{host, port, login, x.base.HostKey}
	case x.way == "at":
		host, port, _ := net.SplitHostPort(x.Addr)
		return place{host, port, login + "@" + x.node, x.proxyKey(t)}
	default:
		return place{x.node, "22", login, ""}
	}
}

// proxyKey returns the plain host key of the proxy.
func (f *fleet) proxyKey(t *testing.T) string {
	t.Helper()
	host, port, _ := net.SplitHostPort(f.Addr)
	out := must(t, harness.Run(t, nil, "ssh-keyscan", "-t", "ed25519", "-p", port, host))
	for line := range strings.Lines(out) {
		if _, key, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(line, "#") {
			return key
		}
	}
	t.Fatalf("ssh-keyscan: %q", out)
	return ""
}

// wire returns the wire form of a key in authorized_keys format.
func wire(t *testing.T, key string) []byte {
	t.Helper()
	blob, err := base64.StdEncoding.DecodeString(strings.Fields(key)[1])
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// through returns the command whose streams are a connection to the node, for
// the way of that name.
func (x target) through() string {
	return fmt.Sprintf("ssh -F %s -W %s:22 proxy", x.config, x.node)
}

// where returns what the scripts in testdata need to know.
func (x target) where(t *testing.T, do string) map[string]any {
	t.Helper()
	to := x.place(t)
	number, _ := strconv.Atoi(to.port)
	at := echo(t)
	echoHost, echoPort, _ := net.SplitHostPort(at)
	echoNumber, _ := strconv.Atoi(echoPort)
	c := map[string]any{
		"do": do, "host": to.host, "port": number, "user": to.user, "key": x.plain, "dir": x.scratch(t), "near": t.TempDir(),
		"echo_host": echoHost, "echo_port": echoNumber, "known_hosts": filepath.Join(x.Home, "fleet-hosts"),
	}
	if to.hostkey != "" {
		sum := sha256.Sum256(wire(t, to.hostkey))
		c["hostkey"] = hex.EncodeToString(sum[:])
	}
	if x.way == "at" && x.user != "alice" { // the plain key is alice's
		c["key"], c["cert"] = x.alice.Key, x.alice.Key+"-cert.pub"
	}
	if x.kind == stock {
		hosts := filepath.Join(t.TempDir(), "hosts")
		harness.WriteFile(t, hosts, fmt.Sprintf("[%s]:%s %s\n", to.host, to.port, to.hostkey))
		c["known_hosts"] = hosts
	}
	switch x.way {
	case "command":
		c["command"] = x.through()
		c["key"], c["cert"] = x.alice.Key, x.alice.Key+"-cert.pub"
	case "jump":
		host, port, _ := net.SplitHostPort(x.Addr)
		number, _ := strconv.Atoi(port)
		c["jump"] = map[string]any{"host": host, "port": number, "user": x.user}
		c["key"], c["cert"] = x.alice.Key, x.alice.Key+"-cert.pub"
	}
	return c
}

// script runs one of the clients in testdata.
func (x target) script(t *testing.T, client, do string) {
	t.Helper()
	text, err := json.Marshal(x.where(t, do))
	if err != nil {
		t.Fatal(err)
	}
	var r harness.Result
	if client == "ssh2" {
		r = x.run(t, []string{"NODE_PATH=" + filepath.Join(ssh2Cache(t), "node_modules")}, "node", "testdata/ssh2/client.js", string(text))
	} else {
		r = x.run(t, nil, "/usr/bin/python3", "testdata/"+client+"_client.py", string(text))
	}
	if r.Code != 0 || r.Stdout != "ok\n" {
		t.Errorf("exit %d, stdout %q, stderr:\n%s", r.Code, r.Stdout, r.Stderr)
	}
}

// ssh2Cache is where install-deps puts npm's ssh2.
func ssh2Cache(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(cache, "accessd", "ssh2-"+digest([]byte(read(t, "testdata/ssh2/package-lock.json")))[:16])
}

func curlFiles(t *testing.T, x target) {
	to, far, near := x.place(t), x.scratch(t), t.TempDir()
	want := blob(t, near+"/a", 2<<20)
	sum := sha256.Sum256(wire(t, to.hostkey))
	args := []string{
		"-sS", "--key", x.ecdsa, "--pubkey", x.ecdsa + ".pub", "-u", to.user + ":",
		"--hostpubsha256", base64.RawStdEncoding.EncodeToString(sum[:]),
	}
	url := "sftp://" + net.JoinHostPort(to.host, to.port) + far
	must(t, x.run(t, nil, "curl", append(args, "-T", near+"/a", url+"/b")...))
	sameFile(t, far+"/b", want)
	must(t, x.run(t, nil, "curl", append(args, "-o", near+"/c", url+"/b")...))
	sameFile(t, near+"/c", want)
	if out := must(t, x.run(t, nil, "curl", append(args, url+"/")...)); !strings.Contains(out, " b\n") {
		t.Errorf("list: %q", out)
	}
}

// dropbear returns the arguments that take dbclient to the target.
func (x target) dropbear(t *testing.T) (env, args []string) {
	t.Helper()
	to, home := x.place(t), shortDir(t)
	key := filepath.Join(home, "key")
	must(t, harness.Run(t, nil, "dropbearconvert", "openssh", "dropbear", x.plain, key))
	if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(to.hostkey)
	harness.WriteFile(t, filepath.Join(home, ".ssh", "known_hosts"), fmt.Sprintf("%s %s %s\n[%[1]s]:%[4]s %[2]s %[3]s\n", to.host, fields[0], fields[1], to.port))
	return []string{"HOME=" + home}, []string{"-i", key, "-p", to.port, "-l", to.user, to.host}
}

func (x target) dbclient(t *testing.T, stdin []byte, words ...string) harness.Result {
	t.Helper()
	env, args := x.dropbear(t)
	return x.start(t, stdin, env, "dbclient", append(args, words...)...)
}

func dbclientForwards(t *testing.T, x target) {
	env, args := x.dropbear(t)
	local, remote := port(t), port(t)
	cmd := x.client(env, "dbclient", append([]string{"-N", "-L", "127.0.0.1:" + local + ":" + echo(t), "-R", "127.0.0.1:" + remote + ":" + echo(t)}, args...)...)
	b := x.background(t, cmd)
	b.throughEcho(t, "tcp", "127.0.0.1:"+local, 1<<20)
	b.throughEcho(t, "tcp", "127.0.0.1:"+remote, 1<<20)
}

// putty returns the arguments that take PuTTY's tools to the target.
func (x target) putty(t *testing.T) (env, args []string) {
	t.Helper()
	to, home := x.place(t), shortDir(t)
	key := filepath.Join(home, "key.ppk")
	must(t, harness.Run(t, nil, "puttygen", x.alice.Key, "-o", key))
	args = []string{"-batch", "-P", to.port, "-l", to.user, "-i", key, "-noagent"}
	if x.kind == stock {
		sum := sha256.Sum256(wire(t, to.hostkey))
		return []string{"HOME=" + home}, append(args, "-hostkey", "SHA256:"+base64.RawStdEncoding.EncodeToString(sum[:]), to.host)
	}
	cas := filepath.Join(home, ".putty", "sshhostcas")
	if err := os.MkdirAll(cas, 0o700); err != nil {
		t.Fatal(err)
	}
	ca := regexp.MustCompile(`ssh-ed25519 (\S+)`).FindStringSubmatch(read(t, filepath.Join(x.Home, "fleet-hosts")))
	harness.WriteFile(t, filepath.Join(cas, "accessd"), "PublicKey="+ca[1]+"\nValidity=*\nPermitRSASHA1=0\nPermitRSASHA256=1\nPermitRSASHA512=1\n")
	args = append(args, "-cert", x.alice.Key+"-cert.pub")
	if x.way == "command" {
		args = append(args, "-proxycmd", x.through())
	}
	return []string{"HOME=" + home}, append(args, to.host)
}

func plinkExec(t *testing.T, x target) {
	env, args := x.putty(t)
	same(t, x.start(t, nil, env, "plink", append(args, "echo out; echo err >&2; exit 7")...), 7, "out\n", "err\n")
	body := noise(1 << 20)
	r := x.start(t, body, env, "plink", append(args, "cat")...)
	if r.Code != 0 || digest([]byte(r.Stdout)) != digest(body) {
		t.Errorf("exit %d, %d of %d bytes or others came back: %s", r.Code, len(r.Stdout), len(body), r.Stderr)
	}
}

func plinkForwards(t *testing.T, x target) {
	env, args := x.putty(t)
	local, remote := port(t), port(t)
	b := x.background(t, x.client(env, "plink", append([]string{"-N", "-L", "127.0.0.1:" + local + ":" + echo(t), "-R", "127.0.0.1:" + remote + ":" + echo(t)}, args...)...))
	b.throughEcho(t, "tcp", "127.0.0.1:"+local, 1<<20)
	b.throughEcho(t, "tcp", "127.0.0.1:"+remote, 1<<20)
}

func psftpFiles(t *testing.T, x target) {
	env, args := x.putty(t)
	far, near := x.scratch(t), t.TempDir()
	want := blob(t, near+"/a", 1<<20)
	batch := filepath.Join(near, "batch")
	harness.WriteFile(t, batch, fmt.Sprintf("cd %[1]s\nlcd %[2]s\nput a b\nmv b c\nget c back\nls\nmkdir d\nrmdir d\nrm c\n", far, near))
	r := x.start(t, nil, env, "psftp", append([]string{"-b", batch}, args...)...)
	if r.Code != 0 || !strings.Contains(r.Stdout, " c\n") {
		t.Errorf("exit %d, stdout %q, stderr %q", r.Code, r.Stdout, r.Stderr)
	}
	sameFile(t, near+"/back", want)
	if left, err := os.ReadDir(far); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
