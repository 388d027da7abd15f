package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// maxBanner bounds what is kept of a banner (RFC 4252, section 5.4), in bytes.
const maxBanner = 16 << 10

// login is one attempt to log in. x/crypto calls its methods one after the
// other.
type login struct {
	purpose

	x    *Executor
	node services.Node

	banner strings.Builder

	mu      sync.Mutex    // a login that took too long is explained while it still runs
	trusted ssh.PublicKey // the host key that was taken
	signed  bool          // the key for this login has a certificate
	refused error         // why nothing comes of it, if this package says so
}

// config returns how to log in while ctx lives.
func (g *login) config(ctx context.Context) ssh.ClientConfig {
	return ssh.ClientConfig{
		User: string(g.login),
		Auth: []ssh.AuthMethod{ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
			signer, err := g.certify(ctx)
			g.mu.Lock()
			defer g.mu.Unlock()
			g.signed, g.refused = err == nil, err
			return []ssh.Signer{signer}, err
		})},
		HostKeyAlgorithms: hostKeyAlgorithms(g.node),
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if again, err := g.sameHost(key); again {
				return err
			}
			err := g.checkHost(ctx, key)
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.refused = err; err == nil {
				g.trusted = key
			}
			return err
		},
		BannerCallback: func(message string) error {
			if room := maxBanner - g.banner.Len(); room > 0 {
				g.banner.WriteString(message[:min(len(message), room)])
			}
			return nil
		},
	}
}

// proven reports whether the sshd had a certificate for this login.
func (g *login) proven() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.signed
}

// certify returns a fresh key with a certificate for this login and no other.
func (g *login) certify(ctx context.Context) (ssh.Signer, error) {
	_, key := sshca.Generate()
	client := "" // of a transport without addresses
	if g.x.cfg.Client.IsValid() {
		client = g.x.cfg.Client.String()
	}
	resp, err := g.x.cfg.Certs.SignSession(ctx, connect.NewRequest(&accessdv1.SignSessionRequest{
		Certificate: g.x.credential, PublicKey: string(ssh.MarshalAuthorizedKey(key.PublicKey())),
		Client: client, Node: string(g.node.ID), Login: string(g.login),
		Session: g.session, Role: string(g.role), Start: g.start, Proof: g.x.cfg.Proof,
	}))
	if err != nil {
		if fault.KindOf(err) == fault.Internal {
			err = fault.Wrap(fault.Unavailable, err, "the authority signs no certificate for the node now")
		}
		return nil, err
	}
	parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(resp.Msg.GetCertificate()))
	if err != nil {
		return nil, fmt.Errorf("read the certificate for a session: %w", err)
	}
	cert, ok := parsed.(*ssh.Certificate)
	if !ok {
		return nil, errors.New("read the certificate for a session: it is a plain key")
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		return nil, fmt.Errorf("use the certificate for a session: %w", err)
	}
	return signer, nil
}

// hostKeyAlgorithms are the signatures by which n may prove itself, those of
// certificates and of the keys on record first: an sshd has several keys. SHA-1
// is in none.
func hostKeyAlgorithms(n services.Node) []string {
	list := []string{
		ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
		ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01,
	}
	plain := [][]string{
		{ssh.KeyAlgoED25519},
		{ssh.KeyAlgoECDSA256},
		{ssh.KeyAlgoECDSA384},
		{ssh.KeyAlgoECDSA521},
		{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256},
	}
	known := map[string]bool{}
	for _, k := range pinned(n) {
		known[k.Type()] = true
	}
	known[ssh.KeyAlgoRSASHA512] = known[ssh.KeyAlgoRSA]
	for _, first := range []bool{true, false} {
		for _, algorithms := range plain {
			if known[algorithms[0]] == first {
				list = append(list, algorithms...)
			}
		}
	}
	return list
}

// pinned returns the host keys on record for n.
func pinned(n services.Node) []ssh.PublicKey {
	var keys []ssh.PublicKey
	for _, line := range n.HostKeys {
		if k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err == nil {
			keys = append(keys, k)
		}
	}
	return keys
}

