package remote

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/singleflight"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

const (
	// maxHostKeys bounds the nodes whose certificates a proxy keeps, some 2 KiB
	// each. Another costs one call to the authority.
	maxHostKeys = 4096
	// signTimeout bounds one call to the authority.
	signTimeout = 10 * time.Second
	// signAgain is how long a renewal that failed is not tried again, while the
	// certificate is still good.
	signAgain = time.Minute
)

// hostSigner is the part of the delegation service that [HostKeys] needs.
type hostSigner interface {
	SignNodeHost(ctx context.Context, r *connect.Request[accessdv1.SignNodeHostRequest]) (*connect.Response[accessdv1.SignNodeHostResponse], error)
}

// HostKeys keeps the host certificates with which a proxy answers for plain sshd
// nodes. They are for the proxy's own host key and name the node.
type HostKeys struct {
	signer func() ssh.Signer
	ca     func() ssh.PublicKey
	certs  hostSigner
	now    func() time.Time
	calls  singleflight.Group // by node id

	mu    sync.Mutex
	nodes map[names.NodeID]*list.Element // of *hostKey
	used  list.List                      // the latest first
}

// hostKey is a certificate for one node.
type hostKey struct {
	node   names.NodeID
	name   names.NodeName // it is for
	cert   *ssh.Certificate
	signer ssh.Signer // for cert
	renew  time.Time
	ends   time.Time

	postponed bool // a renewal failed: whoever signed it, it does until renew
}

// NewHostKeys returns a HostKeys that has asked for nothing. signer returns the
// proxy's host key and ca the key that signs host certificates, as they are now;
// nil now is time.Now.
func NewHostKeys(signer func() ssh.Signer, ca func() ssh.PublicKey, certs hostSigner, now func() time.Time) *HostKeys {
	if now == nil {
		now = time.Now
	}
	return &HostKeys{signer: signer, ca: ca, certs: certs, now: now, nodes: map[names.NodeID]*list.Element{}}
}

// For returns the keys to show for n: the proxy's with a certificate that names
// n, and then the plain one, for clients that know no certificates. The public
// text of an error tells the person why.
func (h *HostKeys) For(ctx context.Context, n services.Node) ([]ssh.Signer, error) {
	key := h.signer()
	k := h.look(n, key)
	if h.fresh(k) {
		return []ssh.Signer{k.signer, key}, nil
	}
	signed := h.calls.DoChan(string(n.ID), func() (any, error) {
		if k := h.look(n, key); h.fresh(k) {
			return k.signer, nil // it came since
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signTimeout) // others may wait for it, too
		defer cancel()
		fresh, err := h.sign(ctx, n, key)
		if err != nil {
			return nil, err
		}
		h.keep(fresh)
		return fresh.signer, nil
	})
	var err error
	select {
	case r := <-signed:
		if signer, ok := r.Val.(ssh.Signer); ok && r.Err == nil {
			return []ssh.Signer{signer, key}, nil
		}
		err = r.Err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if k != nil {
		h.postpone(k)
		return []ssh.Signer{k.signer, key}, nil
	}
	if fault.KindOf(err) != fault.Internal {
		return nil, err
	}
	return nil, fault.Wrap(fault.Unavailable, err, fmt.Sprintf("there is no host certificate for node %q now", n.Name))
}

// fresh reports whether there is no reason to ask for another than k: it is not
// time yet, and the host CA signs with the key that signed it.
func (h *HostKeys) fresh(k *hostKey) bool {
	if k == nil || !h.now().Before(k.renew) {
		return false
	}
	ca := h.ca()
	return ca == nil || k.postponed || bytes.Equal(ca.Marshal(), k.cert.SignatureKey.Marshal())
}

// look returns the good certificate that is kept for n and key, or nil.
func (h *HostKeys) look(n services.Node, key ssh.Signer) *hostKey {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.nodes[n.ID]
	if e == nil {
		return nil
	}
	k, _ := e.Value.(*hostKey)
	if k.name != n.Name || !h.now().Before(k.ends) || !bytes.Equal(k.cert.Key.Marshal(), key.PublicKey().Marshal()) {
		return nil
	}
	h.used.MoveToFront(e)
	found := *k
	return &found
}

// sign asks for a certificate.
func (h *HostKeys) sign(ctx context.Context, n services.Node, key ssh.Signer) (*hostKey, error) {
	begun := h.now()
	resp, err := h.certs.SignNodeHost(ctx, connect.NewRequest(&accessdv1.SignNodeHostRequest{
		Node: string(n.ID), PublicKey: string(ssh.MarshalAuthorizedKey(key.PublicKey())),
	}))
	if err != nil {
		return nil, err
	}
	parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(resp.Msg.GetCertificate()))
	if err != nil {
		return nil, fmt.Errorf("read a host certificate: %w", err)
	}
	cert, ok := parsed.(*ssh.Certificate)
	if !ok {
		return nil, errors.New("read a host certificate: it is a plain key")
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		return nil, fmt.Errorf("use a host certificate: %w", err)
	}
	ends := time.Unix(int64(min(cert.ValidBefore, 1<<62)), 0) // the authority's own
	return &hostKey{node: n.ID, name: n.Name, cert: cert, signer: signer, renew: begun.Add(ends.Sub(begun) / 2), ends: ends}, nil
}

// keep keeps k, instead of that which was used longest ago when there are many.
func (h *HostKeys) keep(k *hostKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.nodes[k.node]; e != nil {
		e.Value = k
		h.used.MoveToFront(e)
		return
	}
	h.nodes[k.node] = h.used.PushFront(k)
	if h.used.Len() > maxHostKeys {
		old, _ := h.used.Remove(h.used.Back()).(*hostKey)
		delete(h.nodes, old.node)
	}
}

// postpone keeps k for a while, since its renewal failed.
func (h *HostKeys) postpone(k *hostKey) {
	k.renew, k.postponed = h.now().Add(signAgain), true
	h.keep(k)
}
