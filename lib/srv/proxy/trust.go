package proxy

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshca"
)

// authority returns whose keys a plain sshd node fetches with a command, and what
// stands before each in the file that they are for.
func authority(verb string) (kind sshca.Type, before string) {
	if verb == hostCAVerb {
		return sshca.TypeHost, "@cert-authority * " // known_hosts (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT")
	}
	return sshca.TypeSSHD, "" // TrustedUserCAKeys (sshd_config(5))
}

// trusted prints an authority's keys for the node m, which has them from then on
// for all that the cluster knows.
func (x *session) trusted(ctx context.Context, m *member, verb string) int {
	if x.s.cfg.People == nil || x.s.cfg.People.Rotation == nil {
		return x.fail(fault.New(fault.Unavailable, "this process is no proxy"))
	}
	kind, before := authority(verb)
	res, err := unwrap(x.s.cfg.People.Rotation.ReadTrust(ctx, connect.NewRequest(&accessdv1.ReadTrustRequest{
		Type: string(kind), Certificate: authorizedKey(m.cert), Client: x.conn.Remote.String(),
	})))
	if err != nil {
		return x.fail(err)
	}
	var text strings.Builder
	for _, key := range res.GetPublicKeys() {
		text.WriteString(before + key + "\n")
	}
	if _, err := x.ch.Write([]byte(x.lines(text.String()))); err != nil {
		return x.fail(err)
	}
	return 0
}
