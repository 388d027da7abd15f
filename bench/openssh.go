//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
)

// sshdConfig is what both daemons of the yardstick run with: certificates and
// nothing else, no limits in the way, and no work that accessd does not do either
// (PAM, reverse look-ups).
const sshdConfig = `ListenAddress %s
HostKey %s
HostCertificate %s-cert.pub
TrustedUserCAKeys %s.pub
AuthorizedKeysFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
StrictModes no
UseDNS no
PrintMotd no
MaxStartups 10000
MaxSessions 10000
AllowTcpForwarding yes
Subsystem sftp /usr/lib/openssh/sftp-server
LogLevel ERROR
`

// sshConfig is what stock clients of the yardstick run with; accessd's clients
// use what "accessd ssh-config" prints, which says the same.
const sshConfig = `Host accessd-proxy
  HostName %s
  Port %s
  User %s
Host n1
  HostName 127.0.0.1
  Port %s
  ProxyJump accessd-proxy
  User %s
Host *
  IdentityFile "%s"
  CertificateFile "%s-cert.pub"
  IdentitiesOnly yes
  UserKnownHostsFile "%s"
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  UpdateHostKeys no
`

// clientHead goes before either side's ssh_config: nobody is there to be asked,
// and newer clients hide the timing of keystrokes, which would be measured.
const clientHead = "BatchMode yes\nIgnoreUnknown ObscureKeystrokeTiming\n" + "ObscureKeystrokeTiming no\n"

const onlyGCM = "Ciphers aes128-gcm@openssh.com\n"

// yardstick is OpenSSH's side while it is built.
type yardstick struct {
	lab   *lab
	place place
	dir   string
	sshd  string
	ca    identity
	me    identity
	host  identity

	proxyPort, nodePort string
}

func (l *lab) startOpenSSH(ctx context.Context, p place) (*side, error) {
	return (&yardstick{lab: l, place: p}).start(ctx)
}

func (y *yardstick) start(ctx context.Context) (*side, error) {
	if err := y.prepare(); err != nil {
		return nil, err
	}
	s := &side{name: "OpenSSH", addr: net.JoinHostPort(y.place.host, y.proxyPort), user: y.lab.login, login: y.lab.login}
	var err error
	if s.proxy, err = y.daemon(place{host: y.place.host}, y.proxyPort); err != nil {
		return nil, err
	}
	if s.node, err = y.daemon(place{"127.0.0.1", y.place.atNode}, y.nodePort); err != nil {
		return nil, err
	}
	if err := await(ctx, "sshd listens", func() bool { return listens(s.addr) }); err != nil {
		return nil, fmt.Errorf("%w: %s", err, s.proxy.tail())
	}
	port, err := y.tunnel(ctx, "")
	if err != nil {
		return nil, err
	}
	s.tunnel = y.lab.processes[len(y.lab.processes)-1]
	gcmPort, err := y.tunnel(ctx, onlyGCM)
	if err != nil {
		return nil, err
	}
	s.target = net.JoinHostPort("127.0.0.1", port)
	if s.config, err = y.config("config", "", port); err != nil {
		return nil, err
	}
	if s.gcm, err = y.config("config-gcm", onlyGCM, gcmPort); err != nil {
		return nil, err
	}
	if s.key, err = y.me.certified(); err != nil {
		return nil, err
	}
	s.known, err = trust(y.knownHosts())
	return s, err
}

// prepare makes keys and certificates.
func (y *yardstick) prepare() (err error) {
	if y.sshd, err = findSSHD(); err != nil {
		return err
	}
	if y.dir, err = y.lab.folder(); err != nil {
		return err
	}
	for name, id := range map[string]*identity{"ca": &y.ca, "me": &y.me, "host": &y.host} {
		if *id, err = newIdentity(filepath.Join(y.dir, name)); err != nil {
			return err
		}
	}
	if err := y.me.certify(y.ca.signer, ssh.UserCert, y.lab.login); err != nil {
		return err
	}
	if err := y.host.certify(y.ca.signer, ssh.HostCert, "127.0.0.1", y.place.host); err != nil {
		return err
	}
	line := "@cert-authority * " + string(ssh.MarshalAuthorizedKey(y.ca.signer.PublicKey()))
	if err := os.WriteFile(y.knownHosts(), []byte(line), 0o644); err != nil {
		return err
	}
	if y.proxyPort, err = freePort(); err != nil {
		return err
	}
	y.nodePort, err = freePort()
	return err
}

func (y *yardstick) knownHosts() string { return filepath.Join(y.dir, "known_hosts") }

// daemon starts an sshd.
func (y *yardstick) daemon(p place, port string) (*process, error) {
	file := filepath.Join(y.dir, "sshd_config-"+port)
	text := fmt.Sprintf(sshdConfig, net.JoinHostPort(p.host, port), y.host.file, y.host.file, y.ca.file)
	const penalties = "PerSourcePenalties no\n" // OpenSSH 9.8 and later
	if err := os.WriteFile(file, []byte(text+penalties), 0o600); err != nil {
		return nil, err
	}
	if exec.Command(y.sshd, "-t", "-f", file).Run() != nil {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	return y.lab.launch(spec{what: "sshd", args: p.beside(y.sshd, "-D", "-e", "-f", file)})
}

// config writes an ssh_config for a node behind the proxy's given port.
func (y *yardstick) config(name, head, port string) (string, error) {
	file := filepath.Join(y.dir, name)
	text := fmt.Sprintf(sshConfig, y.place.host, y.proxyPort, y.lab.login, port, y.lab.login, y.me.file, y.me.file, y.knownHosts())
	return file, os.WriteFile(file, []byte(clientHead+head+text), 0o600)
}

// tunnel starts the node's "ssh -N -R" and returns the port that leads through it.
func (y *yardstick) tunnel(ctx context.Context, head string) (port string, err error) {
	if port, err = freePort(); err != nil {
		return "", err
	}
	config, err := y.config("tunnel-"+port, head, "1")
	if err != nil {
		return "", err
	}
	p, err := y.lab.launch(spec{what: "ssh -R", args: y.place.beside("ssh", "-F", config, "-N", "-o", "ExitOnForwardFailure=yes", "-R", "127.0.0.1:"+port+":127.0.0.1:"+y.nodePort, "accessd-proxy")})
	if err != nil {
		return "", err
	}
	err = await(ctx, "ssh -R is up", func() bool { return banner("127.0.0.1:" + port) })
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, p.tail())
	}
	return port, nil
}

func findSSHD() (string, error) {
	for _, path := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("no sshd on this machine")
}

// listens says whether somebody accepts connections at addr.
func listens(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// banner says whether an SSH server answers at addr.
func banner(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return false
	}
	defer c.Close()
	b := make([]byte, 4)
	n, _ := c.Read(b)
	return strings.HasPrefix(string(b[:n]), "SSH-")
}
