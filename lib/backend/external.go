package backend

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"net/url"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/accessd/accessd/lib/fault"
)

// keepalive is how often an idle connection to etcd is tried, and half of how
// long an answer may take; etcd refuses pings more frequent than every 5 s.
const keepalive = 10 * time.Second

// openExternal connects to cfg.Endpoints.
func (b *Backend) openExternal(ctx context.Context, cfg Config) error {
	secure, err := checkEndpoints(cfg.Endpoints)
	if err != nil {
		return err
	}
	cc := clientv3.Config{
		Context:              context.WithoutCancel(ctx), // Close ends it
		Endpoints:            cfg.Endpoints,
		DialKeepAliveTime:    keepalive,
		DialKeepAliveTimeout: keepalive / 2,
		PermitWithoutStream:  true,
		Logger:               quiet(cfg.Log),
	}
	if secure {
		if cc.TLS, err = cfg.tls(); err != nil {
			return err
		}
	}
	if b.client, err = clientv3.New(cc); err != nil {
		return fault.New(fault.BadInput, "connect to etcd: %w", err)
	}
	b.stop = func() error { return nil }
	return nil
}

// checkEndpoints reports whether the endpoints use TLS. All do or none does,
// and none only on this machine.
func checkEndpoints(endpoints []string) (secure bool, err error) {
	for i, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Host == "" || u.Path != "" || (u.Scheme != "https" && u.Scheme != "http") {
			return false, fault.New(fault.BadInput, "etcd endpoint %q: want https://HOST:PORT", e)
		}
		if u.Scheme == "http" && !isLoopback(u.Hostname()) {
			return false, fault.New(fault.BadInput, "etcd endpoint %q: want https; plain http is for this machine only", e)
		}
		if i > 0 && secure != (u.Scheme == "https") {
			return false, fault.New(fault.BadInput, "etcd endpoint %q: all endpoints use https or none does", e)
		}
		secure = u.Scheme == "https"
	}
	return secure, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// tls returns the client's side of TLS. Its certificate is read anew for every
// connection, so that it can be renewed under a running process.
func (cfg *Config) tls() (*tls.Config, error) {
	tc := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fault.New(fault.BadInput, "etcd CA: %w", err)
		}
		tc.RootCAs = x509.NewCertPool()
		if !tc.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.New(fault.BadInput, "etcd CA: %q holds no PEM certificate", cfg.CAFile)
		}
	}
	if cfg.CertFile == "" {
		return tc, nil
	}
	load := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fault.New(fault.BadInput, "etcd client certificate: %w", err)
		}
		return &cert, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	tc.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return tc, nil
}
