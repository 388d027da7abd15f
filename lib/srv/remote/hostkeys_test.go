package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshca"
)

// notary signs host certificates that are good for an hour.
type notary struct {
	ca    ssh.Signer
	now   func() time.Time
	calls atomic.Int32
	gate  chan struct{} // a call waits for it twice; nil: none does
	err   error
	plain bool // it answers with a plain key
}

func (n *notary) SignNodeHost(ctx context.Context, r *connect.Request[accessdv1.SignNodeHostRequest]) (*connect.Response[accessdv1.SignNodeHostResponse], error) {
	n.calls.Add(1)
	if n.gate != nil {
		<-n.gate // says that it is under way
		select {
		case <-n.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if n.err != nil {
		return nil, n.err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(r.Msg.GetPublicKey()))
	if err != nil {
		return nil, err
	}
	if n.plain {
		return connect.NewResponse(&accessdv1.SignNodeHostResponse{Certificate: r.Msg.GetPublicKey()}), nil
	}
	cert, err := sshca.MintHost(n.ca, sshca.HostRequest{
		Key: key, KeyID: "node:" + r.Msg.GetNode(), Principals: []string{r.Msg.GetNode()},
		ValidAfter: n.now().Add(-time.Minute), ValidBefore: n.now().Add(time.Hour),
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&accessdv1.SignNodeHostResponse{Certificate: string(ssh.MarshalAuthorizedKey(cert))}), nil
}

// keyring is a HostKeys with its clock, its notary and its key.
type keyring struct {
	*HostKeys

	n     *notary
	clock atomic.Int64 // seconds since the start
	key   atomic.Pointer[ssh.Signer]
}

func newKeyring() *keyring {
	k := &keyring{n: &notary{}}
	start := time.Now()
	_, k.n.ca = sshca.Generate()
	k.n.now = func() time.Time { return start.Add(time.Duration(k.clock.Load()) * time.Second) }
	_, key := sshca.Generate()
	k.key.Store(&key)
	k.HostKeys = NewHostKeys(func() ssh.Signer { return *k.key.Load() }, func() ssh.PublicKey { return k.n.ca.PublicKey() }, k.n, k.n.now)
	return k
}

// shows fails the test unless what is shown for node is good: a certificate of
// the host authority for it, and the plain key.
func (k *keyring) shows(t *testing.T, node services.Node) *ssh.Certificate {
	t.Helper()
	keys, err := k.For(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 2 {
		t.Fatalf("%d keys, want a certificate and a plain key", len(keys))
	}
	cert, ok := keys[0].PublicKey().(*ssh.Certificate)
	if !ok {
		t.Fatalf("the first key is %s, want a certificate", keys[0].PublicKey().Type())
	}
	trust := sshca.Trust{Host: []ssh.PublicKey{k.n.ca.PublicKey()}}
	if err := trust.CheckHost(cert, string(node.ID), k.n.now()); err != nil {
		t.Error(err)
	}
	plain := (*k.key.Load()).PublicKey()
	if !bytes.Equal(cert.Key.Marshal(), plain.Marshal()) || !bytes.Equal(keys[1].PublicKey().Marshal(), plain.Marshal()) {
		t.Error("the keys are not the proxy's own")
	}
	return cert
}

func newNode() services.Node {
	return services.Node{ID: names.NewNodeID(), Name: "db-1", Kind: services.NodeSSHD}
}

func TestHostKeysAreKeptAndRenewedAtHalfLife(t *testing.T) {
	k, node := newKeyring(), newNode()
	for _, step := range []struct {
		at    int64 // seconds
		calls int32
		what  string
	}{
		{0, 1, "the first use"},
		{29 * 60, 1, "before half its life"},
		{31 * 60, 2, "after half its life"},
		{32 * 60, 2, "the renewed one"},
	} {
		k.clock.Store(step.at)
		k.shows(t, node)
		if got := k.n.calls.Load(); got != step.calls {
			t.Errorf("%s: the authority was asked %d times, want %d", step.what, got, step.calls)
		}
	}
	_, other := sshca.Generate()
	k.key.Store(&other)
	k.shows(t, node)
	if got := k.n.calls.Load(); got != 3 {
		t.Errorf("with another host key: asked %d times, want 3", got)
	}
	node.Name = "db-2"
	k.shows(t, node)
	if got := k.n.calls.Load(); got != 4 {
		t.Errorf("after a change of name: asked %d times, want 4", got)
	}
	_, k.n.ca = sshca.Generate()
	k.shows(t, node)
	k.shows(t, node)
	if got := k.n.calls.Load(); got != 5 {
		t.Errorf("after the host CA got another key: asked %d times, want 5", got)
	}
	k.n.ca, k.n.err = *k.key.Load(), errors.New("away")
	if keys, err := k.For(t.Context(), node); err != nil || len(keys) != 2 {
		t.Errorf("with another key of the host CA and no authority: %d keys, %v, want the old ones", len(keys), err)
	}
}

// TestHostKeysOutliveTheAuthority: while a certificate is good it is shown,
// though it cannot be renewed, and the authority is not asked for each client.
func TestHostKeysOutliveTheAuthority(t *testing.T) {
	k, node := newKeyring(), newNode()
	k.shows(t, node)
	k.n.err = errors.New("dial 10.0.0.1: refused")
	k.clock.Store(40 * 60)
	for range 3 {
		k.shows(t, node)
	}
	if got := k.n.calls.Load(); got != 2 {
		t.Errorf("asked %d times, want one try to renew", got)
	}
	k.clock.Store(42 * 60)
	k.shows(t, node)
	if got := k.n.calls.Load(); got != 3 {
		t.Errorf("asked %d times, want another try a minute later", got)
	}
	k.clock.Store(61 * 60)
	_, err := k.For(t.Context(), node)
	if want := `there is no host certificate for node "db-1" now`; fault.Public(err) != want || !fault.Is(err, fault.Unavailable) {
		t.Errorf("after its end: %v, public %q, want %q", err, fault.Public(err), want)
	}
	k.n.err = fault.New(fault.NotFound, "no such node")
	if _, err := k.For(t.Context(), node); fault.Public(err) != "no such node" {
		t.Errorf("a refusal of the authority reads %q", fault.Public(err))
	}
	k.n.err, k.n.plain = nil, true
	if _, err := k.For(t.Context(), node); err == nil {
		t.Error("a plain key was taken for a certificate")
	}
}

func TestHostKeysAskOnce(t *testing.T) {
	k, node := newKeyring(), newNode()
	k.n.gate = make(chan struct{})
	gone, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := k.For(gone, node)
		left <- err
	}()
	k.n.gate <- struct{}{} // the call is under way
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := k.For(t.Context(), node); err != nil {
				t.Error(err)
			}
		})
	}
	leave() // who asked first does not stop the others
	if err := <-left; err == nil {
		t.Error("For returned keys that there are not yet")
	}
	close(k.n.gate)
	wg.Wait()
	// A caller that came after the answer finds it kept.
	if got := k.n.calls.Load(); got != 1 {
		t.Errorf("asked %d times, want once", got)
	}
}

func TestHostKeysAreBounded(t *testing.T) {
	k := newKeyring()
	first := newNode()
	k.shows(t, first)
	cert := k.look(first, *k.key.Load())
	for i := range maxHostKeys {
		other := *cert
		other.node = names.NodeID(fmt.Sprintf("node-%d", i))
		k.keep(&other)
	}
	if k.look(first, *k.key.Load()) != nil {
		t.Error("the certificate used longest ago is still kept")
	}
	if len(k.nodes) != maxHostKeys || k.used.Len() != maxHostKeys {
		t.Errorf("%d and %d are kept, want %d", len(k.nodes), k.used.Len(), maxHostKeys)
	}
}
