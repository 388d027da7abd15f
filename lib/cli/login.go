package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// A person's own machine has the key, its certificate and whom to trust in one
// directory; the names are those that "ssh-config" takes too.
const (
	clientDir      = ".accessd"
	clientIdentity = "id_ed25519"
	clientHosts    = "accessd_known_hosts"
	// keyComment marks a key that login made, which logout may remove.
	keyComment = "accessd login"
	// proxyPort is where a proxy listens unless its address says otherwise.
	proxyPort = "3022"
	// maxCertificate bounds what a proxy hands out, in bytes.
	maxCertificate = 64 << 10
	// dialTimeout bounds the way to the proxy, until it asks the first question.
	dialTimeout = 15 * time.Second
)

type loginOptions struct {
	proxy, user, connector, identity string
	pins                             []string
	headless                         bool

	token    string // file for an API token
	tokenTTL time.Duration
}

func loginCommand(e *env) *cobra.Command {
	var o loginOptions
	c := &cobra.Command{
		Use:   "login --proxy HOST[:PORT] [--user NAME]",
		Short: "Sign in at a proxy and keep the certificate",
		Long: "Sign in at a proxy and keep the certificate beside the key, which is made when\n" +
			"there is none. Where the cluster has connectors the browser opens; on a machine\n" +
			"without one a link and a code are shown, for a browser anywhere. The proxy must\n" +
			"show a host certificate of the cluster: give its pin the first time.",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error { return e.login(ctx, o) }),
	}
	c.Flags().StringVar(&o.proxy, "proxy", "", "host[:port] of the proxy (default $ACCESSD_PROXY)")
	c.Flags().StringVar(&o.user, "user", "", "who to sign in as (default the name on this machine)")
	c.Flags().StringVar(&o.connector, "connector", "", "where to sign in, when the cluster has several connectors")
	c.Flags().StringSliceVar(&o.pins, "ca-pin", nil, "pin of the cluster's host CA, as \"accessd ca pin\" prints it")
	c.Flags().BoolVar(&o.headless, "headless", false, "show a link and a code instead of opening a browser")
	c.Flags().StringVar(&o.token, "api-token", "", "also make a token for calls over HTTPS and keep it in this file")
	c.Flags().DurationVar(&o.tokenTTL, "api-token-ttl", time.Hour, "how long that may be used")
	identityFlag(c, &o.identity)
	return c
}

func identityFlag(c *cobra.Command, identity *string) {
	c.Flags().StringVar(identity, "identity", "", "private key file (default ~/"+clientDir+"/"+clientIdentity+")")
}

// identityPath returns the file of the private key.
func identityPath(flag string) (string, error) {
	if flag != "" {
		return filepath.Abs(flag)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fault.New(fault.BadInput, "there is no home directory: %w", err).WithHint("name the key with --identity FILE")
	}
	return filepath.Join(home, clientDir, clientIdentity), nil
}

func (e *env) login(ctx context.Context, o loginOptions) error {
	identity, err := identityPath(o.identity)
	if err != nil {
		return err
	}
	o.proxy = cmp.Or(o.proxy, os.Getenv("ACCESSD_PROXY"))
	if o.proxy == "" {
		return fault.New(fault.BadInput, "--proxy: which one?").WithHint("give --proxy HOST[:PORT], or set ACCESSD_PROXY")
	}
	if _, _, err := net.SplitHostPort(o.proxy); err != nil {
		o.proxy = net.JoinHostPort(o.proxy, proxyPort)
	}
	o.user = cmp.Or(o.user, os.Getenv("USER"), os.Getenv("USERNAME"))
	if _, err := names.ParseUserName(o.user); err != nil {
		return fault.New(fault.BadInput, "--user: %w", err)
	}
	key, err := ensureKey(identity)
	if err != nil {
		return err
	}
	s := &signingIn{env: e, loginOptions: o, hosts: filepath.Join(filepath.Dir(identity), clientHosts)}
	defer s.close()
	line, err := s.run(ctx, key)
	if err != nil {
		return err
	}
	cert, err := certificateFor(line, key.PublicKey())
	if err != nil {
		return err
	}
	if err := writeFile(identity+"-cert.pub", line, 0o600); err != nil {
		return err
	}
	e.say("signed in as %s until %s", cert.KeyId, certEnd(cert).Local().Format(time.DateTime))
	e.say("the certificate is in %s-cert.pub", identity)
	if o.token != "" {
		return s.keepAPIToken(ctx, key, cert)
	}
	return nil
}

