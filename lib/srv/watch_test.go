package srv

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/authz"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshwire"
)

// observe returns a client of an observer called user.
func (w *world) observe(user names.UserName) *ssh.Client {
	w.t.Helper()
	here, there := memoryPipe()
	_, hostKey := sshca.Generate()
	id := identity(time.Now().Add(time.Hour))
	id.User = user
	w.wg.Go(func() { w.serveObserver(there, id, hostKey) })
	conn, channels, requests, err := ssh.NewClientConn(here, "pipe", &ssh.ClientConfig{
		User: ObserverUser, HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:forbidigo // both ends are the test
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return ssh.NewClient(conn, channels, requests)
}

func (w *world) serveObserver(conn net.Conn, id *sshca.Identity, hostKey ssh.Signer) {
	server := &ssh.ServerConfig{NoClientAuth: true}
	server.AddHostKey(hostKey)
	_, channels, requests, err := ssh.NewServerConn(conn, server)
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	w.wg.Go(func() { ssh.DiscardRequests(requests) })
	o := w.manager.Observe(ClientConfig{Identity: id, ID: "c-2"})
	for nc := range channels {
		w.wg.Go(func() { o.Session(ctx, nc) })
	}
}

// attendance is a session that an observer takes part in.
type attendance struct {
	ssh.Channel

	stdout, stderr output
	ended          chan uint32 // its exit status
}

// attend asks for subsystem.
func attend(t *testing.T, c *ssh.Client, subsystem string) *attendance {
	t.Helper()
	ch, requests, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	a := &attendance{Channel: ch, ended: make(chan uint32, 1)}
	ok, err := ch.SendRequest("subsystem", true, text(subsystem))
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	var streams sync.WaitGroup
	streams.Go(func() { _, _ = io.Copy(&a.stdout, ch) })
	streams.Go(func() { _, _ = io.Copy(&a.stderr, ch.Stderr()) })
	go func() {
		code := uint32(1000)
		for r := range requests {
			if x, err := sshwire.ParseExitStatus(r.Payload); err == nil {
				code = x.Code
			}
		}
		streams.Wait()
		a.ended <- code
	}()
	return a
}

func TestWatchAndJoin(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		r := w.start(x, c)
		sid := string(w.manager.List()[0].ID)
		_, _ = io.WriteString(r.process.stdout, "before\n")
		watcher, joiner := w.observe("bob"), w.observe("carol")
		defer watcher.Close()
		defer joiner.Close()
		synctest.Wait()
		watching := attend(w.t, watcher, "watch:"+sid)
		synctest.Wait()
		joining := attend(w.t, joiner, "join:"+sid)
		synctest.Wait()
		_, _ = io.WriteString(r.process.stdout, "after\n")
		_, _ = io.WriteString(joining, "typed")
		var got [5]byte
		if _, err := io.ReadFull(r.process.stdin, got[:]); err != nil || string(got[:]) != "typed" {
			w.t.Errorf("the process read %q, %v", got, err)
		}
		synctest.Wait()
		if want := "\r\naccessd: carol has joined this session\r\nafter\n"; !strings.HasSuffix(watching.stdout.String(), want) {
			w.t.Errorf("the watcher saw %q, want %q at the end", &watching.stdout, want)
		}
		for _, notice := range []string{"bob watches this session", "carol has joined this session"} {
			if !strings.Contains(r.stderr.String(), notice) {
				w.t.Errorf("the person read %q, want %q in it", r.stderr.String(), notice)
			}
		}
		r.process.end(w.t, Exit{})
		for _, a := range []*attendance{watching, joining} {
			if code := <-a.ended; code != 0 {
				w.t.Errorf("it ended with %d", code)
			}
		}
		_ = r.Wait()
		synctest.Wait()
		for _, name := range []events.Name{events.SessionJoin, events.SessionLeave} {
			list := w.journal.named(name)
			if len(list) != 2 || string(list[0].SID) != sid || list[0].Fields["participant"] != "alice" {
				w.t.Errorf("%s: %v", name, list)
			}
		}
	})
}

