package proxy

import (
	"context"
	"crypto/ed25519"
	"math"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

// channelAgent is the channel through which a server reaches the agent that a
// client forwards (OpenSSH PROTOCOL.agent; the type is OpenSSH's own).
const channelAgent = "auth-agent@openssh.com"

// push makes a key, has it certified for the person who signed in, and puts
// both into the person's agent until the certificate ends. The key is nowhere
// else, and nothing asks the agent for what it holds.
func (x *session) push(ctx context.Context, signed *signedIn) error {
	return x.withAgent(func(to agent.ExtendedAgent) error {
		key, signer := sshca.Generate()
		redeem := &accessdv1.RedeemRequest{Grant: signed.grant, PublicKey: authorizedKey(signer.PublicKey())}
		answer, err := unwrap(x.s.cfg.People.Grants.Redeem(ctx, connect.NewRequest(redeem)))
		if err != nil {
			return err
		}
		cert, err := parseCertificate(answer.GetCertificate(), signer.PublicKey())
		if err != nil {
			return err
		}
		if err := Lend(to, key, cert, x.s.cfg.Now()); err != nil {
			return err
		}
		x.say("accessd: signed in as %s; a key and its certificate are in your agent until %s\n", cert.KeyId, moment(end(cert)))
		x.sayRequests(signed)
		return nil
	})
}

// withAgent calls fn with the agent that the person forwards.
func (x *session) withAgent(fn func(agent.ExtendedAgent) error) error {
	ch, reqs, err := x.conn.OpenChannel(channelAgent, nil)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "your agent cannot be reached").WithHint(`without -A the certificate is printed`)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { refuseAll(reqs) })
	defer ch.Close()
	return fn(agent.NewClient(ch))
}

// Lend puts key and its certificate into an agent, until the certificate ends.
func Lend(to agent.Agent, key ed25519.PrivateKey, cert *ssh.Certificate, now time.Time) error {
	err := to.Add(agent.AddedKey{
		PrivateKey: key, Certificate: cert, Comment: "accessd " + cert.KeyId, LifetimeSecs: lifetime(cert, now),
	})
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "your agent did not take the key")
	}
	return nil
}

// lifetime returns how long an agent keeps cert's key, in seconds; at least one,
// as none means for ever.
func lifetime(cert *ssh.Certificate, now time.Time) uint32 {
	left := end(cert).Sub(now) / time.Second
	return uint32(min(max(left, 1), math.MaxUint32))
}