// ensureKey returns the private key in a file, which is made when it is not
// there.
func ensureKey(path string) (ssh.Signer, error) {
	data, err := readBounded(path, maxKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return nil, err
	}
	key, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return nil, fault.New(fault.BadInput, "private key %q: %w", path, err).WithHint("name another with --identity FILE")
	}
	return key, nil
}

func makeKey(path string) (ssh.Signer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fault.New(fault.BadInput, "make the directory of the key: %w", err)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, keyComment)
	if err != nil {
		return nil, err
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, err
	}
	if err := writeFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	public := bytes.TrimSpace(ssh.MarshalAuthorizedKey(key.PublicKey()))
	return key, writeFile(path+".pub", append(public, " "+keyComment+"\n"...), 0o644)
}

// certificateFor reads the certificate that a proxy handed out for key.
func certificateFor(line []byte, key ssh.PublicKey) (*ssh.Certificate, error) {
	parsed, _, _, _, err := ssh.ParseAuthorizedKey(line) //nolint:dogsled // its shape
	if err != nil {
		return nil, fault.New(fault.Internal, "the proxy handed out no certificate: %w", err)
	}
	cert, ok := parsed.(*ssh.Certificate)
	if !ok || !bytes.Equal(cert.Key.Marshal(), key.Marshal()) {
		return nil, fault.New(fault.Internal, "the proxy handed out a certificate for another key")
	}
	return cert, nil
}

func certEnd(c *ssh.Certificate) time.Time { return time.Unix(int64(c.ValidBefore), 0) }

// signingIn is one sign-in at a proxy.
type signingIn struct {
	*env
	loginOptions

	hosts   string // known_hosts file of the cluster
	browser *loopback
	offered bool // single sign-on was, and is used up
}

func (s *signingIn) close() {
	if s.browser != nil {
		s.browser.close()
	}
}

// run signs in with key and returns the certificate's line.
func (s *signingIn) run(ctx context.Context, key ssh.Signer) ([]byte, error) {
	check, learned, err := s.hostKeys()
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	dctx, stop := context.WithTimeout(ctx, dialTimeout)
	defer stop()
	raw, err := d.DialContext(dctx, "tcp", s.proxy)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, fmt.Sprintf("cannot connect to %q", s.proxy))
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	var refused error
	conn, channels, requests, err := ssh.NewClientConn(raw, s.proxy, &ssh.ClientConfig{
		User: s.user,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(key), ssh.KeyboardInteractive(func(_, instruction string, questions []string, echos []bool) ([]string, error) {
			return s.answer(ctx, instruction, questions, echos)
		})},
		HostKeyCallback: func(host string, remote net.Addr, key ssh.PublicKey) error {
			refused = check(host, remote, key)
			return refused
		},
		HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01},
		BannerCallback:    func(text string) error { return s.banner(text) },
	})
	switch {
	case ctx.Err() != nil:
		return nil, fault.New(fault.Unavailable, "the sign-in was given up")
	case refused != nil:
		return nil, fault.Wrap(fault.Denied, refused, "the proxy is not one of the cluster").WithHint("compare --ca-pin with \"accessd ca pin\" on the cluster")
	case err != nil:
		return nil, fault.Wrap(fault.Denied, err, "the proxy did not let you sign in")
	}
	client := ssh.NewClient(conn, channels, requests)
	defer client.Close()
	if err := learned(); err != nil {
		return nil, err
	}
	return fetch(client)
}

// fetch takes the certificate of the sign-in from the proxy.
func fetch(client *ssh.Client) ([]byte, error) {
	session, err := client.NewSession()
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the proxy opens no session")
	}
	defer func() { _ = session.Close() }() // the remote end has closed it
	var out bytes.Buffer
	session.Stdout = &limitedWriter{&out, maxCertificate}
	if err := session.Run("login"); err != nil {
		return nil, fault.Wrap(fault.Denied, err, "the proxy hands out no certificate")
	}
	return out.Bytes(), nil
}

// limitedWriter takes so many bytes.
type limitedWriter struct {
	to   io.Writer
	left int
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errors.New("the proxy sent too much")
	}
	return w.to.Write(p)
}

