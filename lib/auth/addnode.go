package auth

import (
	"context"
	"maps"
	"net"
	"slices"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// hostCertTTL is the lifetime of the host certificate of a plain sshd's own key.
// Nothing on such a node renews it, so it is as long as a person will remember;
// the key behind it is on record as well and stays good.
const hostCertTTL = 365 * 24 * time.Hour

// maxHostKeys bounds the host keys of one request. A server has one of each
// kind.
const maxHostKeys = 8

// sshPort is where an SSH server listens unless the address says otherwise (RFC
// 4253, section 4.1).
const sshPort = "22"

// AddNode registers a plain sshd node: one that proxies dial at its address, or
// one that will dial home. It dials the address itself when it is to find out
// the host keys, which is why only administrators may call it.
func (s nodeService) AddNode(ctx context.Context, req *connect.Request[accessdv1.AddNodeRequest]) (*connect.Response[accessdv1.AddNodeResponse], error) {
	n, err := s.newNode(req.Msg)
	if err != nil {
		return nil, err
	}
	if _, err := s.member(ctx, string(n.Name)); err == nil {
		return nil, fault.New(fault.Conflict, "the name %q is taken", n.Name).WithHint("choose another, or remove what has it")
	}
	if n.Address != "" && len(n.HostKeys) == 0 {
		if n.HostKeys, err = s.scan(ctx, n.Address, n.Name); err != nil {
			return nil, err
		}
	}
	c := callerOf(ctx)
	ev := events.Event{Name: events.NodeCreate, AddrRemote: c.addr, Fields: map[string]any{
		"by": c.by, "role": string(sshca.KindNode), "name": string(n.Name), "member_id": string(n.ID),
		"labels": map[string]string(n.Labels), "fingerprints": fingerprints(n.HostKeys),
	}}
	set(ev, "address", n.Address)
	err = s.change(ctx, ev, func() error {
		n, err = s.cfg.Store.AdmitNode(ctx, "", n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.AddNodeResponse{Node: nodeMessage(n, nil), Fingerprints: fingerprints(n.HostKeys)}), nil
}

// newNode returns the node that a request describes.
func (s nodeService) newNode(m *accessdv1.AddNodeRequest) (services.Node, error) {
	n := services.Node{ID: names.NewNodeID(), Kind: services.NodeSSHD, Labels: maps.Clone(m.GetLabels()), Joined: s.cfg.Now().UTC()}
	var err error
	if n.Name, err = parseMemberName(m.GetName()); err != nil {
		return n, err
	}
	if err := n.Labels.Check(); err != nil {
		return n, err
	}
	if m.GetAddress() != "" {
		if n.Address, err = parseAddress(m.GetAddress()); err != nil {
			return n, err
		}
		if _, _, err := net.SplitHostPort(n.Address); err != nil {
			n.Address = net.JoinHostPort(n.Address, sshPort)
		}
	}
	if len(m.GetHostKeys()) > maxHostKeys {
		return n, fault.New(fault.BadInput, "%d host keys: want at most %d", len(m.GetHostKeys()), maxHostKeys)
	}
	for _, line := range m.GetHostKeys() {
		key, err := parseKeyLine(line)
		if err != nil {
			return n, fault.New(fault.BadInput, "host key: %w", err)
		}
		if line := keyLine(key); !slices.Contains(n.HostKeys, line) {
			n.HostKeys = append(n.HostKeys, line)
		}
	}
	return n, nil
}

// SignHostKey issues a host certificate for the own key of a plain sshd, and
// expects that key from then on.
func (s nodeService) SignHostKey(ctx context.Context, req *connect.Request[accessdv1.SignHostKeyRequest]) (*connect.Response[accessdv1.SignHostKeyResponse], error) {
	rec, err := s.member(ctx, req.Msg.GetNode())
	if err != nil {
		return nil, err
	}
	if rec.node == nil || rec.node.Kind != services.NodeSSHD {
		return nil, fault.New(fault.BadInput, "%q is not a plain sshd node; its host certificate is its own to ask for", rec.Name)
	}
	key, err := parseKeyLine(req.Msg.GetPublicKey())
	if err != nil {
		return nil, err
	}
	cert, err := s.signHost(ctx, hostCert{node: *rec.node, key: key, ttl: hostCertTTL, method: "sign"})
	if err != nil {
		return nil, err
	}
	if err := s.expect(ctx, *rec.node, key); err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.SignHostKeyResponse{
		Certificate: keyLine(cert), Expires: timestamppb.New(certTime(cert.ValidBefore)),
	}), nil
}

// expect adds key to the host keys of n.
func (s nodeService) expect(ctx context.Context, n services.Node, key ssh.PublicKey) error {
	line := keyLine(key)
	if slices.Contains(n.HostKeys, line) {
		return nil
	}
	c := callerOf(ctx)
	ev := aboutNode(events.Event{Name: events.NodeHostKey, AddrRemote: c.addr, Fields: map[string]any{
		"by": c.by, "fingerprint": ssh.FingerprintSHA256(key),
	}}, n)
	n.HostKeys = append(slices.Clone(n.HostKeys), line)
	return s.change(ctx, ev, func() error {
		_, err := s.cfg.Store.UpdateNode(ctx, n)
		return err
	})
}
