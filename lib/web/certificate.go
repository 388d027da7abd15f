package web

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
)

// CertificateConfig configures a [Certificate].
type CertificateConfig struct {
	// CertFile and KeyFile are PEM files; they are read again when they change.
	CertFile, KeyFile string
	// Dir keeps a self-signed certificate, made when there is none, if CertFile
	// and KeyFile are not given.
	Dir   string
	Names []string         // host names and addresses of a self-signed certificate
	Now   func() time.Time // nil is time.Now
	Log   *zap.Logger      // nil discards
}

// Certificate is the certificate shown to TLS clients.
type Certificate struct {
	cfg  CertificateConfig
	self bool // it is self-signed, and ours to renew

	mu      sync.Mutex
	current *tls.Certificate
	version string    // of the files current was read from
	looked  time.Time // when the files were last looked at
}

const (
	// lookEvery bounds how often the files are looked at, which handshakes do.
	lookEvery = time.Second
	// selfSignedTTL and renewBefore are the life of a self-signed certificate.
	// Clients that pin it see a new one at most once a year.
	selfSignedTTL = 2 * 365 * 24 * time.Hour
	renewBefore   = 365 * 24 * time.Hour
	// maxFile bounds what is read of a file, in bytes.
	maxFile = 1 << 20
)

// NewCertificate loads or makes the certificate.
func NewCertificate(cfg CertificateConfig) (*Certificate, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Log = cfg.Log.Named("tls")
	c := &Certificate{cfg: cfg}
	switch {
	case (cfg.CertFile == "") != (cfg.KeyFile == ""):
		return nil, fault.New(fault.BadInput, "TLS: a certificate file needs a key file, and a key file a certificate file")
	case cfg.CertFile == "" && cfg.Dir == "":
		return nil, fault.New(fault.BadInput, "TLS: neither certificate files nor a directory for a self-signed certificate")
	case cfg.CertFile == "":
		c.self = true
		c.cfg.CertFile = filepath.Join(cfg.Dir, "tls.crt")
		c.cfg.KeyFile = filepath.Join(cfg.Dir, "tls.key")
		if err := c.ensureSelfSigned(); err != nil {
			return nil, err
		}
	}
	if err := c.reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// Get returns the certificate; it is what listener.Config.Certificate wants.
// Files that changed are read again; when they cannot be, as in the middle of
// being replaced, the certificate read before is shown on.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.cfg.Now(); now.Sub(c.looked) >= lookEvery {
		c.looked = now
		if err := c.refreshLocked(); err != nil {
			c.cfg.Log.Error("cannot read the new certificate, showing the old one", zap.Error(err))
		}
	}
	return c.current, nil
}

func (c *Certificate) refreshLocked() error {
	if c.self && c.cfg.Now().Add(renewBefore).After(c.current.Leaf.NotAfter) {
		if err := c.makeSelfSigned(); err != nil {
			return err
		}
	}
	version, err := c.filesVersion()
	if err != nil || version == c.version {
		return err
	}
	c.version = version // a bad pair is tried once, until it changes again
	return c.loadLocked()
}

func (c *Certificate) reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.version, err = c.filesVersion(); err != nil {
		return err
	}
	return c.loadLocked()
}

// filesVersion changes when one of the files does.
func (c *Certificate) filesVersion() (string, error) {
	var v strings.Builder
	for _, name := range []string{c.cfg.CertFile, c.cfg.KeyFile} {
		fi, err := os.Stat(name)
		if err != nil {
			return "", fault.New(fault.BadInput, "TLS: %w", err)
		}
		if fi.Size() > maxFile {
			return "", fault.New(fault.BadInput, "TLS: %q has %d bytes, want at most %d", name, fi.Size(), maxFile)
		}
		fmt.Fprintf(&v, "%d %d;", fi.ModTime().UnixNano(), fi.Size())
	}
	return v.String(), nil
}

func (c *Certificate) loadLocked() error {
	cert, err := tls.LoadX509KeyPair(c.cfg.CertFile, c.cfg.KeyFile)
	if err != nil {
		return fault.New(fault.BadInput, "TLS: certificate %q with key %q: %w", c.cfg.CertFile, c.cfg.KeyFile, err)
	}
	c.current = &cert
	return nil
}

// ensureSelfSigned makes a self-signed certificate unless a good one is there.
// A pair of which one file is missing, as after a crash between the two, or that
// is malformed or runs out, is made anew.
func (c *Certificate) ensureSelfSigned() error {
	cert, err := tls.LoadX509KeyPair(c.cfg.CertFile, c.cfg.KeyFile)
	if err == nil && c.cfg.Now().Add(renewBefore).Before(cert.Leaf.NotAfter) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.cfg.Log.Warn("making a new self-signed certificate", zap.Error(err))
	}
	return c.makeSelfSigned()
}

func (c *Certificate) makeSelfSigned() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a TLS key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fmt.Errorf("make a TLS serial number: %w", err)
	}
	now := c.cfg.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "accessd"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(selfSignedTTL),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, name := range append([]string{"localhost", "127.0.0.1", "::1"}, c.cfg.Names...) {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("make a self-signed certificate: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the TLS key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(c.cfg.KeyFile), 0o700); err != nil {
		return fmt.Errorf("make the directory of the TLS certificate: %w", err)
	}
	if err := writePEM(c.cfg.KeyFile, "PRIVATE KEY", der); err != nil {
		return err
	}
	return writePEM(c.cfg.CertFile, "CERTIFICATE", cert)
}

// writePEM replaces a file so that it is whole at every moment.
func writePEM(name, kind string, der []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %q: %w", name, err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing to remove
	err = errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", name, err)
	}
	return nil
}
