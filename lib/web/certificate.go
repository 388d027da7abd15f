package web

import (
	"crypto/tls"
	"time"

	"go.uber.org/zap"
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
type Certificate struct{ cfg CertificateConfig }

// NewCertificate loads or makes the certificate.
func NewCertificate(cfg CertificateConfig) (*Certificate, error) {
	return &Certificate{cfg: cfg}, nil
}

// Get returns the certificate; it is what listener.Config.Certificate wants.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }
