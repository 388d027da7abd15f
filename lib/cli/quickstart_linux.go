package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/config"
	"github.com/accessd/accessd/lib/daemon"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// quickstartListen is tried first; when somebody has it, a free port is taken.
const quickstartListen = "127.0.0.1:3022"

// quickstart is a cluster with a node and one person, for a first look.
type quickstart struct {
	e       *env
	cfg     *config.Config
	person  string // in the cluster
	account string // on this machine
	client  string // directory of the person's files
}

func quickstartCommand(e *env) *cobra.Command {
	var listen, logLevel string
	c := &cobra.Command{
		Use:   "quickstart [-- COMMAND]",
		Short: "A cluster, a node and a user on this machine, then the ssh line to type",
		Long: "Run a whole cluster in one process: authority, proxy, and a node that dials home\n" +
			"over a reverse tunnel; with a user named after you, a key and a certificate.\n" +
			"Ctrl-C ends it, the next start resumes it.\n\n" +
			"With -- COMMAND the stock ssh client runs COMMAND on the node through all of it;\n" +
			"its output and the audit events it caused are printed, and its exit status is yours.",
		RunE: verb(func(ctx context.Context, args []string) error {
			q, err := newQuickstart(e, listen, logLevel)
			if err != nil {
				return err
			}
			return q.run(ctx, args)
		}),
	}
	c.Flags().StringVar(&listen, "listen", "", "address to listen on (default "+quickstartListen+")")
	c.Flags().StringVar(&logLevel, "log-level", "warn", "debug, info, warn or error")
	return c
}

func newQuickstart(e *env, listen, logLevel string) (*quickstart, error) {
	if e.dataDir == "" {
		dir, err := stateDir()
		if err != nil {
			return nil, err
		}
		e.dataDir = dir
	}
	me, err := user.Current()
	if err != nil {
		return nil, fault.New(fault.BadInput, "look up this account: %w", err)
	}
	person := "me"
	if name, err := names.ParseUserName(me.Username); err == nil {
		person = string(name)
	}
	if listen == "" {
		listen = freeAddress(quickstartListen)
	}
	cfg := &config.Config{DataDir: e.dataDir, Listen: listen, Log: config.Log{Level: logLevel}}
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	e.dataDir = cfg.DataDir
	return &quickstart{e: e, cfg: cfg, person: person, account: me.Username, client: filepath.Join(cfg.DataDir, "client")}, nil
}

// stateDir returns where a quickstart keeps its cluster (XDG base directories).
func stateDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "accessd", "quickstart"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fault.New(fault.BadInput, "find your home directory: %w", err).WithHint("name a directory with --data-dir")
	}
	return filepath.Join(home, ".local", "state", "accessd", "quickstart"), nil
}

// freeAddress returns want, or the same host with a port that is free, when
// somebody else listens there.
func freeAddress(want string) string {
	ln, err := net.Listen("tcp", want) //nolint:noctx // asks the kernel, not the network
	if err != nil {
		host, _, _ := net.SplitHostPort(want) // a constant
		return net.JoinHostPort(host, "0")
	}
	ln.Close()
	return want
}

// errDone ends a quickstart whose command has ended.
var errDone = errors.New("the command has ended")

func (q *quickstart) run(ctx context.Context, command []string) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP) // the terminal is gone
	defer stop()
	d, err := daemon.New(q.cfg, daemon.Options{Stderr: q.e.stderr, Verbs: RunAs})
	if err != nil {
		return err
	}
	code := 0
	err = serve(ctx, d, func(ctx context.Context) error {
		node, err := q.prepare(ctx, d)
		if err != nil {
			return err
		}
		if len(command) == 0 {
			return q.tell(d, node)
		}
		if code, err = q.command(ctx, node, command); err != nil {
			return err
		}
		return errDone
	})
	if err != nil && !errors.Is(err, errDone) {
		return err
	}
	if code != 0 {
		return exitError{code}
	}
	return nil
}

