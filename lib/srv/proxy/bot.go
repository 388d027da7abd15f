package proxy

import (
	"context"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

// renewBot prints the certificate that follows the one with which a bot is here.
func (x *session) renewBot(ctx context.Context) int {
	x.ignoreInput()
	if x.s.cfg.People == nil || x.s.cfg.People.Bots == nil {
		return x.fail(fault.New(fault.Unavailable, "bots cannot renew here"))
	}
	req := &accessdv1.RenewBotRequest{Certificate: x.who.cert, Client: x.conn.Remote.String()}
	res, err := unwrap(x.s.cfg.People.Bots.RenewBot(ctx, connect.NewRequest(req)))
	if err != nil {
		return x.fail(err)
	}
	old, _, _, _, err := ssh.ParseAuthorizedKey([]byte(x.who.cert)) //nolint:dogsled // its shape
	if err != nil {
		return x.fail(err)
	}
	key := old
	if c, ok := old.(*ssh.Certificate); ok {
		key = c.Key
	}
	cert, err := parseCertificate(res.GetCertificate(), key)
	if err != nil {
		return x.fail(err)
	}
	return x.certify("renewed", cert)
}
