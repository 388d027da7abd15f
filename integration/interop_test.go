package integration

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/accessd/accessd/integration/harness"
)

// check is one thing that one client does.
type check struct {
	client string
	name   string
	proves string
	ways   []string // that this client can go; nil means all
	run    func(t *testing.T, x target)
}

// checks returns what every client is put through, in the order of the matrix.
func checks() []check {
	return slices.Concat(sessionChecks(), forwardChecks(), fileChecks(), otherChecks())
}

// Clients that are none of ours, against each kind of node by each way in, and
// against a stock sshd to know that a check itself is right. With
// ACCESSD_INTEROP_DOC set the matrix is written there; ACCESSD_INTEROP_KINDS, a
// comma-separated list, leaves out the other kinds of node.
func TestInterop(t *testing.T) {
	t.Parallel()
	f := newFleet(t, only()...)
	m := &matrix{results: map[string]map[string]string{}}
	t.Cleanup(func() { m.write(t) })
	for _, k := range checks() {
		t.Run(k.client+": "+k.name, func(t *testing.T) {
			t.Parallel()
			for _, x := range f.targets() {
				if x.way != "" && k.ways != nil && !slices.Contains(k.ways, x.way) || x.way == "command" && x.kind != "accessd" && !whole() {
					continue
				}
				t.Run(strings.TrimSpace(strings.ReplaceAll(x.kind, " ", "")+" "+x.way), func(t *testing.T) {
					t.Parallel()
					t.Cleanup(func() { m.record(k, x, !t.Failed()) })
					k.run(t, x)
				})
			}
		})
	}
}

// whole reports whether the whole matrix is wanted. Else what a ProxyCommand does is
// shown at one kind of node: to the proxy it is what a jump does, word for word.
func whole() bool { return os.Getenv("ACCESSD_INTEROP_DOC") != "" }

// only returns the kinds of node that the run is about; nil means all.
func only() []string {
	list := os.Getenv("ACCESSD_INTEROP_KINDS")
	if list == "" {
		return nil
	}
	return slices.DeleteFunc(strings.Split(list, ","), func(kind string) bool { return kinds[kind] == "" })
}

// targets returns the stock sshd and every node by every way.
func (f *fleet) targets() []target {
	all := []target{{fleet: f, kind: stock}}
	for _, kind := range f.kinds {
		for _, way := range ways {
			all = append(all, target{fleet: f, kind: kind, way: way, node: kinds[kind]})
		}
	}
	return all
}

// matrix is what passed, by check and target.
type matrix struct {
	mu      sync.Mutex
	results map[string]map[string]string
}

func (m *matrix) record(k check, x target, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	row := m.results[k.client+k.name]
	if row == nil {
		row = map[string]string{}
		m.results[k.client+k.name] = row
	}
	row[x.kind+" "+x.way] = map[bool]string{true: "yes", false: "**no**"}[ok]
}

// preamble stands above the matrix.
const preamble = `# Interoperability

Written by ` + "`make interop`" + `; each cell is a test of its own (` + "`go test ./integration -run 'TestInterop/CLIENT.*/NODE WAY'`" + `).

- **stock** is Debian's sshd beside the cluster: it shows that the check itself is right.
- **accessd** is our node behind its reverse tunnel, **sshd** a plain sshd that the proxy reaches at an address, **ssh -R** a plain
  sshd whose machine joined and dials home with the stock client.
- **J** is ` + "`ssh -J alice@proxy login@node`, **W** a `ProxyCommand` of `ssh -W %h:%p proxy`, **@** `ssh login@node@proxy`" + `.
- Empty: the client cannot go that way (it knows no certificates, or no way to run a command for its transport).

`

// write writes the document, where one was asked for.
func (m *matrix) write(t *testing.T) {
	t.Helper()
	path := os.Getenv("ACCESSD_INTEROP_DOC")
	if path == "" {
		return
	}
	var b strings.Builder
	b.WriteString(preamble)
	b.WriteString("## Clients\n\n| client | version |\n|---|---|\n")
	for _, c := range versions(t) {
		fmt.Fprintf(&b, "| %s | %s |\n", c[0], c[1])
	}
	b.WriteString("\n## Matrix\n\n| client | check | what it proves | stock | accessd J | W | @ | sshd J | W | @ | ssh -R J | W | @ |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	passed, all := 0, 0
	for _, k := range checks() {
		row := m.results[k.client+k.name]
		fmt.Fprintf(&b, "| %s | %s | %s | %s |", k.client, k.name, k.proves, row[stock+" "])
		for _, kind := range []string{"accessd", "sshd", "ssh -R"} {
			for _, way := range ways {
				fmt.Fprintf(&b, " %s |", row[kind+" "+way])
			}
		}
		b.WriteString("\n")
		for _, cell := range row {
			all++
			if cell == "yes" {
				passed++
			}
		}
	}
	fmt.Fprintf(&b, "\n%d of %d passed.\n", passed, all)
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Error(err)
	}
}

// versions returns what each client calls itself.
func versions(t *testing.T) [][2]string {
	t.Helper()
	first := func(name string, args ...string) string {
		out, _ := exec.Command(name, args...).CombinedOutput()
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return strings.TrimSpace(line)
	}
	debian := func(name string) string {
		r := harness.Run(t, nil, "dpkg-query", "-W", "-f", "${Version}", name)
		return strings.TrimSpace(r.Stdout)
	}
	return [][2]string{
		{"OpenSSH (ssh, scp, sftp, sshd)", first("ssh", "-V")},
		{"rsync", debian("rsync")},
		{"git", debian("git")},
		{"sshfs", debian("sshfs")},
		{"ansible-core", debian("ansible-core")},
		{"lftp", debian("lftp")},
		{"curl with libssh2", first("curl", "--version")},
		{"dropbear's dbclient", debian("dropbear-bin")},
		{"PuTTY's plink and psftp", debian("putty-tools")},
		{"paramiko", debian("python3-paramiko")},
		{"asyncssh", debian("python3-asyncssh")},
		{"npm's ssh2", "1.16.0 on node " + first("node", "--version")},
	}
}
