package node

import (
	"context"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// authority checks codes: "123456" is right.
type authority struct {
	asked  atomic.Int32
	before func() // called before a code is found right
}

func (a *authority) VerifyFactor(_ context.Context, r *connect.Request[accessdv1.VerifyFactorRequest]) (*connect.Response[accessdv1.VerifyFactorResponse], error) {
	a.asked.Add(1)
	if r.Msg.GetCode() != "123456" {
		return nil, fault.New(fault.Denied, "permission denied")
	}
	if a.before != nil {
		a.before()
	}
	return connect.NewResponse(&accessdv1.VerifyFactorResponse{Method: "totp"}), nil
}

const strictRole = `
kind: role
name: strict
allow:
  - nodes: {env: dev}
    logins: ["{{user.logins}}"]
    actions: [exec]
    commands: ["echo *"]
options: {mfa: session}
`

// TestFactorLosesNothing: x/crypto CVE-2026-39828 and the second half of the row
// of critical options. What a certificate and its roles restrict is restricted
// after a second factor, too; a factor alone is nobody; and what became of the
// person while they typed counts.
func TestFactorLosesNothing(t *testing.T) {
	const in, out = "203.0.113.7:50122", "198.51.100.1:50122"
	codes := &authority{}
	w := newWorld(t, func(c *Config) { c.Factors = codes })
	roles, err := services.ParseRoles("test", []byte(strictRole))
	if err != nil {
		t.Fatal(err)
	}
	w.put("role", "strict", roles[0])
	w.putUser("strict")
	pinned := w.credential(func(key ssh.PublicKey) *ssh.Certificate {
		r := w.request(key)
		r.Roles = []names.RoleName{"strict", "developer"}
		r.SourceAddresses = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
		cert, err := sshca.MintUser(w.cas[sshca.TypeUser], r)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	})
	signer, err := ssh.NewCertSigner(pinned.cert, pinned.signer)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(t *testing.T, from string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
		t.Helper()
		here, there := tcpPair(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = w.server.Serve(t.Context(), attested{there, netip.MustParseAddrPort(from)})
		}()
		t.Cleanup(func() { here.Close(); <-done })
		conn, channels, requests, err := ssh.NewClientConn(here, "n1", &ssh.ClientConfig{
			User: me(t), Auth: auth, HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:forbidigo // the test's own
		})
		if err != nil {
			return nil, err
		}
		return ssh.NewClient(conn, channels, requests), nil
	}
	certificate := ssh.PublicKeys(signer)
	code := func(text string) ssh.AuthMethod {
		return ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
			answers := make([]string, len(questions))
			for i := range answers {
				answers[i] = text
			}
			return answers, nil
		})
	}
	for name, c := range map[string]struct {
		from  string
		auth  []ssh.AuthMethod
		asked int32
	}{
		"from elsewhere, with a right code": {out, []ssh.AuthMethod{certificate, code("123456")}, 0},
		"a wrong code":                      {in, []ssh.AuthMethod{certificate, code("654321")}, 1},
		"a certificate alone":               {in, []ssh.AuthMethod{certificate}, 0},
		"a code alone":                      {in, []ssh.AuthMethod{code("123456")}, 0},
		"a key that was not proven":         {in, []ssh.AuthMethod{ssh.PublicKeys(unproven(t, pinned)), code("123456")}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			before := codes.asked.Load()
			if client, err := dial(t, c.from, c.auth...); err == nil {
				client.Close()
				t.Error("let in")
			}
			if n := codes.asked.Load() - before; n != c.asked {
				t.Errorf("the authority was asked %d times about a code, want %d", n, c.asked)
			}
		})
	}
	t.Run("in, and held to the rules", func(t *testing.T) {
		client, err := dial(t, in, certificate, code("123456"))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for line, want := range map[string]bool{"echo in": true, "id": false, "echo in; id": false, "": false} {
			s, err := client.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			out, err := s.Output(line)
			if (err == nil) != want || strings.Contains(string(out), "uid=") {
				t.Errorf("%q: %v, %q, want it allowed: %v", line, err, out, want)
			}
			s.Close()
		}
		if c, err := client.Dial("tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "prohibited") {
			t.Errorf("a forward: %v, %v, want it prohibited", c, err)
		}
		if e := w.await(events.UserLogin, nil); e.User != "alice" || e.Fields["mfa"] != "totp" || e.AddrRemote != in {
			t.Errorf("user.login %+v", e)
		}
	})
	t.Run("the role is gone while the code is typed", func(t *testing.T) {
		codes.before = func() { w.putUser("viewer") }
		if client, err := dial(t, in, certificate, code("123456")); err == nil {
			client.Close()
			t.Error("let in")
		}
	})
	w.stop()
	if n := w.count(events.UserLogin); n != 1 {
		t.Errorf("%d events user.login, want one", n)
	}
}

// unproven shows a credential's certificate and signs with another key.
func unproven(t *testing.T, c credential) ssh.Signer {
	t.Helper()
	s, err := ssh.NewCertSigner(c.cert, stranger{c.signer})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