// sameHost reports whether key comes with a renewed key exchange (RFC 4253,
// section 9), and refuses it if it is not the one that was taken, which may have
// expired since.
func (g *login) sameHost(key ssh.PublicKey) (again bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.trusted == nil {
		return false, nil
	}
	if !bytes.Equal(key.Marshal(), g.trusted.Marshal()) {
		return true, errors.New("the host key changed within the connection")
	}
	return true, nil
}

// checkHost refuses a host key that is not the node's.
func (g *login) checkHost(ctx context.Context, key ssh.PublicKey) error {
	why := "it is not the one on record"
	plain := key
	if cert, ok := key.(*ssh.Certificate); ok {
		err := g.x.checkCertificate(cert, g.node)
		if err == nil {
			return nil
		}
		// An sshd may show a certificate of other people's for a key we know.
		why = err.Error()
		plain = cert.Key
	}
	keys := pinned(g.node)
	for _, k := range keys {
		if bytes.Equal(k.Marshal(), plain.Marshal()) {
			return nil
		}
	}
	if len(g.node.HostKeys) == 0 && g.node.Address == "" {
		return g.pin(ctx, plain)
	}
	return g.refuseHost(ctx, plain, why)
}

// refuseHost records that key was refused, and returns what the person reads.
func (g *login) refuseHost(ctx context.Context, key ssh.PublicKey, why string) error {
	refusal := fault.New(fault.Denied,
		"the host key of node %q is not the one that is expected (it is %s); nobody logs in until that is settled", g.node.Name, ssh.FingerprintSHA256(key))
	ev := g.hostKeyEvent(key, why)
	if err := g.x.cfg.Events.Emit(context.WithoutCancel(ctx), ev); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the audit log cannot be written, and "+refusal.Public)
	}
	return refusal
}

// checkCertificate refuses c unless it is a host certificate of the cluster for
// n.
func (x *Executor) checkCertificate(c *ssh.Certificate, n services.Node) error {
	t, now := x.cfg.Trust(), x.cfg.Now()
	err := t.CheckHost(c, string(n.ID), now)
	if err != nil && t.CheckHost(c, string(n.Name), now) == nil {
		return nil
	}
	return err
}

// pin puts key on record as that of a node that has none. The authority writes
// that to the audit log.
func (g *login) pin(ctx context.Context, key ssh.PublicKey) error {
	_, err := g.x.cfg.Certs.PinHostKey(ctx, connect.NewRequest(&accessdv1.PinHostKeyRequest{
		Node: string(g.node.ID), HostKey: string(ssh.MarshalAuthorizedKey(key)),
	}))
	if fault.Is(err, fault.Denied) || fault.Is(err, fault.Conflict) { // another is on record by now
		return g.refuseHost(ctx, key, err.Error())
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, fmt.Sprintf("the host key of node %q cannot be put on record", g.node.Name))
	}
	return nil
}

// hostKeyEvent is about key, which was refused.
func (g *login) hostKeyEvent(key ssh.PublicKey, why string) events.Event {
	id := g.x.cfg.Identity
	e := events.Event{
		Name: events.NodeHostKey, User: id.User, Login: g.login, Proto: "ssh", Error: why,
		Fields: map[string]any{
			"connection": g.x.cfg.ID, "node_id": g.node.ID, "node_name": g.node.Name, "node_labels": g.node.Labels,
			"action": "refused", "fingerprint": ssh.FingerprintSHA256(key), "reason": why,
		},
	}
	if g.x.cfg.Client.IsValid() {
		e.AddrRemote = g.x.cfg.Client.String()
	}
	if g.node.Address != "" {
		e.Fields["address"] = g.node.Address
	}
	var expected []string
	for _, k := range pinned(g.node) {
		expected = append(expected, ssh.FingerprintSHA256(k))
	}
	if expected != nil {
		e.Fields["expected"] = expected
	}
	return e
}
