package auth

import (
	"context"
	"slices"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

type caService struct{ *Authority }

// ExportCA returns the public keys of one authority.
func (s caService) ExportCA(ctx context.Context, req *connect.Request[accessdv1.ExportCARequest]) (*connect.Response[accessdv1.ExportCAResponse], error) {
	t := sshca.Type(req.Msg.GetType())
	if t != services.AuditCA && !slices.Contains(caTypes(), t) {
		return nil, fault.New(fault.BadInput, "CA type %q: want user, host, node, sshd or audit", clip(string(t)))
	}
	ca, err := s.cfg.Store.CA(ctx, t)
	if err != nil {
		return nil, err
	}
	res := &accessdv1.ExportCAResponse{ClusterName: s.cfg.Keys.ClusterName()}
	for _, k := range ca.Keys {
		res.PublicKeys = append(res.PublicKeys, k.Public)
	}
	if t == services.AuditCA { // one key, under the name of each period
		res.PublicKeys = append(res.PublicKeys, s.cfg.Audit.VerifierKeys()[1:]...)
	}
	if t == sshca.TypeHost {
		for _, key := range s.cfg.Keys.Trust().Host {
			res.Pins = append(res.Pins, sshca.Pin(key))
		}
	}
	for _, p := range s.cfg.Cache.Proxies() {
		res.ProxyAddresses = append(res.ProxyAddresses, p.Addresses...)
	}
	return connect.NewResponse(res), nil
}