// prepare makes the person, their key, certificate and ssh_config.
func (q *quickstart) prepare(ctx context.Context, d *daemon.Daemon) (node string, err error) {
	_, err = q.e.users().AddUser(ctx, connect.NewRequest(&accessdv1.AddUserRequest{Name: q.person, Roles: []string{"access", "auditor"}, Logins: []string{q.account}}))
	if err != nil && !fault.Is(err, fault.Conflict) {
		return "", err
	}
	if err := os.MkdirAll(q.client, 0o700); err != nil {
		return "", fault.New(fault.BadInput, "make client directory: %w", err)
	}
	key := filepath.Join(q.client, "id_ed25519")
	public, err := clientKey(key)
	if err != nil {
		return "", err
	}
	res, err := q.e.users().SignUser(ctx, connect.NewRequest(&accessdv1.SignUserRequest{Name: q.person, PublicKey: public}))
	if err != nil {
		return "", err
	}
	if err := writeFile(key+"-cert.pub", []byte(strings.TrimSpace(res.Msg.GetCertificate())+"\n"), 0o644); err != nil {
		return "", err
	}
	return d.NodeName(), q.writeSSHConfig(ctx, key, d.Addr())
}

// clientKey returns the public half of the key at path, which it makes when
// there is none.
func clientKey(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = makeClientKey(path)
	}
	if err != nil {
		return "", fault.New(fault.BadInput, "client key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return "", fault.New(fault.BadInput, "client key %q: %w", path, err)
	}
	public := ssh.MarshalAuthorizedKey(signer.PublicKey())
	return string(public), writeFile(path+".pub", public, 0o644)
}

func makeClientKey(path string) ([]byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "accessd quickstart")
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(block)
	return text, writeFile(path, text, 0o600)
}

func (q *quickstart) configFile() string { return filepath.Join(q.client, "ssh_config") }

// writeSSHConfig does what "accessd ssh-config" does, into a file.
func (q *quickstart) writeSSHConfig(ctx context.Context, key, proxy string) error {
	var text strings.Builder
	to := *q.e
	to.stdout = &text
	err := to.sshConfig(ctx, sshConfigOptions{identity: key, proxy: proxy, login: q.account, knownHosts: filepath.Join(q.client, "known_hosts")})
	if err != nil {
		return err
	}
	return writeFile(q.configFile(), []byte(text.String()), 0o644)
}

// tell prints what to type in a second terminal.
func (q *quickstart) tell(d *daemon.Daemon, node string) error {
	self, err := os.Executable()
	if err != nil {
		self = "accessd"
	}
	_, err = fmt.Fprintf(q.e.stdout, `ready %[1]s

In a second terminal:
  ssh -F %[2]s %[3]s
  ssh -F %[2]s -J accessd-proxy %[4]s@%[3]s uptime
  ssh -F %[2]s accessd-proxy
  %[5]s --data-dir %[6]s audit tail

Ctrl-C ends it; the next start resumes the same cluster.
`, d.Status(), q.configFile(), node, q.account, self, q.cfg.DataDir)
	return err
}

// command runs the stock client and prints the events it caused.
func (q *quickstart) command(ctx context.Context, node string, command []string) (int, error) {
	began := time.Now()
	ssh := exec.CommandContext(ctx, "ssh", append([]string{"-F", q.configFile(), node, "--"}, command...)...) //nolint:gosec // the caller's own command
	ssh.Stdin, ssh.Stdout, ssh.Stderr = q.e.stdin, q.e.stdout, q.e.stderr
	err := ssh.Run()
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		return 0, fault.New(fault.Unavailable, "run the stock ssh client: %w", err)
	}
	found, err := q.events(ctx, began)
	if err != nil {
		return 0, err
	}
	return code, q.e.printEvents(found, formatTable)
}

// settle is how long a session's last event may take to reach the log.
const settle = 5 * time.Second

// events returns what the person did since began, once every session that began
// has ended.
func (q *quickstart) events(ctx context.Context, began time.Time) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	filter := &accessdv1.EventFilter{Since: timestamppb.New(began), User: q.person}
	for tick := time.NewTicker(settle / 100); ; {
		found, err := q.e.listEvents(ctx, filter, &auditPage{limit: 1000})
		if err != nil || count(found, events.SessionStart) <= count(found, events.SessionEnd) {
			tick.Stop()
			return found, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return found, nil
		}
	}
}

// count returns how many of list are events of the given name.
func count(list [][]byte, name events.Name) int {
	n := 0
	for _, b := range list {
		if ev, err := events.ParseEvent(b); err == nil && ev.Name == name {
			n++
		}
	}
	return n
}
