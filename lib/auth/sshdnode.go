package auth

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/defaults"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// SSHDNodeTTL is the lifetime of the member certificate of a plain sshd node. A
// stock ssh renews nothing over its tunnel: something on the node has to ask,
// such as a timer, and may have been away for a while. Removing the node ends it
// at once all the same.
const SSHDNodeTTL = 30 * 24 * time.Hour

// methodToken is joining with a token in a sign-in.
const methodToken = "token"

// tryToken takes the answer of somebody who typed a join token. A token that is
// not good is a refusal for the end of the sign-in, as any other wrong answer;
// with a good one the conversation is over, one way or the other.
func (s loginService) tryToken(ctx context.Context, in *signIn, id, hash string) (*accessdv1.LoginStep, error) {
	t, err := joinService(s).token(ctx, id, hash)
	if fault.Is(err, fault.Denied) {
		in.refused = refusal(err.Error())
		s.rejectToken(ctx, in, id, err)
		return nil, nil //nolint:nilnil // not the end yet
	}
	if err != nil {
		return nil, err
	}
	out, err := s.joinSSHD(ctx, in, t)
	if err != nil {
		s.rejectToken(ctx, in, id, err)
		return nil, err
	}
	in.acquit()
	return out, nil
}

// rejectToken records that a token was refused to a plain sshd node.
func (s loginService) rejectToken(ctx context.Context, in *signIn, tokenID string, why error) {
	s.note(ctx, events.Event{Name: events.TokenRejected, AddrRemote: in.client.String(), Proto: "ssh", Error: why.Error(), Fields: map[string]any{
		"token_id": tokenID, "role": string(sshca.KindNode), "name": string(in.user), "fingerprint": ssh.FingerprintSHA256(in.key),
	}})
}

// joinSSHD admits a plain sshd node with a good token. It is called what it
// signed in as, and its member key is the one it has proven.
func (s loginService) joinSSHD(ctx context.Context, in *signIn, t services.Token) (*accessdv1.LoginStep, error) {
	name, err := parseMemberName(string(in.user))
	if err != nil {
		return nil, err
	}
	rec := nodeRecord(services.Node{
		ID: names.NewNodeID(), Name: name, Kind: services.NodeSSHD, MemberKey: keyLine(in.key),
		Labels: maps.Clone(t.Labels), Joined: s.cfg.Now().UTC(),
	})
	if err := allows(t, rec); err != nil {
		return nil, err
	}
	old, err := s.member(ctx, string(name))
	if err == nil {
		err = rec.returnsAs(old, t)
	} else if fault.Is(err, fault.NotFound) {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	cert, err := s.issueNode(ctx, rec, "join", in.client)
	if err != nil {
		return nil, err
	}
	ev := joinEvent(ctx, t.ID, rec)
	ev.AddrRemote = in.client.String()
	err = s.change(ctx, ev, func() error {
		_, err := s.cfg.Store.AdmitNode(ctx, t.ID, rec.stored())
		return err
	})
	if err != nil {
		return nil, err
	}
	return &accessdv1.LoginStep{
		Id: in.id, Done: true, Certificate: keyLine(cert), Expires: timestamppb.New(certTime(cert.ValidBefore)),
	}, nil
}

// returnsAs makes rec, a plain sshd node that joins with t, the next version of
// old, which has its name: the same machine by its key, or the node that an
// administrator registered for t to take. Whoever else comes has to wait until
// old is removed.
func (rec *record) returnsAs(old *record, t services.Token) error {
	taken := fault.New(fault.Conflict, "the name %q is taken", rec.Name).
		WithHint("choose another, or remove what has it with \"accessd nodes rm %s\"", rec.Name)
	if old.node == nil || old.node.Kind != services.NodeSSHD || old.node.Address != "" {
		return taken
	}
	if old.MemberKey == "" && !slices.Contains(t.Names, rec.Name) {
		return fault.New(fault.Denied, "the node %q is registered: it joins with a token that names it", rec.Name).
			WithHint("make one with \"accessd tokens add --names %s\"", rec.Name)
	}
	if old.MemberKey != "" && old.MemberKey != rec.MemberKey {
		return taken
	}
	rec.ID = old.ID
	rec.replaces(old)
	labels := maps.Clone(old.node.Labels)
	if labels == nil {
		labels = names.Labels{}
	}
	maps.Copy(labels, rec.node.Labels)
	rec.node.Labels, rec.node.HostKeys = labels, old.node.HostKeys
	return nil
}

// issueNode signs the member certificate of a plain sshd node and records it
// before anybody sees it.
func (a *Authority) issueNode(ctx context.Context, rec *record, method string, client netip.AddrPort) (*ssh.Certificate, error) {
	key, err := parseKeyLine(rec.MemberKey)
	if err != nil {
		return nil, err
	}
	if err := a.checkNode(ctx, rec); err != nil {
		return nil, err
	}
	serial, err := a.cfg.Store.Serial(ctx)
	if err != nil {
		return nil, err
	}
	now := a.cfg.Now()
	cert, err := sshca.MintMember(a.cfg.Keys.signer(sshca.TypeNode), sshca.MemberRequest{
		Key: key, ID: rec.ID, Name: rec.Name, Kind: sshca.KindNode, Serial: serial,
		ValidAfter: now.Add(-defaults.ClockSkew), ValidBefore: now.Add(SSHDNodeTTL),
	})
	if err != nil {
		return nil, err
	}
	ev := aboutNode(certEvent(string(sshca.KindNode), cert), *rec.node)
	ev.AddrRemote = client.String()
	ev.Fields["method"], ev.Fields["by"] = method, callerOf(ctx).by
	if err := a.stand(ctx, rec, nil, cert); err != nil {
		return nil, err
	}
	// It came this far through a proxy whose host certificate that key has signed.
	if err := a.noteTrust(ctx, rec, ssh.FingerprintSHA256(a.cfg.Keys.signer(sshca.TypeHost).PublicKey())); err != nil {
		return nil, err
	}
	return cert, a.record(ctx, ev)
}

// RenewNode issues another certificate to a plain sshd node that shows a good
// one. Only what is on record counts.
func (s loginService) RenewNode(ctx context.Context, req *connect.Request[accessdv1.RenewNodeRequest]) (*connect.Response[accessdv1.RenewNodeResponse], error) {
	client, err := parseClient(req.Msg.GetClient())
	if err != nil {
		return nil, err
	}
	rec, err := s.provenNode(ctx, req.Msg.GetCertificate(), client)
	if err != nil {
		return nil, err
	}
	fresh, err := s.issueNode(ctx, rec, "renew", client)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.RenewNodeResponse{
		Certificate: keyLine(fresh), Expires: timestamppb.New(certTime(fresh.ValidBefore)),
	}), nil
}

