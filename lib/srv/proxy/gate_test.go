package proxy

import (
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// TestCheckRemembers holds when a good certificate need not be verified again,
// and that all that could make it bad makes it be.
func TestCheckRemembers(t *testing.T) {
	w := newWorld(t)
	g := &gate{s: w.server, admits: admits{people: true}}
	cert, _ := w.person("alice").PublicKey().(*ssh.Certificate)
	other, _ := w.person("alice").PublicKey().(*ssh.Certificate)
	peer := sshca.Peer{SSHUser: "alice", Now: time.Now()}
	check := func(cert *ssh.Certificate, peer sshca.Peer) *sshca.Identity {
		id, _ := g.check(cert, peer)
		return id
	}
	first := check(cert, peer)
	if again := check(cert, peer); again != first || first == nil {
		t.Error("the same certificate was verified again")
	}
	if id := check(other, peer); id == nil || id == first {
		t.Errorf("another certificate is %v", id)
	}
	if id := check(cert, sshca.Peer{SSHUser: "bob", Now: time.Now()}); id != nil {
		t.Errorf("with another name it is %v", id)
	}
	if id := check(cert, sshca.Peer{SSHUser: "alice", Now: time.Now().Add(2 * time.Hour)}); id != nil {
		t.Errorf("after its end it is %v", id)
	}
	tampered := *cert
	tampered.ValidPrincipals = []string{"user:alice", "root", "postgres"}
	if id := check(&tampered, peer); id != nil {
		t.Errorf("tampered with it is %v", id)
	}
	check(cert, peer)
	w.policy.put("ca", sshca.TypeUser, services.CA{Type: sshca.TypeUser, Keys: []services.CAKey{{Public: authorizedKey(w.ca[sshca.TypeSSHD].PublicKey())}}})
	if id := check(cert, peer); id != nil {
		t.Errorf("without its authority it is %v", id)
	}
}

// TestIdentifyAsksThePolicy: what is remembered of a certificate says nothing of
// its user.
func TestIdentifyAsksThePolicy(t *testing.T) {
	w := newWorld(t)
	g := &gate{s: w.server, admits: admits{people: true}}
	cert, _ := w.person("alice").PublicKey().(*ssh.Certificate)
	peer := sshca.Peer{SSHUser: "alice", Now: time.Now()}
	if _, err := g.identify(cert, peer); err != nil {
		t.Fatal(err)
	}
	w.policy.remove("user", names.UserName("alice"))
	if id, err := g.identify(cert, peer); err == nil {
		t.Errorf("a user who is gone is %v", id)
	}
}
