//go:build linux

package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// lab is where a run takes place: its directory, its processes, and the sides
// that several scenarios share.
type lab struct {
	accessd string // the binary, absolute
	dir     string
	quick   bool
	link    bool
	index   int
	login   string
	stderr  io.Writer

	processes []*process
	shared    map[string]*side
	dirs      int
}

func newLab(o options, stderr io.Writer) (*lab, error) {
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	binary, err := filepath.Abs(o.accessd)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "accessd-bench-")
	if err != nil {
		return nil, err
	}
	return &lab{accessd: binary, dir: dir, quick: o.quick, link: o.link, index: o.index, login: me.Username, stderr: stderr, shared: map[string]*side{}}, nil
}

// pick returns how much of something to do.
func pick[T any](l *lab, full, quick T) T {
	if l.quick {
		return quick
	}
	return full
}

// close ends every process, newest first, and removes all files.
func (l *lab) close() {
	l.end(0)
	os.RemoveAll(l.dir)
}

// end stops every process but the first keep, newest first.
func (l *lab) end(keep int) {
	for i := len(l.processes) - 1; i >= keep; i-- {
		l.processes[i].stop(time.Second) // nobody needs what it would still do
	}
	l.processes = l.processes[:keep]
}

// own runs measure with sides of its own, whose processes end with it.
func (l *lab) own(measure func() ([]figure, error)) ([]figure, error) {
	mark := len(l.processes)
	figures, err := measure()
	l.end(mark)
	return figures, err
}

// folder makes a directory of the lab.
func (l *lab) folder() (string, error) {
	l.dirs++
	dir := filepath.Join(l.dir, fmt.Sprint(l.dirs))
	return dir, os.Mkdir(dir, 0o700)
}

// side is one of the chains that are compared: a proxy, a node behind it, and
// somebody who may log in there.
type side struct {
	name        string
	proxy, node *process
	tunnel      *process // where it is a process of its own
	addr        string   // of the proxy
	user        string   // at the proxy
	role        string   // of the user, where it is not access
	login       string   // at the node
	target      string   // what a jump asks the proxy for
	key         ssh.Signer
	known       ssh.HostKeyCallback
	config      string // ssh_config file, stock ciphers
	gcm         string // the same with AES-GCM on every leg
}

// cpu returns the CPU time that all of the side's servers have used.
func (s *side) cpu() time.Duration {
	sum := treeTime(s.proxy.pid()) + treeTime(s.node.pid())
	if s.tunnel != nil {
		sum += treeTime(s.tunnel.pid())
	}
	return sum
}

// idle waits until the side's servers have as many processes as before; what
// children took counts once they were waited for.
func (s *side) idle(ctx context.Context, before int) error {
	return await(ctx, "the servers are idle", func() bool { return s.size() <= before })
}

// size returns how many processes the side's proxy and node have.
func (s *side) size() int { return len(tree(s.proxy.pid())) + len(tree(s.node.pid())) }

// openssh and the two below return the sides that scenarios share, started when
// the first one asks.
func (l *lab) openssh(ctx context.Context) (*side, error) {
	return l.share("OpenSSH", func(p place) (*side, error) { return l.startOpenSSH(ctx, p) })
}

func (l *lab) tls(ctx context.Context) (*side, error) {
	return l.share("accessd", func(p place) (*side, error) { return l.startAccessd(ctx, p, cluster{}) })
}

func (l *lab) plain(ctx context.Context) (*side, error) {
	return l.share("accessd, plain", func(p place) (*side, error) {
		return l.startAccessd(ctx, p, cluster{config: plainData})
	})
}

// plainData is the configuration of data connections without TLS.
const plainData = "tunnel: {plain: true}\n"

// apart returns accessd's side with a proxy that is nothing else, with or without
// TLS around its data connections.
func (l *lab) apart(ctx context.Context, plain bool) (*side, error) {
	name, c := "accessd, apart", cluster{apart: true}
	if plain {
		name, c.config = name+", plain", plainData
	}
	return l.share(name, func(p place) (*side, error) { return l.startAccessd(ctx, p, c) })
}

func (l *lab) share(name string, start func(place) (*side, error)) (*side, error) {
	if s := l.shared[name]; s != nil {
		return s, nil
	}
	p, err := l.here()
	if err != nil {
		return nil, err
	}
	s, err := start(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s.name = name
	l.shared[name] = s
	return s, nil
}

// both returns accessd's side and the yardstick, in this order.
func (l *lab) both(ctx context.Context) ([]*side, error) {
	b, err := l.openssh(ctx)
	if err != nil {
		return nil, err
	}
	a, err := l.tls(ctx)
	if err != nil {
		return nil, err
	}
	return []*side{a, b}, nil
}

// place is where a side's proxy listens and how to run things beside its node.
type place struct {
	host   string
	atNode []string // goes before the node's commands
}

// beside returns the command that runs args beside the node.
func (p place) beside(args ...string) []string { return slices.Concat(p.atNode, args) }

// here is the place of most measurements: loopback. Where root may arrange it, the
// node's machine has an /etc of its own, in which the login's shell is /bin/sh and
// its home is empty: what somebody's own start-up files do is not part of either
// side. (A mount over /etc/passwd alone would go when the machine's is replaced.)
func (l *lab) here() (place, error) {
	p := place{host: "127.0.0.1"}
	if os.Geteuid() != 0 {
		return p, nil
	}
	home, err := l.folder()
	if err != nil {
		return p, err
	}
	etc := filepath.Join(home, "etc")
	if _, err := call(context.Background(), "cp", "-a", "/etc", etc); err != nil {
		return p, err
	}
	text, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return p, err
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if f := strings.Split(line, ":"); len(f) == 7 && f[0] == l.login {
			f[5], f[6] = home, "/bin/sh"
			lines[i] = strings.Join(f, ":")
		}
	}
	if err := os.WriteFile(filepath.Join(etc, "passwd"), []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		return p, err
	}
	p.atNode = []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc && exec "$@"`, etc}
	return p, nil
}

// identity is a fresh key in a file, as ssh-keygen would make it.
type identity struct {
	file   string
	signer ssh.Signer
}

func newIdentity(file string) (identity, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return identity{}, err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return identity{}, err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return identity{}, err
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return identity{}, err
	}
	return identity{file, signer}, os.WriteFile(file+".pub", ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o644)
}

// certified returns the identity's certificate, which lies beside it, as a signer.
func (id identity) certified() (ssh.Signer, error) {
	text, err := os.ReadFile(id.file + "-cert.pub")
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil, err
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, fmt.Errorf("%s-cert.pub is no certificate", id.file)
	}
	return ssh.NewCertSigner(cert, id.signer)
}

// certify signs the identity's key and puts the certificate beside it.
func (id identity) certify(ca ssh.Signer, kind uint32, principals ...string) error {
	now := time.Now()
	cert := &ssh.Certificate{
		Key: id.signer.PublicKey(), Serial: 1, CertType: kind, KeyId: principals[0], ValidPrincipals: principals,
		ValidAfter: uint64(now.Add(-time.Minute).Unix()), ValidBefore: uint64(now.Add(24 * time.Hour).Unix()),
	}
	if kind == ssh.UserCert {
		cert.Extensions = map[string]string{"permit-pty": "", "permit-port-forwarding": ""}
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		return err
	}
	return os.WriteFile(id.file+"-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o644)
}

// freePort returns a port nobody listens on just now.
func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	return port, err
}

// call runs a command to its end and returns its stdout.
func call(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
