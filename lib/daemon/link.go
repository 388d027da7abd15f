package daemon

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/reversetunnel"
	"github.com/accessd/accessd/lib/sshca"
)

// linkConfig says what a role's connection to the cluster is for.
type linkConfig struct {
	kind      sshca.Kind
	addresses []string                              // dialled; nil means the configured ones
	serve     func(ctx context.Context, c net.Conn) // takes sessions that come over it; nil takes none
}

// link joins the cluster unless m has joined before, and keeps a connection to
// it: for a node its tunnels, for a proxy its way to the authority.
func (d *Daemon) link(ctx context.Context, m *member, c linkConfig) (*reversetunnel.Agent, *seat, error) {
	d.restorePolicy()
	if !m.joined() || d.mustRejoin(m) {
		if err := d.join(ctx, m, c); err != nil {
			return nil, nil, err
		}
	} else if d.repinned(m) {
		if err := d.join(ctx, m, c); err != nil { // what it has may be good all the same
			d.log.Warn("this member was given a pin of a host CA that it does not know, and could not join again", zap.Error(err))
		}
	}
	state := m.state.Load()
	d.id, d.name = state.ID, state.Name
	d.cluster.Store(&state.Cluster)
	agent, err := reversetunnel.NewAgent(reversetunnel.AgentConfig{
		Addresses: func() []string { return d.dialled(c) }, Identity: m.credentials, Trust: d.linkTrust(m), Serve: c.serve,
		Proxies: d.cfg.Tunnel.Proxies, NoDialBack: d.cfg.Tunnel.NoDialBack, Log: d.log,
	})
	if err != nil {
		return nil, nil, err
	}
	s := &seat{member: m, calls: agent.Authority(), trust: d.trust, cache: d.cache, log: d.log}
	if d.authority != nil {
		s.admit = func(ctx context.Context) error { return d.admit(ctx, m, c.kind) }
	}
	at := rankLink
	if c.addresses != nil {
		at = rankTraffic // it dials this very process, which stops listening now
	}
	d.run.start(ctx, at, "agent", agent.Run)
	d.run.start(ctx, rankMember, "renewal", s.renew)
	return agent, s, nil
}

// dialled returns the addresses a link dials.
func (d *Daemon) dialled(c linkConfig) []string {
	if c.addresses != nil {
		return c.addresses
	}
	return d.cfg.Join.Addresses
}

// restorePolicy reads the copy of the policy that an earlier run left. Without
// one the member waits for the authority.
func (d *Daemon) restorePolicy() {
	if err := d.cache.Load(d.path("policy.snapshot")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("the copy of the policy cannot be used", zap.Error(err))
	}
}

// mustRejoin reports whether m's certificate has ended and there is a token to
// get another with.
func (d *Daemon) mustRejoin(m *member) bool {
	expired := time.Now().After(m.state.Load().Expires)
	if expired && d.cfg.Join.Token == "" && d.cfg.Join.TokenFile == "" {
		d.log.Error("this member's certificate has ended while it was away; join again with a fresh token", zap.Time("expired", m.state.Load().Expires))
	}
	return expired && (d.cfg.Join.Token != "" || d.cfg.Join.TokenFile != "")
}

// repinned reports whether there is a token, and no pin is of a host CA that m
// believes: the host CA was rotated while m was away, and somebody wants it back.
func (d *Daemon) repinned(m *member) bool {
	if len(d.cfg.Join.CAPins) == 0 || d.cfg.Join.Token == "" && d.cfg.Join.TokenFile == "" {
		return false
	}
	for _, key := range d.linkTrust(m)().Host {
		if slices.Contains(d.cfg.Join.CAPins, sshca.Pin(key)) {
			return false
		}
	}
	return true
}

// linkTrust returns the CA keys a link believes: the policy's, and until there
// is one those that came with the join.
func (d *Daemon) linkTrust(m *member) func() sshca.Trust {
	joined := sshca.Trust{}
	for _, line := range m.state.Load().HostCA {
		if key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err == nil {
			joined.Host = append(joined.Host, key)
		}
	}
	return func() sshca.Trust {
		if t := d.trust(); len(t.Host) > 0 {
			return t
		}
		return joined
	}
}

// hostCA returns the key that signs host certificates now, or nil.
func (d *Daemon) hostCA() ssh.PublicKey {
	if keys := d.trust().Host; len(keys) > 0 {
		return keys[0]
	}
	return nil
}

// token returns the join token.
func (d *Daemon) token() (string, error) {
	if d.cfg.Join.TokenFile == "" {
		if d.cfg.Join.Token == "" {
			return "", fault.New(fault.BadInput, "this process has not joined a cluster yet and has no token").
				WithHint("make one with %q and give it with --token-file", "accessd tokens add")
		}
		return d.cfg.Join.Token, nil
	}
	text, err := os.ReadFile(d.cfg.Join.TokenFile)
	if err != nil {
		return "", fault.New(fault.BadInput, "read token: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// join trades the token for certificates.
func (d *Daemon) join(ctx context.Context, m *member, c linkConfig) error {
	token, err := d.token()
	if err != nil {
		return err
	}
	req := &accessdv1.JoinRequest{
		Token: token, Role: string(c.kind), Name: string(d.name), Id: string(d.id),
		HostPublicKey: publicLine(m.hostKey), Version: defaults.Version,
	}
	if c.kind == sshca.KindNode {
		req.Labels = d.labels.current(ctx)
	} else {
		req.PublicAddresses = d.publicAddresses()
	}
	res, err := d.askToJoin(ctx, m, c, req)
	if err != nil {
		return err
	}
	if err := d.cache.Apply(&accessdv1.PolicyUpdate{Put: res.GetTrust()}); err != nil {
		return err
	}
	state := &memberState{
		ID: names.NodeID(res.GetId()), Name: names.NodeName(res.GetName()), Kind: c.kind, Cluster: res.GetClusterName(),
		GatewayPort: int(res.GetGatewayPort()),
	}
	return m.adopt(state.renewed(res.GetCertificates()).believing(d.cache.Trust()))
}

// askToJoin tries the addresses in turn; only a cluster that is away makes it
// try the next.
func (d *Daemon) askToJoin(ctx context.Context, m *member, c linkConfig, req *accessdv1.JoinRequest) (*accessdv1.JoinResponse, error) {
	var err error
	for _, addr := range d.dialled(c) {
		var res *connect.Response[accessdv1.JoinResponse]
		if res, err = d.askAt(ctx, addr, m, req); err == nil {
			return res.Msg, nil
		}
		if !fault.Is(err, fault.Unavailable) {
			return nil, err
		}
	}
	return nil, err
}

func (d *Daemon) askAt(ctx context.Context, addr string, m *member, req *accessdv1.JoinRequest) (*connect.Response[accessdv1.JoinResponse], error) {
	client, closeConn, err := reversetunnel.Join(ctx, reversetunnel.JoinConfig{Address: addr, Pins: d.cfg.Join.CAPins, Key: m.key})
	if err != nil {
		return nil, err
	}
	defer closeConn()
	return client.Join(ctx, connect.NewRequest(req))
}
