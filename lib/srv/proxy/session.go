package proxy

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv/sshserver"
	"github.com/accessd/accessd/lib/sshwire"
)

// The commands that this package runs itself.
const (
	loginVerb = "login"
	renewVerb = "renew" // of bots
	menuVerb  = "menu"  // on a terminal; the same as no command
)

// session is one session channel that ends here. It runs a verb or tells why not.
type session struct {
	s    *Server
	conn *sshserver.Conn
	who  *person // nil of nodes
	ch   ssh.Channel
	reqs <-chan *ssh.Request
	work sync.WaitGroup // ends with the channel

	given factor // for the connection, on this channel

	pty   *sshwire.PtyRequest // the client's terminal, which is raw: lines end in CR LF; nil for none
	env   []sshwire.Env       // for the node that a menu leads to
	agent bool                // the client offers its agent
}

// maxEnv bounds the variables that are kept for a node.
const maxEnv = 32

// serveSession serves one session channel.
func (s *Server) serveSession(c *sshserver.Conn, nc ssh.NewChannel) {
	switch v := c.Value.(type) {
	case *person:
		if v.visitor != nil {
			s.serveVisitor(c, v, nc)
			return
		}
		if v.usage.opens.Wait(c.Context()) == nil { // else the connection has ended
			x := &session{s: s, conn: c, who: v}
			x.serve(nc, x.run)
		}
		return
	case *newcomer:
		x := &session{s: s, conn: c}
		x.serve(nc, x.joined(v.signed.certificate))
		return
	case *member:
		if v.stock {
			x := &session{s: s, conn: c}
			x.serve(nc, x.renewed(v))
			return
		}
	}
	refuse(nc, errPeopleOnly)
}

// serve runs what the first request asks for that starts something; run answers
// it and returns the exit code.
func (x *session) serve(nc ssh.NewChannel, run func(ctx context.Context, r *ssh.Request) int) {
	var err error
	if x.ch, x.reqs, err = nc.Accept(); err != nil {
		return
	}
	defer x.work.Wait()
	for r := range x.reqs {
		if x.starts(r) {
			x.exit(run(x.conn.Context(), r))
			return
		}
	}
}

// ignoreInput reads what nothing here does.
func (x *session) ignoreInput() {
	x.work.Go(func() { discard(x.ch) })
}

// starts answers the request r and reports whether it was the one that starts
// something; those are answered by run.
func (x *session) starts(r *ssh.Request) bool {
	ok := false
	switch r.Type {
	case sshwire.RequestExec, sshwire.RequestShell, sshwire.RequestSubsystem:
		return true
	case sshwire.RequestPTY:
		if pty, err := sshwire.ParsePtyRequest(r.Payload); err == nil {
			ok, x.pty = true, &pty
		}
	case sshwire.RequestEnv:
		// Nothing here has an environment, and so the answer is no.
		if v, err := sshwire.ParseEnv(r.Payload); err == nil && len(x.env) < maxEnv {
			x.env = append(x.env, v)
		}
	case sshwire.RequestAgent:
		// It is of use to put a new certificate into, to sign, and on nodes.
		x.agent = true
		ok = x.who != nil
	}
	_ = r.Reply(ok, nil)
	return false
}

// run does what r asks for and returns the exit code. Every request is granted:
// of one that is refused, stock ssh does not say why.
func (x *session) run(ctx context.Context, r *ssh.Request) int {
	_ = r.Reply(true, nil)
	switch r.Type {
	case sshwire.RequestShell:
		return x.shell(ctx)
	case sshwire.RequestSubsystem:
		return x.misuse(ctx, wanted{kind: r.Type}, "the proxy has no subsystems")
	}
	cmd, err := sshwire.ParseExec(r.Payload)
	if err != nil {
		return x.fail(err)
	}
	return x.exec(ctx, cmd.Command)
}

// shell is what there is in place of one: the menu, or without a terminal the
// help text.
func (x *session) shell(ctx context.Context) int {
	switch {
	case x.s.cfg.Verbs == nil || x.who.signed != nil:
		return x.misuse(ctx, wanted{kind: sshwire.RequestShell}, "the proxy has no shell")
	case x.pty == nil:
		return x.verb(ctx, nil)
	}
	return x.menu(ctx, false)
}