// Who may not see a session learns nothing of it; who may only watch cannot
// type.
func TestWatchRefused(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		r := w.start(x, c)
		sid := string(w.manager.List()[0].ID)
		other := w.observe("mallory")
		defer other.Close()
		ask := func(subsystem string) string {
			a := attend(w.t, other, subsystem)
			if code := <-a.ended; code != exitRefused {
				w.t.Errorf("%s: exit status %d", subsystem, code)
			}
			return strings.TrimSpace(a.stderr.String())
		}
		w.policy.set(func(p *policy) { p.deny[authz.ActionJoin] = "no joining" })
		if got, want := ask("join:"+sid), "accessd: you may watch this session, not join it: no joining"; got != want {
			w.t.Errorf("read %q, want %q", got, want)
		}
		w.policy.set(func(p *policy) { p.deny["recordings"] = "no recordings" })
		unseen := "accessd: no live session with that id that you may see"
		for _, subsystem := range []string{"watch:" + sid, "join:" + sid, "watch:" + string(names.NewSessionID())} {
			if got := ask(subsystem); got != unseen {
				w.t.Errorf("%s: read %q, want %q", subsystem, got, unseen)
			}
		}
		for _, subsystem := range []string{"sftp", "watch:../x", "watch:"} {
			if got := ask(subsystem); got == unseen || got == "" {
				w.t.Errorf("%s: read %q", subsystem, got)
			}
		}
		if n := len(w.journal.named(events.SessionJoin)); n != 4 {
			w.t.Errorf("%d events session.join, want 4", n)
		}
		r.process.end(w.t, Exit{})
		_ = r.Wait()
	})
}

// The right to watch is taken away in the middle of it.
func TestWatchRevoked(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		r := w.start(x, c)
		other := w.observe("bob")
		defer other.Close()
		a := attend(w.t, other, "watch:"+string(w.manager.List()[0].ID))
		synctest.Wait()
		w.policy.set(func(p *policy) { p.deny[authz.ActionJoin], p.deny["recordings"] = "no joining", "no recordings" })
		if code := <-a.ended; code != exitRefused {
			w.t.Errorf("exit status %d", code)
		}
		if want := "accessd: the policy no longer allows this: no joining"; !strings.Contains(a.stderr.String(), want) {
			w.t.Errorf("read %q, want %q", a.stderr.String(), want)
		}
		r.process.end(w.t, Exit{})
		_ = r.Wait()
	})
}

// A watcher that does not read costs the session neither time nor memory (F16).
func TestF16SlowWatcher(t *testing.T) {
	var s stage
	slow, quick := newWatcher(), newWatcher()
	for _, w := range []*watcher{slow, quick} {
		if err := s.enter(w); err != nil {
			t.Fatal(err)
		}
	}
	block := make([]byte, 32<<10)
	for range 10 * maxBehind / len(block) {
		s.show(block, true)
		if _, err := quick.next(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := slow.next(); !errors.Is(err, errBehind) {
		t.Errorf("the slow one got %v, want %v", err, errBehind)
	}
	if len(s.last) != recent || cap(s.last) > 4*recent {
		t.Errorf("%d bytes are remembered in %d, want %d", len(s.last), cap(s.last), recent)
	}
	for i := range maxWatchers {
		if err := s.enter(newWatcher()); (err == nil) != (i < maxWatchers-1) {
			t.Errorf("watcher %d: %v", i+1, err)
		}
	}
	s.close()
	if err := s.enter(newWatcher()); !errors.Is(err, errOver) {
		t.Errorf("enter after the end: %v", err)
	}
	if _, err := quick.next(); !errors.Is(err, io.EOF) {
		t.Errorf("next after the end: %v", err)
	}
}
