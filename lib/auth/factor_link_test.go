package auth

import (
	"testing"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

// links returns how many links the store keeps.
func (w *world) links() int {
	w.t.Helper()
	items, _, err := w.back.List(w.t.Context(), "signon/")
	if err != nil {
		w.t.Fatal(err)
	}
	return len(items)
}

// TestSignInsLeaveNoLinks: who begins and gives up, without end, has the store keep
// nothing.
func TestSignInsLeaveNoLinks(t *testing.T) {
	c, alice, g := newPasskeys(t)
	w := c.w
	before := w.links() // those that were used
	const loopback = "sso: http://127.0.0.1:4711/cb E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
	w.known("alice")
	s := w.then(alice, alice.begin(), "")
	if err := c.open(s).vouch(g); err != nil {
		t.Fatal(err)
	}
	person := w.factors(w.identityOf(w.then(alice, s).GetCertificate()))
	before++
	stranger := w.desk(c.member, "mallory")
	for what, try := range map[string]func() error{
		"a receipt that is none": func() error {
			_, err := stranger.answer(w.then(stranger, stranger.begin(), loopback), "x")
			return err
		},
		"a long answer": func() error {
			_, err := stranger.answer(w.then(stranger, stranger.begin(), loopback), string(make([]byte, maxText+1)))
			return err
		},
		"an answer too many": func() error {
			_, err := stranger.answer(w.then(stranger, stranger.begin(), ""), "x")
			return err
		},
		"a change that is given up": func() error {
			s := must(t, person.BeginChange, &accessdv1.BeginChangeRequest{Change: accessdv1.BeginChangeRequest_CHANGE_PASSKEY})
			_, err := call(t, person.ContinueChange, &accessdv1.ContinueRequest{Id: s.GetId(), Answers: []string{"x"}})
			return err
		},
	} {
		if err := try(); err == nil {
			t.Errorf("%s: the sign-in goes on", what)
		}
		if n := w.links(); n != before {
			t.Errorf("%s: %d links are left, want %d", what, n, before)
		}
	}
}

// TestLinksForConnectionsAreBounded: whoever asks without end gets as many as there
// may be at a time, and takes nobody else's.
func TestLinksForConnectionsAreBounded(t *testing.T) {
	c, alice, g := newPasskeys(t)
	w := c.w
	w.known("alice")
	s := w.then(alice, alice.begin(), "")
	if err := c.open(s).vouch(g); err != nil {
		t.Fatal(err)
	}
	line := w.then(alice, s).GetCertificate()
	ask := func(m *member) error {
		t.Helper()
		res, err := call(t, w.factors(m.identity).VerifyFactor, &accessdv1.VerifyFactorRequest{
			Credential: &accessdv1.VerifyFactorRequest_Certificate{Certificate: line}, Client: clientAddr.String(), Browser: true,
		})
		if err == nil && res.GetLink() == "" {
			t.Error("there is no link")
		}
		return err
	}
	greedy, other := c.member, w.join(sshca.KindProxy, "edge-2")
	for range maxFactorLinks {
		if err := ask(greedy); err != nil {
			t.Fatal(err)
		}
	}
	before := w.links()
	wantFault(t, ask(greedy), fault.Denied, "there are too many links already; use one, or wait a few minutes")
	if n := w.links(); n != before {
		t.Errorf("%d links, want the %d of before", n, before)
	}
	if err := ask(other); err != nil {
		t.Errorf("at another member: %v", err)
	}
	w.clock.advance(signOnTTL + time.Second)
	if err := ask(greedy); err != nil {
		t.Errorf("when they are over: %v", err)
	}
	w.clock.advance(signOnTTL + time.Second)
	if w.Authority.links.sweep(); len(w.Authority.links.ends) > 0 {
		t.Errorf("what is over is remembered: %v", w.Authority.links.ends)
	}
}
