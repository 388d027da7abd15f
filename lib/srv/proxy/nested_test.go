package proxy

import (
	"crypto/rand"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/sshca"
)

// TestNestedOnTheWire is CVE-2025-49825 through the whole of a sign-in: a
// certificate whose signature key is itself a certificate, that names the
// authority or that the authority has signed. It is refused, the log has one event
// of it, and who comes next from there with a good one is let in.
func TestNestedOnTheWire(t *testing.T) {
	w := newWorld(t)
	_, mallory := sshca.Generate()
	naming := &ssh.Certificate{Key: w.ca[sshca.TypeUser].PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	if err := naming.SignCert(rand.Reader, mallory); err != nil {
		t.Fatal(err)
	}
	for name, outer := range map[string]ssh.PublicKey{
		"a forged one that names the authority": naming,
		"mallory's own good one":                w.person("alice").PublicKey(),
	} {
		t.Run(name, func(t *testing.T) {
			w.audit.reset()
			_, key := sshca.Generate()
			cert, err := sshca.MintUser(mallory, w.userRequest("alice", key.PublicKey()))
			if err != nil {
				t.Fatal(err)
			}
			cert.SignatureKey = outer
			c, err := w.dial("alice", pubkey(shown{key, cert}))
			if err == nil {
				c.Close()
				t.Error("let in")
			}
			if ev := w.audit.wait(events.AuthRejected, 1); len(ev) != 1 || ev[0].Success || ev[0].User != "alice" {
				t.Errorf("auth.rejected = %+v, want one of alice's name", ev)
			}
			if n := len(w.audit.all(events.UserLogin)); n > 0 {
				t.Errorf("%d events user.login", n)
			}
		})
	}
	w.must("alice", pubkey(w.person("alice")))
}

// shown signs with a key and shows a certificate that no library would make.
type shown struct {
	ssh.Signer

	cert *ssh.Certificate
}

func (s shown) PublicKey() ssh.PublicKey { return s.cert }
