package services

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// The kinds of nodes.
const (
	NodeAccessd = "accessd" // runs our node
	NodeSSHD    = "sshd"    // runs plain sshd, reached directly or through ssh -R
)

// Node is a host that runs sessions.
type Node struct {
	ID          names.NodeID   `json:"id"`
	Name        names.NodeName `json:"name"`                 // unique among nodes and members
	Kind        string         `json:"kind"`                 // [NodeAccessd] or [NodeSSHD]
	MemberKey   string         `json:"member_key,omitempty"` // its own public key, authorized_keys format
	HostKey     string         `json:"host_key,omitempty"`   // the key it answers with, same format
	Address     string         `json:"address,omitempty"`    // host:port of a plain sshd; "" when it dials home
	HostKeys    []string       `json:"host_keys,omitempty"`  // that a plain sshd is expected to show beside a host certificate
	Labels      names.Labels   `json:"labels,omitempty"`
	TokenLabels names.Labels   `json:"token_labels,omitempty"` // what its token demanded; Labels keep these
	GatewayPort int            `json:"gateway_port,omitempty"` // 0: none is free
	Joined      time.Time      `json:"joined"`
	Version     string         `json:"version,omitempty"`

	// LastSeen is filled by [Store.Node] and [Store.Nodes] only; it is no part of
	// the stored node, so that a node coming and going changes no policy.
	LastSeen time.Time `json:"-"`
	Revision int64     `json:"-"`
}

// maxHostKeys bounds the host keys of a plain sshd node: one of each type is
// usual.
const maxHostKeys = 8

// check returns a [fault.BadInput] error unless every part of n that may come
// from a person or a peer keeps its grammar and its bound.
func (n Node) check() error {
	switch {
	case n.Kind != NodeAccessd && n.Kind != NodeSSHD:
		return fault.New(fault.BadInput, "node %q: no kind of node is named %q", n.Name, n.Kind)
	case n.Kind == NodeAccessd && (n.Address != "" || len(n.HostKeys) > 0):
		return fault.New(fault.BadInput, "node %q: only a plain sshd has an address or host keys on record", n.Name)
	case len(n.HostKeys) > maxHostKeys:
		return fault.New(fault.BadInput, "node %q: %d host keys, want at most %d", n.Name, len(n.HostKeys), maxHostKeys)
	}
	if err := checkAddress(n.Address); err != nil {
		return err
	}
	for _, line := range n.HostKeys {
		key, _, err := parseKey(line)
		if err != nil {
			return fault.New(fault.BadInput, "node %q: host key: %w", n.Name, err)
		}
		if publicLine(key) != line {
			return fault.New(fault.BadInput, "node %q: a host key is not in its one form", n.Name)
		}
	}
	return n.Labels.Check()
}

// checkAddress checks where a plain sshd is reached; "" is fine.
func checkAddress(address string) error {
	if address == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	number, portErr := strconv.ParseUint(port, 10, 16)
	addr, addrErr := netip.ParseAddr(host)
	named := hostGrammar.MatchString(strings.ToLower(host)) && len(host) <= maxHostName
	if err != nil || portErr != nil || number == 0 || !named && addrErr != nil || addr.Zone() != "" {
		return fault.New(fault.BadInput, "address %q: want host:port, with IPv6 in brackets", clip(address))
	}
	return nil
}

// has reports whether n has all the labels.
func (n Node) has(labels names.Labels) bool {
	for k, v := range labels {
		if got, ok := n.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Member is a proxy or an authority as it was admitted.
type Member struct {
	ID        names.NodeID   `json:"id"`
	Name      names.NodeName `json:"name"` // unique among nodes and members
	Kind      sshca.Kind     `json:"kind"` // [sshca.KindProxy] or [sshca.KindAuth]
	MemberKey string         `json:"member_key"`
	HostKey   string         `json:"host_key"`
	Addresses []string       `json:"addresses,omitempty"`
	Joined    time.Time      `json:"joined"`
	Version   string         `json:"version,omitempty"`

	Revision int64 `json:"-"`
}

// Proxy is a proxy that is up; it is gone when its lease ends.
type Proxy struct {
	ID        names.NodeID   `json:"id"`
	Name      names.NodeName `json:"name"`
	Addresses []string       `json:"addresses,omitempty"`
	Draining  bool           `json:"draining,omitempty"`

	Revision int64 `json:"-"`
}

// Presence says that a proxy holds a tunnel to a node.
type Presence struct {
	Node  names.NodeID `json:"node"`
	Proxy names.NodeID `json:"proxy"`

	Revision int64 `json:"-"`
}

// LiveSession is a session under way on a node.
type LiveSession struct {
	ID       names.SessionID `json:"id"`
	User     names.UserName  `json:"user"`
	Login    names.Login     `json:"login"`
	Node     names.NodeID    `json:"node"` // "" in a report: who reports
	NodeName names.NodeName  `json:"node_name"`
	Client   string          `json:"client"` // address as the proxy attests it
	Kind     string          `json:"kind"`   // shell, exec or subsystem
	Started  time.Time       `json:"started"`

	// Reporter is the member that serves the session: the node, or the proxy in
	// front of a plain sshd. [Store.Sessions] fills it.
	Reporter names.NodeID `json:"-"`
}

// What a token lets join.
const (
	TokenNode  = "node"
	TokenProxy = "proxy"
)

// Token lets something join the cluster. Its secret is kept as a hash.
type Token struct {
	ID         string           `json:"id"`
	SecretHash string           `json:"secret_hash"`
	Role       string           `json:"role"` // [TokenNode] or [TokenProxy]
	Expires    time.Time        `json:"expires"`
	UsesLeft   int              `json:"uses_left"`
	Names      []names.NodeName `json:"names,omitempty"` // it may give away; empty: any free one
	Labels     names.Labels     `json:"labels,omitempty"`

	Revision int64 `json:"-"`
}

// Cluster is the cluster itself.
type Cluster struct {
	Name    string    `json:"name"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

// AuditCA is the type under which the key that signs the audit log is kept. It
// is a note key, signs no certificate, and is on no policy stream.
const AuditCA sshca.Type = "audit"

// CA is one certificate authority.
type CA struct {
	Type sshca.Type `json:"type"`
	Keys []CAKey    `json:"keys"` // the first signs; all are trusted

	Phase Phase     `json:"phase,omitempty"` // of its rotation; "" is [PhaseStandby]
	Since time.Time `json:"since,omitzero"`  // when that began

	Revision int64 `json:"-"`
}

// CAKey is one key of an authority.
type CAKey struct {
	Public  string    `json:"public"`           // authorized_keys format without a comment
	Sealed  []byte    `json:"sealed,omitempty"` // the private half; absent in the public view
	Created time.Time `json:"created"`
}

// Public returns ca without private keys.
func (ca CA) Public() CA {
	out := ca
	out.Keys = make([]CAKey, len(ca.Keys))
	for i, k := range ca.Keys {
		k.Sealed = nil
		out.Keys[i] = k
	}
	return out
}

// Resource returns ca's public view as policy streams carry it.
func (ca CA) Resource() *accessdv1.Resource {
	return &accessdv1.Resource{
		Key:      &accessdv1.ResourceKey{Kind: KindCA, Name: string(ca.Type)},
		Json:     encode(ca.Public()),
		Revision: ca.Revision,
	}
}