// provenNode returns the plain sshd node on record whose good certificate line
// is; a proxy has seen that it holds the key.
func (s loginService) provenNode(ctx context.Context, line string, client netip.AddrPort) (*record, error) {
	cert, err := parseCertLine(line)
	if err != nil {
		return nil, err
	}
	rec, err := s.shownBy(ctx, cert)
	if err != nil {
		return nil, err
	}
	_, err = s.cfg.Keys.Trust().CheckMember(cert, sshca.Peer{SSHUser: string(rec.Name), Addr: client.Addr(), Now: s.cfg.Now()})
	if err != nil {
		s.noteRefusal(ctx, client, err)
		return nil, err
	}
	if rec.node == nil || rec.node.Kind != services.NodeSSHD || fingerprint(rec.MemberKey) != ssh.FingerprintSHA256(cert.Key) {
		ev := events.Event{Name: events.AuthRejected, AddrRemote: client.String(), Proto: "ssh", Error: "no plain sshd node is on record with this key", Fields: map[string]any{
			"method": "publickey", "key_id": cert.KeyId, "fingerprint": ssh.FingerprintSHA256(cert.Key),
		}}
		s.note(ctx, ev)
		return nil, fault.New(fault.Denied, "permission denied")
	}
	return rec, nil
}

// shownBy returns the node on record that cert claims to be of, or an empty
// record, which no certificate is good for. Nothing of cert is proven yet.
func (s loginService) shownBy(ctx context.Context, cert *ssh.Certificate) (*record, error) {
	_, text, _ := strings.Cut(cert.KeyId, ":")
	id, err := names.ParseNodeID(text)
	if err != nil {
		return &record{}, nil //nolint:nilerr // CheckMember says what is wrong with it
	}
	rec, err := s.recordOf(ctx, sshca.KindNode, id)
	if fault.Is(err, fault.NotFound) {
		return &record{}, nil
	}
	return rec, err
}
