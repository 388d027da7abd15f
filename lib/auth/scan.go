package auth

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// scanTimeout bounds the time to find out the host keys of one address, all of
// them together.
const scanTimeout = 15 * time.Second

// errSeen ends a handshake whose host key is known now.
var errSeen = errors.New("the host key was seen")

// scan returns the host keys that the SSH server at address shows, at most one
// of each kind, in authorized_keys format. One with a host certificate of this
// cluster for name has none that are expected: the certificate is enough.
//
// It is trust on first use, by an administrator's word: the answer shows what
// was found.
func (a *Authority) scan(ctx context.Context, address string, name names.NodeName) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, scanTimeout)
	defer cancel()
	shown, err := hostKey(ctx, address, []string{ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01, ssh.CertAlgoRSASHA512v01})
	if err != nil {
		return nil, unreachable(address, err)
	}
	if cert, ok := shown.(*ssh.Certificate); ok && a.cfg.Keys.Trust().CheckHost(cert, string(name), a.cfg.Now()) == nil {
		return nil, nil
	}
	var lines []string
	for _, kind := range [][]string{
		{ssh.KeyAlgoED25519},
		{ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521},
		{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256},
	} {
		key, err := hostKey(ctx, address, kind)
		if err != nil {
			return nil, unreachable(address, err)
		}
		if key != nil && !slices.Contains(lines, keyLine(key)) {
			lines = append(lines, keyLine(key))
		}
	}
	if len(lines) == 0 {
		return nil, fault.New(fault.BadInput, "the server at %q has no host key that is accepted", address).
			WithHint("give it an Ed25519 host key: ssh-keygen -A")
	}
	return lines, nil
}

func unreachable(address string, err error) error {
	return fault.New(fault.Unavailable, "no SSH server answers at %q: %w", address, err).
		WithHint("say its keys instead: --host-key FILE, such as its /etc/ssh/ssh_host_ed25519_key.pub")
}

// hostKey returns the key that the SSH server at address shows for one of these
// algorithms, or nil when it has none of them. It never authenticates.
func hostKey(ctx context.Context, address string, algorithms []string) (ssh.PublicKey, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var seen ssh.PublicKey
	_, _, _, err = ssh.NewClientConn(conn, address, &ssh.ClientConfig{
		User:              "accessd",
		HostKeyAlgorithms: algorithms,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			seen = key
			return errSeen
		},
	})
	if seen != nil {
		return seen, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if _, none := errors.AsType[*ssh.AlgorithmNegotiationError](err); none {
		return nil, nil //nolint:nilnil // no key of this kind
	}
	return nil, err
}
