package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/srv/proxy"
	"github.com/accessd/accessd/lib/sshca"
)

// authorities is a cluster's CAService and what of its NodeService signs.
type authorities struct {
	accessdv1connect.UnimplementedCAServiceHandler
	accessdv1connect.UnimplementedNodeServiceHandler

	host, sshd ssh.Signer
	last       *accessdv1.AddNodeRequest
}

func (a *authorities) ExportCA(_ context.Context, req *connect.Request[accessdv1.ExportCARequest]) (*connect.Response[accessdv1.ExportCAResponse], error) {
	key := a.host.PublicKey()
	if req.Msg.GetType() == "sshd" {
		key = a.sshd.PublicKey()
	}
	return connect.NewResponse(&accessdv1.ExportCAResponse{PublicKeys: []string{authorizedLine(key)}, ProxyAddresses: []string{"proxy.example:3022"}}), nil
}

func (a *authorities) SignHostKey(_ context.Context, req *connect.Request[accessdv1.SignHostKeyRequest]) (*connect.Response[accessdv1.SignHostKeyResponse], error) {
	key, err := keyOn(req.Msg.GetPublicKey())
	if err != nil {
		return nil, err
	}
	cert, err := sshca.MintHost(a.host, sshca.HostRequest{
		Key: key, KeyID: "host:x", Principals: []string{req.Msg.GetNode()}, ValidAfter: time.Now(), ValidBefore: time.Now().Add(time.Hour),
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.SignHostKeyResponse{Certificate: authorizedLine(cert)}), nil
}

func (a *authorities) AddNode(_ context.Context, req *connect.Request[accessdv1.AddNodeRequest]) (*connect.Response[accessdv1.AddNodeResponse], error) {
	a.last = req.Msg
	n := &accessdv1.Node{Name: req.Msg.GetName(), Id: "an-id", Address: req.Msg.GetAddress(), GatewayPort: 20001}
	return connect.NewResponse(&accessdv1.AddNodeResponse{Node: n, Fingerprints: []string{"SHA256:x"}}), nil
}

func authorizedLine(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// desk is a command line in front of a cluster, and what it writes.
type desk struct {
	*env
	authorities

	out, words bytes.Buffer
}

func newDesk() *desk {
	d := &desk{}
	_, d.host = sshca.Generate()
	_, d.sshd = sshca.Generate()
	mux := http.NewServeMux()
	mux.Handle(accessdv1connect.NewCAServiceHandler(&d.authorities, rpc.ServerOptions(nil)...))
	mux.Handle(accessdv1connect.NewNodeServiceHandler(&d.authorities, rpc.ServerOptions(nil)...))
	d.env = &env{
		stdin: strings.NewReader(""), stdout: &d.out, stderr: &d.words,
		call: &proxy.VerbCall{API: rpc.Local(mux, rpc.Peer{Local: true})},
	}
	return d
}

// TestUnitsRunStockSSH: the units dial home and renew with commands that the
// stock client reads as meant.
func TestUnitsRunStockSSH(t *testing.T) {
	d, m := newDesk(), newMachine(t, "") // its host key stands for the node's own
	key := strings.TrimSuffix(m.hostKey, ".pub")
	if err := d.printUnit(t.Context(), "node7", "proxy.example:3022", key); err != nil {
		t.Fatal(err)
	}
	out := d.out.String()
	for _, want := range []string{
		"# " + m.dir + "/known_hosts\n@cert-authority * " + authorizedLine(d.host.PublicKey()) + "\n",
		"# /etc/systemd/system/accessd-node7.service\n", "# /etc/systemd/system/accessd-node7-renew.service\n", "# /etc/systemd/system/accessd-node7-renew.timer\n",
		" -N -T -o ControlMaster=yes -o ControlPath=" + key + ".ctl -o ExitOnForwardFailure=yes -o ServerAliveInterval=15 ", " -R 22:localhost:22 node7@proxy.example\n", "Restart=always\n", "OnCalendar=daily\n",
		"node7@proxy.example join > " + key + "-cert.new && mv " + key + "-cert.new " + key + "-cert.pub'\n",
		"# /etc/systemd/system/accessd-node7-krl.timer\n", " -o ControlPath=" + key + ".ctl node7@proxy.example krl > " + key + ".krl.new && mv " + key + ".krl.new " + key + ".krl'\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the units lack %q:\n%s", want, out)
		}
	}
	_, line, _ := strings.Cut(out, "ExecStart=/usr/bin/ssh ")
	line, _, _ = strings.Cut(line, "\n")
	said, err := exec.Command("ssh", append([]string{"-G"}, strings.Fields(line)...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("this test needs OpenSSH's client: %v\n%s", err, said)
	}
	for _, want := range []string{
		"user node7\n", "hostname proxy.example\n", "port 3022\n", "exitonforwardfailure yes\n", "serveraliveinterval 15\n", "batchmode yes\n",
		"identityfile " + key + "\n", "certificatefile " + key + "-cert.pub\n", "userknownhostsfile " + m.dir + "/known_hosts\n", "remoteforward 22 [localhost]:22\n",
	} {
		if !strings.Contains(string(said), want) {
			t.Errorf("ssh reads the command without %q:\n%s", want, said)
		}
	}
	if !strings.Contains(d.words.String(), "accessd tokens add --names node7") {
		t.Errorf("the words do not say how to join:\n%s", d.words.String())
	}
}

// TestUnitsVerify: systemd has nothing to say about the units, and it would have.
func TestUnitsVerify(t *testing.T) {
	d, dir := newDesk(), t.TempDir()
	if err := d.printUnit(t.Context(), "node7", "proxy.example:3022", ""); err != nil {
		t.Fatal(err)
	}
	var units []string
	for _, file := range strings.Split("\n"+d.out.String(), "\n# /")[1:] {
		path, text, _ := strings.Cut(file, "\n")
		if !strings.HasPrefix(path, "etc/systemd/system/") {
			continue
		}
		unit := filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
		if strings.Contains(text, "Type=oneshot") && !strings.Contains(text, "TimeoutStartSec=") {
			t.Errorf("%s may run for ever", path)
		}
	}
	if len(units) != 5 {
		t.Fatalf("units are %q, want 5", units)
	}
	verify := func() string {
		out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--recursive-errors=no"}, units...)...).CombinedOutput()
		if _, ran := errors.AsType[*exec.ExitError](err); err != nil && !ran {
			t.Fatalf("this test needs systemd-analyze: %v", err)
		}
		return string(out)
	}
	if said := verify(); said != "" {
		t.Errorf("systemd says:\n%s", said)
	}
	text, err := os.ReadFile(units[0])
	if err == nil {
		err = os.WriteFile(units[0], bytes.ReplaceAll(text, []byte("Restart=always"), []byte("Restart=sometimes")), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if said := verify(); !strings.Contains(said, "sometimes") {
		t.Errorf("of a unit that is wrong systemd says %q", said)
	}
}

// TestUnitsTakeNoHostileText: F31. What stands in a unit runs as root.
func TestUnitsTakeNoHostileText(t *testing.T) {
	for _, bad := range []string{"a b", "a;b", "a$(b)", "a`b`", "a'b", "a\nExecStart=/bin/sh", "a%h", "a\"b", "-oProxyCommand=x", "a\\b", "", "fe80::1%a'b"} {
		d := newDesk()
		for name, args := range map[string][3]string{
			"name": {bad, "proxy.example:1", ""}, "proxy": {"node7", bad + ":22", ""}, "port": {"node7", "proxy.example:" + bad, ""}, "key": {"node7", "proxy.example:22", "/etc/" + bad + "/x"},
		} {
			if bad == "" && name == "key" {
				continue // "/etc//x" is refused as well, but is not hostile
			}
			if err := d.printUnit(t.Context(), args[0], args[1], args[2]); !fault.Is(err, fault.BadInput) || d.out.Len() > 0 {
				t.Errorf("%s %q: %v, %q, want bad input and nothing", name, bad, err, d.out.String())
			}
		}
	}
}

func TestNodesAdd(t *testing.T) {
	d := newDesk()
	d.stdin = strings.NewReader("# a comment\nssh-ed25519 AAAA a\n\nssh-rsa BBBB b\n")
	if err := d.addNode(t.Context(), "web-1", nodesAddOptions{address: "h:22", labels: "env=prod", hostKeys: []string{"-"}, format: formatTable}); err != nil {
		t.Fatal(err)
	}
	if got := d.last; got.GetAddress() != "h:22" || got.GetLabels()["env"] != "prod" || len(got.GetHostKeys()) != 2 {
		t.Errorf("the authority was asked %v", got)
	}
	if out := d.out.String(); !strings.Contains(out, "web-1") || !strings.Contains(out, "20001") || !strings.Contains(out, "SHA256:x") || !strings.Contains(out, "an-id") {
		t.Errorf("stdout = %q", out)
	}
	d.stdin = strings.NewReader("# nothing\n")
	if err := d.addNode(t.Context(), "web-1", nodesAddOptions{hostKeys: []string{"-"}}); !fault.Is(err, fault.BadInput) {
		t.Errorf("no key: %v, want bad input", err)
	}
}

// A machine is where sshd's files are.
type machine struct {
	dir, config, hostKey string
	before               map[string]string
}

func newMachine(t *testing.T, config string) *machine {
	t.Helper()
	m := &machine{dir: t.TempDir()}
	m.config, m.hostKey = filepath.Join(m.dir, "sshd_config"), filepath.Join(m.dir, "ssh_host_ed25519_key.pub")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", strings.TrimSuffix(m.hostKey, ".pub")).CombinedOutput(); err != nil {
		t.Fatalf("this test needs OpenSSH: %v\n%s", err, out)
	}
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd's privilege separation directory
			t.Fatal(err)
		}
	}
	m.put(t, "sshd_config", strings.ReplaceAll(config, "DIR", m.dir)+"HostKey "+strings.TrimSuffix(m.hostKey, ".pub")+"\n")
	m.before = m.read(t)
	return m
}

