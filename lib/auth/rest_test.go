package auth

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/backend"
	"github.com/accessd/accessd/lib/backend/backendtest"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// TestDiskThief: THREATS "disk thief" and "grep of the data dir". Nothing on
// disk but the seal key's file opens anything: no CA key, token, invite,
// password, TOTP secret or grant is there in the clear, in any usual form.
func TestDiskThief(t *testing.T) {
	dir, id := t.TempDir(), names.NewNodeID()
	sealKey := filepath.Join(t.TempDir(), "seal.key")
	w := newWorld(t, plan{dir: dir, id: id, sealKey: sealKey})
	p := w.join(sshca.KindProxy, "edge-1")
	token := w.token(&accessdv1.AddTokenRequest{Role: "node", Uses: 2})
	open := w.addUser("bob", "access")
	invite := w.addUser("alice", "access")
	d := w.desk(p, "alice")
	done := d.enrol(invite)
	n := newMember(sshca.KindNode, "web-1")
	must(t, w.joiner(n.key).Join, n.request(token))
	if _, err := call(t, w.joiner(n.key).Join, newMember(sshca.KindNode, "web-2").request(token[:13]+strings.Repeat("7", 52))); err == nil {
		t.Fatal("a wrong token was taken")
	}
	if _, err := d.signIn("mistyped "+goodPassword, "123456"); err == nil {
		t.Fatal("a wrong password was taken")
	}
	secrets := map[string][]byte{
		"the token's secret": []byte(strings.Split(token, ".")[1]),
		"the used invite":    []byte(strings.TrimPrefix(invite, invitePrefix)),
		"the open invite":    []byte(strings.TrimPrefix(open, invitePrefix)),
		"the password":       []byte(goodPassword),
		"the TOTP secret":    decodeBase32(t, d.secret),
		"the TOTP text":      []byte(d.secret),
		"the grant":          []byte(done.GetGrant()),
	}
	for _, ca := range caTypes() {
		rec, err := w.cfg.Store.CA(t.Context(), ca)
		if err != nil {
			t.Fatal(err)
		}
		der, err := w.cfg.Sealer.Unseal(t.Context(), caPurpose(ca), rec.Keys[0].Sealed)
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			t.Fatal(err)
		}
		secrets["the "+string(ca)+" CA's key"] = key.(ed25519.PrivateKey).Seed()
	}
	w.stop()
	files := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for name, secret := range secrets {
			for form, b := range forms(secret) {
				if bytes.Contains(data, b) {
					t.Errorf("%s holds %s (%s)", path, name, form)
				}
			}
		}
		return nil
	})
	if err != nil || files < 3 {
		t.Errorf("looked at %d files: %v", files, err)
	}
}

func forms(b []byte) map[string][]byte {
	return map[string][]byte{
		"raw":       b,
		"hex":       []byte(hex.EncodeToString(b)),
		"base64":    []byte(base64.RawStdEncoding.EncodeToString(b)),
		"base64url": []byte(base64.RawURLEncoding.EncodeToString(b)),
	}
}

// TestTwoAuthorities: two on one external etcd are one cluster. What one does
// the other knows, a token of two is taken apart by both, and a session is
// ended through the one that does not hold the node's stream.
func TestTwoAuthorities(t *testing.T) {
	cluster := backendtest.StartCluster(t)
	key := filepath.Join(t.TempDir(), "seal.key")
	start := func() *world {
		b, err := backend.Open(t.Context(), backend.Config{
			Endpoints: cluster.Endpoints, CAFile: cluster.CAFile, CertFile: cluster.CertFile, KeyFile: cluster.KeyFile,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return newWorld(t, plan{backend: b, sealKey: key})
	}
	one, two := start(), start()
	if one.cfg.Keys.ClusterID() != two.cfg.Keys.ClusterID() || pins(one.cfg.Keys.Trust().User)[0] != pins(two.cfg.Keys.Trust().User)[0] {
		t.Fatal("two authorities on one store are two clusters")
	}
	token := one.token(&accessdv1.AddTokenRequest{Role: "node"})
	node := newMember(sshca.KindNode, "web-1")
	two.admitted(node, must(t, two.joiner(node.key).Join, node.request(token)))
	if _, err := call(t, one.joiner(node.key).Join, newMember(sshca.KindNode, "web-2").request(token)); !fault.Is(err, fault.Denied) {
		t.Errorf("the token is good again at the other authority: %v", err)
	}
	one.addUser("alice", "access")
	await(t, two, func() bool { _, ok := two.policy.User("alice"); return ok })

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := node.Instructions(ctx, connect.NewRequest(&accessdv1.InstructionsRequest{})) // held by two
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	defer cancel()
	sid := names.NewSessionID()
	must(t, node.ReportSessions, node.report(sid))
	must(t, one.admin().KillSession, &accessdv1.KillSessionRequest{Id: string(sid)})
	if !s.Receive() || s.Msg().GetKillSession().GetSession() != string(sid) {
		t.Errorf("the node was told %v, %v", s.Msg(), s.Err())
	}

	serials := map[uint64]bool{}
	for _, w := range []*world{one, two, one, two} {
		_, k := sshca.Generate()
		serials[must(t, w.admin().SignUser, &accessdv1.SignUserRequest{Name: "alice", PublicKey: keyLine(k.PublicKey())}).GetSerial()] = true
	}
	if len(serials) != 4 {
		t.Errorf("4 certificates of two authorities have %d serial numbers", len(serials))
	}
	audit := must(t, one.admin().ExportCA, &accessdv1.ExportCARequest{Type: "audit"})
	if len(audit.GetPublicKeys()) != 2 {
		t.Errorf("audit keys = %v, want both authorities'", audit.GetPublicKeys())
	}
}

// BenchmarkCertificates issues people's certificates, each with its serial
// number and its durable event: budget 15, at least 5,000 a second and core.
func BenchmarkCertificates(b *testing.B) {
	w := newWorld(b, plan{})
	w.addUser("alice", "access")
	sub, err := w.subject(b.Context(), "alice")
	if err != nil {
		b.Fatal(err)
	}
	_, key := sshca.Generate()
	ask := sub.request()
	ask.Key, ask.ValidBefore = key.PublicKey(), w.clock.Now().Add(w.cfg.UserTTL)
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := w.issueUser(b.Context(), userCert{UserRequest: ask}); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
}

// BenchmarkSignUser is the whole call of "users sign".
func BenchmarkSignUser(b *testing.B) {
	w := newWorld(b, plan{})
	w.addUser("alice", "access")
	_, key := sshca.Generate()
	req := &accessdv1.SignUserRequest{Name: "alice", PublicKey: keyLine(key.PublicKey())}
	c := w.admin()
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.SignUser(b.Context(), connect.NewRequest(req)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
