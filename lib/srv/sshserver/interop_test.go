package sshserver

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// office is a world on a port, for other people's clients.
type office struct {
	*world
	dir  string
	port string
}

// session answers any command with a greeting.
func session(_ *Conn, nc ssh.NewChannel) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	for r := range reqs {
		ok := r.Type == "exec"
		r.Reply(ok, nil)
		if ok {
			ch.Write([]byte("hello\n"))
			ch.SendRequest("exit-status", false, u32(0))
			return
		}
	}
}

// newOffice lets everyone in who holds a key.
func newOffice(t *testing.T) *office {
	t.Helper()
	w := newWorld(t, func(c *Config) {
		c.Channels["session"] = session
		c.Authenticate = func(c *Conn, cfg *ssh.ServerConfig) error {
			cfg.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }
			cfg.VerifiedPublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey, p *ssh.Permissions, _ string) (*ssh.Permissions, error) {
				return p, c.ProveKey(key)
			}
			return nil
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.server.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	return &office{world: w, dir: t.TempDir(), port: port}
}

func (o *office) path(name string) string { return filepath.Join(o.dir, name) }

// writeKey makes a private key in OpenSSH's form and its public half.
func (o *office) writeKey(name string, key crypto.PrivateKey) string {
	o.t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		o.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		o.t.Fatal(err)
	}
	for file, data := range map[string][]byte{name: pem.EncodeToMemory(block), name + ".pub": ssh.MarshalAuthorizedKey(signer.PublicKey())} {
		if err := os.WriteFile(o.path(file), data, 0o600); err != nil {
			o.t.Fatal(err)
		}
	}
	return o.path(name)
}

func (o *office) ed25519Key() string {
	o.t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		o.t.Fatal(err)
	}
	return o.writeKey("ed25519", key)
}

func (o *office) ecdsaKey() string {
	o.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		o.t.Fatal(err)
	}
	return o.writeKey("ecdsa", key)
}

// command runs a program of a Debian package and returns what it printed.
func (o *office) command(pkg, name string, args ...string) (string, error) {
	o.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		o.t.Fatalf("this test needs %s: apt-get install %s", name, pkg)
	}
	ctx, cancel := context.WithTimeout(o.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "HOME="+o.dir, "SSH_AUTH_SOCK=")
	cmd.Dir = o.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// hello runs a client that must print the greeting.
func (o *office) hello(pkg, name string, args ...string) {
	o.t.Helper()
	out, err := o.command(pkg, name, args...)
	if err != nil || !strings.Contains(out, "hello\n") {
		o.t.Errorf("%s: %v\n%s", name, err, out)
	}
}