// exec runs command, which is a verb.
func (x *session) exec(ctx context.Context, command string) int {
	args, err := splitWords(command)
	verbs := x.s.cfg.Verbs != nil && x.who.signed == nil
	switch {
	case err != nil && verbs:
		return x.misuse(ctx, wanted{sshwire.RequestExec, command}, fault.Public(err))
	case err == nil && slices.Equal(args, []string{loginVerb}):
		return x.login(ctx, x.agent)
	case err == nil && slices.Equal(args, []string{loginVerb, "--print"}):
		return x.login(ctx, false)
	case err == nil && x.who.cert != "" && slices.Equal(args, []string{renewVerb}):
		return x.renewBot(ctx)
	case verbs && x.pty != nil && slices.Equal(args, []string{menuVerb}):
		return x.menu(ctx, false)
	case verbs && x.pty != nil && slices.Equal(args, []string{menuVerb, "--plain"}):
		return x.menu(ctx, true)
	case verbs:
		return x.verb(ctx, args)
	}
	return x.misuse(ctx, wanted{sshwire.RequestExec, command}, "the proxy does not run "+quote(command))
}

// login hands out what the sign-in gave.
func (x *session) login(ctx context.Context, toAgent bool) int {
	x.ignoreInput()
	if x.who.signed == nil {
		return x.fail(x.stillValid())
	}
	give := x.print
	if toAgent {
		give = x.push
	}
	if err := give(ctx, x.who.signed); err != nil {
		return x.fail(err)
	}
	return 0
}

// misuse refuses what the proxy does not do, records it, lists what there is to
// do, and returns the exit code.
func (x *session) misuse(ctx context.Context, w wanted, what string) int {
	x.ignoreInput()
	err := error(fault.New(fault.BadInput, "%s", what).WithHint("%s", help))
	if aerr := x.s.audit.misused(ctx, x.conn, w, err); aerr != nil {
		err = aerr
	}
	return x.fail(err)
}

// stillValid refuses to sign in a person whose certificate let them in: it can
// not be the reason for a newer one.
func (x *session) stillValid() error {
	return fault.New(fault.Conflict, "you are signed in: your certificate is valid until %s", moment(x.conn.Identity.ValidBefore)).
		WithHint("to sign in anew before that, put the certificate away (rm KEY-cert.pub, ssh-add -d)")
}

// print writes the certificate of the sign-in to standard output.
func (x *session) print(_ context.Context, signed *signedIn) error {
	if _, err := io.WriteString(x.ch, x.lines(certificateLine(signed.certificate))); err != nil {
		return err
	}
	x.say("accessd: signed in as %s; this certificate for key %s is valid until %s\n",
		signed.identity.User, ssh.FingerprintSHA256(signed.certificate.Key), moment(end(signed.certificate)))
	x.sayRequests(signed)
	return nil
}

// sayRequests says why a certificate ends sooner than others.
func (x *session) sayRequests(signed *signedIn) {
	for _, id := range signed.identity.Requests {
		x.say("accessd: it has what access request %s gives, and ends with it\n", id)
	}
}

// fail tells err in the form of the command line and returns its exit code.
func (x *session) fail(err error) int {
	x.say("accessd: error: %s\n", fault.Public(err))
	if hint := fault.Hint(err); hint != "" {
		x.say("accessd: hint: %s\n", hint)
	}
	if fault.Is(err, fault.Internal) {
		x.s.log.Error("session at the proxy", zap.String("user", x.conn.User()), zap.Error(err))
	}
	return fault.KindOf(err).ExitCode()
}

// say writes words, which go to standard error.
func (x *session) say(format string, args ...any) {
	_, _ = io.WriteString(x.ch.Stderr(), x.lines(fmt.Sprintf(format, args...)))
}

// lines gives text the line ends of the client's terminal.
func (x *session) lines(text string) string {
	if x.pty != nil {
		return strings.ReplaceAll(text, "\n", "\r\n")
	}
	return text
}

// exit ends the session. The status goes before the end of the data: some
// clients stop reading there (RFC 4254, section 6.10).
func (x *session) exit(code int) {
	_, _ = x.ch.SendRequest(sshwire.RequestExitStatus, false, sshwire.ExitStatus{Code: uint32(code)}.Marshal())
	_ = x.ch.Close()
}

// help is what there is to do here.
const help = `there is
  ssh LOGIN@NODE@PROXY                    to log in to a node
  ssh -J USER@PROXY LOGIN@NODE            the same, without the proxy reading along
  ssh USER@PROXY login > KEY-cert.pub     to sign in and get a certificate
  ssh -A USER@PROXY login                 the same, into your agent`

// end returns when cert ends.
func end(cert *ssh.Certificate) time.Time {
	return time.Unix(int64(cert.ValidBefore), 0)
}

// moment writes t as people read it.
func moment(t time.Time) string { return t.UTC().Format(time.DateTime + " MST") }
