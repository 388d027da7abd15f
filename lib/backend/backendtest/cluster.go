package backendtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/backend"
)

// Cluster is an etcd cluster of three members in this process, on loopback,
// with TLS and client certificates demanded.
type Cluster struct {
	Endpoints                 []string
	CAFile, CertFile, KeyFile string

	members []*member
}

type member struct {
	config  func() *embed.Config
	running *embed.Etcd // nil while stopped
}

const (
	members = 3
	// tickMs and electionMs fit members that share a busy machine.
	tickMs, electionMs = 50, 500
)

// StartCluster starts a cluster that ends with the test.
func StartCluster(t testing.TB) *Cluster {
	t.Helper()
	dir := t.TempDir()
	c := &Cluster{
		CAFile:   filepath.Join(dir, "ca.pem"),
		CertFile: filepath.Join(dir, "cert.pem"),
		KeyFile:  filepath.Join(dir, "key.pem"),
	}
	c.writeCertificates(t)
	var peers []string
	peerURLs, clientURLs := freeURLs(t), freeURLs(t)
	for i, u := range peerURLs {
		peers = append(peers, fmt.Sprintf("m%d=%s", i, u.String()))
		c.Endpoints = append(c.Endpoints, clientURLs[i].String())
	}
	for i := range members {
		c.members = append(c.members, &member{config: func() *embed.Config {
			cfg := embed.NewConfig()
			cfg.Name, cfg.Dir = fmt.Sprintf("m%d", i), filepath.Join(dir, fmt.Sprintf("m%d", i))
			cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = peerURLs[i:i+1], peerURLs[i:i+1]
			cfg.ListenClientUrls, cfg.AdvertiseClientUrls = clientURLs[i:i+1], clientURLs[i:i+1]
			cfg.InitialCluster = strings.Join(peers, ",")
			cfg.TickMs, cfg.ElectionMs = tickMs, electionMs
			cfg.ClientTLSInfo = transport.TLSInfo{CertFile: c.CertFile, KeyFile: c.KeyFile, TrustedCAFile: c.CAFile, ClientCertAuth: true}
			cfg.PeerTLSInfo = cfg.ClientTLSInfo
			cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
			return cfg
		}})
	}
	t.Cleanup(func() {
		for i := range members {
			c.Stop(i)
		}
	})
	c.StartAll(t)
	return c
}

// StartAll starts every member that does not run and waits for all.
func (c *Cluster) StartAll(t testing.TB) {
	t.Helper()
	for _, m := range c.members {
		if m.running != nil {
			continue
		}
		e, err := embed.StartEtcd(m.config())
		if err != nil {
			t.Fatal(err)
		}
		m.running = e
	}
	for _, m := range c.members {
		select {
		case <-m.running.Server.ReadyNotify():
		case <-t.Context().Done():
			t.Fatal("the cluster did not get ready")
		}
	}
}

// Stop stops a member, if it runs.
func (c *Cluster) Stop(i int) {
	if e := c.members[i].running; e != nil {
		e.Close()
		c.members[i].running = nil
	}
}

// Config returns how a backend connects to the cluster.
func (c *Cluster) Config() backend.Config {
	return backend.Config{Endpoints: c.Endpoints, CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile}
}

// Open returns a backend on the cluster, which ends with the test.
func (c *Cluster) Open(t testing.TB) *backend.Backend {
	t.Helper()
	b, err := backend.Open(t.Context(), c.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return b
}

// Compact makes the cluster forget what was before a revision; it is a
// [Compact].
func (c *Cluster) Compact(ctx context.Context, revision int64) error {
	info := transport.TLSInfo{CertFile: c.CertFile, KeyFile: c.KeyFile, TrustedCAFile: c.CAFile}
	tc, err := info.ClientConfig()
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints, TLS: tc, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	return err
}

// freeURLs returns a URL on a free port for each member.
func freeURLs(t testing.TB) []url.URL {
	t.Helper()
	var urls []url.URL
	for range members {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close() // after all are known, so that they differ
		urls = append(urls, url.URL{Scheme: "https", Host: ln.Addr().String()})
	}
	return urls
}

// writeCertificates makes a CA and one certificate that serves members and
// clients alike.
func (c *Cluster) writeCertificates(t testing.TB) {
	t.Helper()
	caKey, leafKey := newKey(t), newKey(t)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "etcd"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	write := func(file, kind string, der []byte, err error) {
		if err == nil {
			err = os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	write(c.CAFile, "CERTIFICATE", der, err)
	der, err = x509.CreateCertificate(rand.Reader, leaf, ca, leafKey.Public(), caKey)
	write(c.CertFile, "CERTIFICATE", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(leafKey)
	write(c.KeyFile, "PRIVATE KEY", der, err)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