func (m *machine) put(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// read returns every file of the machine.
func (m *machine) read(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(m.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, m.dir+"/")] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// setup returns what the authority's machine prints for this one.
func (m *machine) setup(t *testing.T, d *desk) string {
	t.Helper()
	line, err := os.ReadFile(m.hostKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := d.SignHostKey(t.Context(), connect.NewRequest(&accessdv1.SignHostKeyRequest{Node: "web-1", PublicKey: string(line)}))
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(sshdSetup{
		Node: "web-1", Authority: []string{authorizedLine(d.sshd.PublicKey())}, HostKey: strings.TrimSpace(string(line)), Certificate: cert.Msg.GetCertificate(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// apply runs the verb on the machine.
func (m *machine) apply(t *testing.T, setup string, args ...string) (code int, words string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(t.Context(), append([]string{"nodes", "setup-sshd", "--apply", "--from", "-", "--dir", m.dir}, args...),
		Streams{In: strings.NewReader(setup), Out: &out, Err: &errs})
	return code, errs.String()
}

// effective returns what sshd makes of the configuration.
func (m *machine) effective(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("/usr/sbin/sshd", "-T", "-f", m.config, "-C", "user=x,host=x,addr=127.0.0.1").CombinedOutput()
	if err != nil {
		t.Fatalf("sshd -T: %v\n%s", err, out)
	}
	return string(out)
}

// TestSetupSSHDApplies: with an Include, without, behind a Match, and again:
// sshd trusts the cluster for everybody and shows its certificate, and what else
// was configured stays.
func TestSetupSSHDApplies(t *testing.T) {
	d := newDesk()
	for name, c := range map[string]struct{ config, file string }{
		"with an Include":            {"Include DIR/sshd_config.d/*.conf\nX11Forwarding yes\n", dropInFile},
		"without":                    {"X11Forwarding yes\n", "sshd_config"},
		"an Include behind a Match":  {"X11Forwarding yes\nMatch User nobody\nInclude DIR/sshd_config.d/*.conf\nMatch all\n", "sshd_config"},
		"an Include of other files":  {"Include DIR/other.d/*.conf\nX11Forwarding yes\n", "sshd_config"},
		"in another way of writing":  {"include=\"DIR/sshd_config.d/*.conf\"\nX11Forwarding yes\n", dropInFile},
		"with what is there already": {"X11Forwarding yes\n# begin accessd\nTrustedUserCAKeys DIR/accessd_user_ca.pub\n# end accessd\n", "sshd_config"},
	} {
		m := newMachine(t, c.config)
		for range 2 {
			if code, words := m.apply(t, m.setup(t, d)); code != 0 {
				t.Fatalf("%s: exit code %d: %s", name, code, words)
			}
		}
		got := m.effective(t)
		for _, want := range []string{
			"trustedusercakeys " + m.dir + "/accessd_user_ca.pub\n", "hostcertificate " + m.dir + "/ssh_host_ed25519_key-cert.pub\n", "x11forwarding yes\n",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: sshd -T lacks %q:\n%s", name, want, got)
			}
		}
		files := m.read(t)
		if n := strings.Count(files[c.file], "TrustedUserCAKeys"); n != 1 {
			t.Errorf("%s: %s has %d lines of TrustedUserCAKeys, want 1:\n%s", name, c.file, n, files[c.file])
		}
		if files["accessd_user_ca.pub"] != authorizedLine(d.sshd.PublicKey())+"\n" {
			t.Errorf("%s: the authority's file is %q", name, files["accessd_user_ca.pub"])
		}
		for file := range files {
			if strings.Contains(file, ".accessd-") {
				t.Errorf("%s: %s is left behind", name, file)
			}
		}
	}
}

// TestSetupSSHDRollsBack: when anything is wrong every file is what it was.
func TestSetupSSHDRollsBack(t *testing.T) {
	d := newDesk()
	other := newMachine(t, "")
	for name, c := range map[string]struct {
		config string
		setup  func(m *machine) string
		change func(m *machine)
		says   string
	}{
		"sshd refuses its configuration before": {config: "Nonsense yes\n", says: "sshd refuses"},
		"another line comes first":              {config: "TrustedUserCAKeys none\nInclude DIR/sshd_config.d/*.conf\n", says: "everything is as before"},
		"it trusts somebody else":               {config: "TrustedUserCAKeys DIR/others\n", says: "trusts the authorities"},
		"the key of another machine":            {says: "another machine", setup: func(*machine) string { return other.setup(t, d) }},
		"no JSON":                               {says: "--from", setup: func(*machine) string { return "x" }},
		"a user's certificate": {says: "not one for the host key", setup: func(m *machine) string {
			cert, err := sshca.MintSession(d.sshd, sshca.SessionRequest{
				Key: d.host.PublicKey(), User: "alice", Login: "root", Node: "web-1", Session: "5f0c9b1e-6a3d-4a53-9d5c-0a1c2f7f0e11",
				ValidAfter: time.Now(), ValidBefore: time.Now().Add(time.Hour),
			})
			if err != nil {
				t.Fatal(err)
			}
			var s sshdSetup
			if err := json.Unmarshal([]byte(m.setup(t, d)), &s); err != nil {
				t.Fatal(err)
			}
			s.Certificate = authorizedLine(cert)
			text, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}},
		"a symbolic link in the way": {says: "no regular file", change: func(m *machine) {
			if err := os.Symlink("/etc/passwd", filepath.Join(m.dir, "ssh_host_ed25519_key-cert.pub")); err != nil {
				t.Fatal(err)
			}
		}},
		"a mark without its end": {config: "# begin accessd\nX11Forwarding yes\n", says: "without"},
	} {
		m := newMachine(t, c.config)
		if c.change != nil {
			c.change(m)
			m.before = m.read(t)
		}
		setup := m.setup(t, d)
		if c.setup != nil {
			setup = c.setup(m)
		}
		code, words := m.apply(t, setup)
		if code == 0 || !strings.Contains(words, c.says) {
			t.Errorf("%s: exit code %d, %q, want a failure that says %q", name, code, words, c.says)
		}
		after := m.read(t)
		for file, text := range after {
			if m.before[file] != text {
				t.Errorf("%s: %s changed to %q", name, file, text)
			}
		}
		if len(after) != len(m.before) {
			t.Errorf("%s: files are %d, were %d", name, len(after), len(m.before))
		}
	}
}

// TestSetupSSHDPrints: the files, each under its name, and the line for people
// without root.
func TestSetupSSHDPrints(t *testing.T) {
	d, m := newDesk(), newMachine(t, "")
	line, err := os.ReadFile(m.hostKey)
	if err != nil {
		t.Fatal(err)
	}
	d.stdin = bytes.NewReader(line)
	if err := d.setupSSHD(t.Context(), "web-1", setupOptions{hostKey: "-", login: "root", dir: "/etc/ssh", format: formatTable}); err != nil {
		t.Fatal(err)
	}
	ca := authorizedLine(d.sshd.PublicKey())
	for _, want := range []string{
		"# /etc/ssh/accessd_user_ca.pub\n" + ca + "\n", "# /etc/ssh/ssh_host_ed25519_key-cert.pub\nssh-ed25519-cert-v01@openssh.com ",
		"# /etc/ssh/sshd_config.d/accessd.conf\nTrustedUserCAKeys /etc/ssh/accessd_user_ca.pub\nHostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub\n",
	} {
		if !strings.Contains(d.out.String(), want) {
			t.Errorf("stdout lacks %q:\n%s", want, d.out.String())
		}
	}
	if want := `cert-authority,principals="root" ` + ca; !strings.Contains(d.words.String(), want) {
		t.Errorf("stderr lacks %q:\n%s", want, d.words.String())
	}
	for name, o := range map[string]setupOptions{
		"a relative directory":      {dir: "x", login: "LOGIN"},
		"a blank in the directory":  {dir: "/a b", login: "LOGIN"},
		"a login that is a list":    {dir: "/etc/ssh", login: `root",command="x`},
		"a file and a name":         {dir: "/etc/ssh", login: "LOGIN", from: "-", apply: true},
		"a file and nothing to do":  {dir: "/etc/ssh", login: "LOGIN", from: "-"},
		"a host key that is no key": {dir: "/etc/ssh", login: "LOGIN", hostKey: "-"},
	} {
		if err := d.setupSSHD(t.Context(), "web-1", o); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %v, want bad input", name, err)
		}
	}
}
