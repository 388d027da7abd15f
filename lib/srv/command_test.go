package srv

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshwire"
)

// TestConfinedSession: where rules list commands a line gets no terminal, in
// which a pager would run what is typed, and of the client's variables none that
// could name a program.
func TestConfinedSession(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, x *executor, c *ssh.Client) {
		w.policy.set(func(p *policy) { p.commands = map[string]bool{"work": true} })
		w.start(x, c).process.end(w.t, Exit{})
		s, err := c.NewSession()
		if err != nil {
			w.t.Fatal(err)
		}
		if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
			w.t.Fatal(err)
		}
		out, err := s.CombinedOutput("work")
		if err == nil || !strings.Contains(string(out), "without a terminal") {
			w.t.Errorf("with a terminal: %v, %q", err, out)
		}
		e := w.journal.await(events.SessionRejected, 1)[0]
		if e.Fields["command"] != "work" {
			w.t.Errorf("event = %+v", e)
		}
	})
}

// TestEmptyLineIsNoQuestionForAny: an empty command is a line like others to the
// rules, not the question whether there is any that is allowed.
func TestEmptyLineIsNoQuestionForAny(t *testing.T) {
	bubble(t, services.RoleOptions{}, func(w *world, _ *executor, c *ssh.Client) {
		w.policy.set(func(p *policy) { p.commands = map[string]bool{"work": true} })
		s, err := c.NewSession()
		if err != nil {
			w.t.Fatal(err)
		}
		out, err := s.CombinedOutput("")
		if err == nil || !strings.Contains(string(out), "no role lists the command") {
			w.t.Errorf("an empty line: %v, %q", err, out)
		}
	})
}

func TestLocaleOnly(t *testing.T) {
	in := []sshwire.Env{
		{Name: "LANG", Value: "C"},
		{Name: "PAGER", Value: "sh"},
		{Name: "LC_ALL", Value: "C"},
		{Name: "LC_x", Value: "y"},
		{Name: "BASH_ENV", Value: "/tmp/x"},
		{Name: "LD_PRELOAD", Value: "/tmp/x.so"},
	}
	if got, want := localeOnly(in), []sshwire.Env{in[0], in[2]}; !slices.Equal(got, want) {
		t.Errorf("localeOnly = %v, want %v", got, want)
	}
}