// hostKeys returns what checks the proxy's host key, and what keeps the
// authority that a pin named for the next time.
func (s *signingIn) hostKeys() (check ssh.HostKeyCallback, learned func() error, err error) {
	if len(s.pins) > 0 {
		for _, p := range s.pins {
			if _, err := sshca.ParsePin(p); err != nil {
				return nil, nil, err
			}
		}
		var ca ssh.PublicKey
		check = sshca.PinnedHostKeyCallback(s.pins, time.Now, func(found ssh.PublicKey) { ca = found })
		return check, func() error { return s.trust(ca) }, nil
	}
	known, err := readBounded(s.hosts, maxKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fault.New(fault.BadInput, "the cluster is not known on this machine").
			WithHint("give --ca-pin, which \"accessd ca pin\" prints on the cluster")
	}
	if err != nil {
		return nil, nil, err
	}
	t := sshca.Trust{}
	for len(known) > 0 {
		marker, _, key, _, rest, err := ssh.ParseKnownHosts(known)
		if err != nil {
			break
		}
		known = rest
		if marker == "cert-authority" {
			t.Host = append(t.Host, key)
		}
	}
	host, _, err := net.SplitHostPort(s.proxy)
	if err != nil {
		return nil, nil, fault.New(fault.BadInput, "--proxy: %w", err)
	}
	return t.HostKeyCallback(host, time.Now), func() error { return nil }, nil
}

// trust keeps the cluster's host authority, so that no pin is needed again.
func (s *signingIn) trust(ca ssh.PublicKey) error {
	line := "@cert-authority * " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca))) + "\n"
	known, err := readBounded(s.hosts, maxKeyFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bytes.Contains(known, []byte(line)) {
		return nil
	}
	return writeFile(s.hosts, append(known, line...), 0o644)
}

// banner shows words of the proxy, which are not to be trusted with a terminal.
func (s *signingIn) banner(text string) error {
	for line := range strings.Lines(text) {
		s.say("%s", events.Display(strings.TrimRight(line, "\r\n")))
	}
	return nil
}

// answer answers one round of the proxy's questions. Single sign-on is answered
// here where it is offered; whatever else is asked is the person's to answer.
func (s *signingIn) answer(ctx context.Context, instruction string, questions []string, echos []bool) ([]string, error) {
	switch {
	case len(questions) == 1 && !s.offered && strings.Contains(questions[0], "single sign-on"):
		s.offered = true
		return s.signOn(ctx)
	case len(questions) == 1 && !s.offered && strings.Contains(questions[0], "(empty: passkey)"):
		s.offered = true // who signs in with a password types it
		if a, err := s.ask(questions[0], echos[0]); a != "" || err != nil {
			return []string{a}, err
		}
		return s.signOn(ctx)
	case len(questions) == 1 && s.browser != nil && strings.HasPrefix(questions[0], "Receipt"):
		return s.browser.visit(ctx, s.env, strings.TrimSpace(instruction))
	}
	if instruction != "" {
		_ = s.banner(instruction) // has no error
	}
	var out []string
	for i, q := range questions {
		a, err := s.ask(q, echos[i])
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// signOn asks for single sign-on: with a browser here, where there is one.
func (s *signingIn) signOn(ctx context.Context) ([]string, error) {
	want := "sso:" + s.connector
	if s.headless || browserCommand() == nil {
		return []string{want}, nil
	}
	var err error
	if s.browser, err = listenLoopback(ctx); err != nil {
		return nil, err
	}
	return []string{want + " " + s.browser.url() + " " + s.browser.challenge()}, nil
}

// ask asks the person at the terminal.
func (s *signingIn) ask(question string, echo bool) (string, error) {
	_, _ = fmt.Fprint(s.stderr, events.Display(question)) // who cannot read it does not answer
	if f, ok := s.stdin.(*os.File); ok && !echo && term.IsTerminal(int(f.Fd())) {
		secret, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(s.stderr)
		return string(secret), err
	}
	line, err := bufio.NewReader(io.LimitReader(s.stdin, maxCertificate)).ReadString('\n')
	if err != nil && line == "" {
		return "", fault.New(fault.BadInput, "nobody answers the question").WithHint("run it in a terminal")
	}
	return strings.TrimRight(line, "\r\n"), nil
}