// TestInterop: THREATS 3, other people's clients connect with the defaults, each
// with the best it has.
func TestInterop(t *testing.T) {
	const gcm128, gcm256, chacha = ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305
	for name, row := range map[string]struct {
		run    func(o *office)
		client string // begin of its identification
		cipher []string
		mac    string
	}{
		"openssh": {func(o *office) {
			o.hello("openssh-client", "ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
				"-o", "IdentitiesOnly=yes", "-i", o.ed25519Key(), "-p", o.port, "alice@127.0.0.1", "x")
		}, "SSH-2.0-OpenSSH_", []string{gcm128}, ""},
		"dropbear": {func(o *office) {
			if out, err := o.command("dropbear-bin", "dropbearkey", "-t", "ed25519", "-f", o.path("key")); err != nil {
				o.t.Fatal(out)
			}
			o.hello("dropbear-bin", "dbclient", "-y", "-y", "-i", o.path("key"), "-p", o.port, "alice@127.0.0.1", "x")
		}, "SSH-2.0-dropbear", []string{chacha}, ""},
		"putty": {func(o *office) {
			if out, err := o.command("putty-tools", "puttygen", o.ed25519Key(), "-o", o.path("key.ppk"), "-O", "private"); err != nil {
				o.t.Fatal(out)
			}
			o.hello("putty-tools", "plink", "-batch", "-ssh", "-hostkey", ssh.FingerprintSHA256(o.host.PublicKey()),
				"-i", o.path("key.ppk"), "-P", o.port, "alice@127.0.0.1", "x")
		}, "SSH-2.0-PuTTY_Release_", []string{gcm128, gcm256}, ""},
		"paramiko": {func(o *office) {
			o.hello("python3-paramiko", "/usr/bin/python3", "-W", "ignore", "-c", `
import paramiko, sys
c = paramiko.SSHClient()
c.set_missing_host_key_policy(paramiko.AutoAddPolicy())
c.connect("127.0.0.1", int(sys.argv[1]), "alice", key_filename=sys.argv[2], allow_agent=False, look_for_keys=False)
print(c.exec_command("x")[1].read().decode(), end="")
c.close()`, o.port, o.ed25519Key())
		}, "SSH-2.0-paramiko_", []string{ssh.CipherAES128CTR, ssh.CipherAES256CTR, gcm128, gcm256}, ssh.HMACSHA256ETM},
		"asyncssh": {func(o *office) {
			o.hello("python3-asyncssh", "/usr/bin/python3", "-W", "ignore", "-c", `
import asyncio, asyncssh, sys
async def main():
    async with asyncssh.connect("127.0.0.1", int(sys.argv[1]), username="alice", client_keys=[sys.argv[2]], known_hosts=None, config=None, agent_path=None) as c:
        print((await c.run("x")).stdout, end="")
asyncio.run(main())`, o.port, o.ed25519Key())
		}, "SSH-2.0-AsyncSSH_", []string{gcm128, gcm256}, ""},
		"libssh2": {func(o *office) {
			// There is no SFTP here: that curl gets as far as asking is enough.
			key := o.ecdsaKey()
			o.command("curl", "curl", "-sS", "-k", "--key", key, "--pubkey", key+".pub", "-u", "alice:", "sftp://127.0.0.1:"+o.port+"/x")
		}, "SSH-2.0-libssh2_", []string{ssh.CipherAES256CTR, ssh.CipherAES128CTR, gcm128, gcm256}, ssh.HMACSHA256},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			row.run(o)
			conns := o.conns()
			if len(conns) != 1 {
				t.Fatalf("%d connections got in, want one", len(conns))
			}
			if v := string(conns[0].ClientVersion()); !strings.HasPrefix(v, row.client) {
				t.Errorf("the client is %q, want %s…", v, row.client)
			}
			a := negotiated(t, conns[0])
			t.Logf("%s: %+v", conns[0].ClientVersion(), a)
			if !slices.Contains(row.cipher, a.Read.Cipher) || a.Write.Cipher != a.Read.Cipher {
				t.Errorf("cipher %q and %q, want one of %q", a.Read.Cipher, a.Write.Cipher, row.cipher)
			}
			if row.mac != "" && a.Read.MAC != "" && !strings.HasPrefix(a.Read.MAC, "hmac-sha2-") {
				t.Errorf("MAC %q, want one with SHA-2 such as %q", a.Read.MAC, row.mac)
			}
			if a.HostKey != ssh.KeyAlgoED25519 {
				t.Errorf("host key %q, want Ed25519", a.HostKey)
			}
		})
	}
}

// TestAudit: what ssh-audit sees is what this package says, no more.
func TestAudit(t *testing.T) {
	o := newOffice(t)
	out, err := o.command("ssh-audit", "ssh-audit", "-j", "-p", o.port, "127.0.0.1")
	if _, failed := err.(*exec.ExitError); err != nil && !failed { //nolint:errorlint // a status is its opinion
		t.Fatal(err, out)
	}
	type named []struct{ Algorithm string }
	var got struct {
		Banner struct{ Raw, Software string }
		Kex    named
		Key    named
		Enc    []string
		Mac    []string
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	list := func(n named) (l []string) {
		for _, a := range n {
			l = append(l, a.Algorithm)
		}
		return l
	}
	if got.Banner.Raw != Version {
		t.Errorf("banner = %q, want %q", got.Banner.Raw, Version)
	}
	for what, row := range map[string]struct{ got, want []string }{
		"key exchange": {list(got.Kex), []string{
			"mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org",
			"ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "kex-strict-s-v00@openssh.com",
		}},
		"host keys": {list(got.Key), []string{"ssh-ed25519"}},
		"ciphers":   {got.Enc, defaultCiphers(hasAES())},
		"MACs":      {got.Mac, []string{"hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"}},
	} {
		if !slices.Equal(row.got, row.want) {
			t.Errorf("%s = %q, want %q", what, row.got, row.want)
		}
	}
}
