package proxy

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// lock locks target and returns the lock's id.
func (w *world) lock(target services.LockTarget) services.LockID {
	w.t.Helper()
	l := services.Lock{ID: services.NewLockID(), Target: target, Message: "stolen", Created: time.Now()}
	w.policy.put(services.KindLock, l.ID, l)
	return l.ID
}

// heard connects as user and returns what it was told before it was let in.
func (w *world) heard(user string, auth ...ssh.AuthMethod) (banner string, err error) {
	cfg := w.client(user, auth...)
	cfg.BannerCallback = func(message string) error {
		banner += message
		return nil
	}
	c, err := ssh.Dial("tcp", w.addr, cfg)
	if err == nil {
		c.Close()
	}
	return banner, err
}

// bluffer shows a certificate whose key it does not hold.
type bluffer struct {
	ssh.Signer

	shown ssh.PublicKey
}

func (b bluffer) PublicKey() ssh.PublicKey { return b.shown }

// TestLockedAtTheDoor: whom a lock describes is refused and reads why, once they have
// proven who they are; a thief of the certificate alone reads nothing.
func TestLockedAtTheDoor(t *testing.T) {
	w := newWorld(t)
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	for name, target := range map[string]services.LockTarget{
		"user":    {User: "alice"},
		"role":    {Role: "auditor"}, // the certificate has it
		"serial":  {Serial: 7},
		"address": {Address: loopback},
		"several": {User: "alice", Serial: 7, Address: loopback},
	} {
		t.Run(name, func(t *testing.T) {
			id := w.lock(target)
			w.audit.reset()
			me := w.person("alice")
			if banner, err := w.heard("alice", pubkey(me)); err == nil || banner != "accessd: locked: stolen\r\n" {
				t.Errorf("alice: %v, banner %q, want a refusal that says why", err, banner)
			}
			ev := w.audit.wait(events.AuthRejected, 1)[0]
			if ev.Fields["refusal"] != codeLocked || ev.Fields["lock"] != id {
				t.Errorf("auth.rejected = %+v, want lock %s", ev, id)
			}
			_, other := sshca.Generate()
			if banner, err := w.heard("alice", pubkey(bluffer{other, me.PublicKey()})); err == nil || banner != "" {
				t.Errorf("who only shows alice's certificate: %v, banner %q, want no word", err, banner)
			}
			w.policy.remove(services.KindLock, id)
			w.must("alice", pubkey(me))
		})
	}
	for name, target := range map[string]services.LockTarget{
		"another":            {User: "bob"},
		"elsewhere":          {User: "alice", Address: netip.MustParsePrefix("10.0.0.0/8")},
		"on one node":        {User: "alice", NodeID: idN1},
		"as one login":       {User: "alice", Login: "root"},
		"another of hers":    {User: "alice", Serial: 8},
		"without a question": {Request: "0195510c-9a40-7bb2-8c51-0b5e6f1f2a11"},
	} {
		w.lock(target)
		if _, err := w.heard("alice", pubkey(w.person("alice"))); err != nil {
			t.Errorf("%s: alice is refused: %v", name, err)
		}
	}
}

// TestLockedSignIn: from a locked address nobody is asked anything.
func TestLockedSignIn(t *testing.T) {
	w := newWorld(t)
	w.lock(services.LockTarget{Address: netip.MustParsePrefix("127.0.0.1/32")})
	_, key := sshca.Generate()
	banner, err := w.heard("alice", pubkey(key), answer("password", "123456"))
	if begun, _ := w.login.counts(); err == nil || begun != 0 || !strings.Contains(banner, "locked: stolen") {
		t.Errorf("%v, %d sign-ins begun, banner %q; want none, and why", err, begun, banner)
	}
}

// TestLockEndsConnections: those of a locked person, those of a locked node, also by
// its certificate, and no others.
func TestLockEndsConnections(t *testing.T) {
	w := newWorld(t)
	w.policy.user("bob", "access")
	alice, bob := w.must("alice", pubkey(w.person("alice"))), w.must("bob", pubkey(w.person("bob")))
	node := w.must("n1", pubkey(w.member(sshca.KindNode, idN1, "n1")))
	other := w.must("n2", pubkey(w.member(sshca.KindNode, idN2, "n2")))
	w.audit.reset()
	begun := time.Now()
	id := w.lock(services.LockTarget{User: "alice"})
	_ = alice.Wait()
	if took := time.Since(begun); took > 3*time.Second { // on a machine that does much else
		t.Errorf("alice's connection lived %v after the lock", took)
	}
	if ev := w.audit.wait(events.ClientDisconnect, 1)[0]; ev.User != "alice" || ev.Fields["lock"] != id {
		t.Errorf("client.disconnect = %+v, want alice's, and lock %s", ev, id)
	}
	w.lock(services.LockTarget{Node: "n1"})
	_ = node.Wait()
	if _, err := w.heard("n1", pubkey(w.member(sshca.KindNode, idN1, "n1"))); err == nil {
		t.Error("a locked node is let in")
	}
	for name, c := range map[string]*ssh.Client{"bob": bob, "n2": other} {
		if _, _, err := c.SendRequest("keepalive@openssh.com", true, nil); err != nil {
			t.Errorf("the connection of %s has ended: %v", name, err)
		}
	}
}
