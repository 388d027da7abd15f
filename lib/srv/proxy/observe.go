package proxy

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshwire"
)

// observerUser is the SSH user name of who comes to a node to take part in
// another's session; lib/srv has the other end.
const observerUser = "+sessions"

// observation is one person's taking part in another's session.
type observation struct {
	calls *http.Client // as the person
	sid   names.SessionID
	join  bool      // and not only to see
	in    io.Reader // what the person types
}

// observe shows the person a session, which runs where its node says: that node
// decides who may see it, and records it.
func (x *session) observe(ctx context.Context, o observation) error {
	node, login, err := o.place(ctx)
	if err != nil {
		return err
	}
	if x.joinNeedsFactor(node, login) {
		if err := x.obtain(ctx, o.in); err != nil {
			return err
		}
	}
	p, err := x.s.pass(ctx, x.conn, x.who, errand{visit: visit{login: observerUser, place: string(node)}, proof: x.given.proof, observes: true})
	if err != nil {
		return err
	}
	defer p.close()
	far, reqs, err := p.far.OpenChannel(sshwire.ChannelSession, nil)
	if err != nil {
		return p.lost(err)
	}
	defer far.Close()
	if x.pty != nil {
		if _, err := far.SendRequest(sshwire.RequestPTY, true, x.pty.Marshal()); err != nil {
			return p.lost(err)
		}
	}
	name := "watch:" + string(o.sid)
	if o.join {
		name = "join:" + string(o.sid)
	}
	if _, err := far.SendRequest(sshwire.RequestSubsystem, true, sshwire.Subsystem{Name: name}.Marshal()); err != nil {
		return p.lost(err)
	}
	x.work.Go(func() { // ends with the person's channel
		_, _ = relay.Copy(far, o.in)
		_ = far.CloseWrite()
	})
	return x.follow(ctx, p, observed{far, reqs})
}

// observed is the channel on which a session is seen.
type observed struct {
	ssh.Channel
	reqs <-chan *ssh.Request
}

// follow shows what comes until that ends. What the node has to say itself comes
// as extended data.
func (x *session) follow(ctx context.Context, p *passage, far observed) error {
	var words bounded
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = relay.Copy(&words, far.Stderr()) })
	_, _ = relay.Copy(x.ch, far) // whichever end is gone, the status tells
	told, status := false, sshwire.ExitStatus{}
	for r := range far.reqs {
		if s, err := sshwire.ParseExitStatus(r.Payload); err == nil && r.Type == sshwire.RequestExitStatus {
			told, status = true, s
		}
		_ = r.Reply(false, nil)
	}
	wg.Wait()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !told:
		return p.lost(io.ErrUnexpectedEOF)
	case status.Code != 0:
		text := strings.TrimPrefix(plain(strings.TrimSpace(words.String())), "accessd: ")
		err := fault.New(fault.Denied, "%s", cmp.Or(text, "the session cannot be seen"))
		if p.to.node.Kind == services.NodeSSHD {
			return err.WithHint("a session on a plain sshd node is seen at the proxy that it goes through")
		}
		return err
	}
	return nil
}

// place returns the id of the node that the session runs on, and its login there,
// if the person may see that it does.
func (o observation) place(ctx context.Context) (names.NodeID, names.Login, error) {
	client := rpc.Service(o.calls, accessdv1connect.NewSessionServiceClient)
	list, err := unwrap(client.ListSessions(ctx, connect.NewRequest(&accessdv1.ListSessionsRequest{})))
	if err != nil {
		return "", "", err
	}
	for _, s := range list.GetSessions() {
		if s.GetId() == string(o.sid) {
			return names.NodeID(s.GetNodeId()), names.Login(s.GetLogin()), nil
		}
	}
	return "", "", fault.New(fault.NotFound, "no live session with that id that you may see")
}

// lost is what the person reads of a passage that ended, which is why err came.
func (p *passage) lost(err error) error {
	cause := context.Cause(p.ctx)
	if cause != nil && fault.KindOf(cause) != fault.Internal {
		return cause
	}
	return fault.Wrap(fault.Unavailable, err, "the connection to node \""+string(p.to.node.Name)+"\" was lost")
}

// bounded keeps the beginning of what is written.
type bounded struct{ bytes.Buffer }

// Write implements [io.Writer].
func (b *bounded) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), maxWords-min(b.Len(), maxWords))])
	return len(p), nil
}
