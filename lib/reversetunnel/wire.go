package reversetunnel

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"io"
	"math/big"
	"net/netip"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/srv/listener"
	"github.com/accessd/accessd/lib/sshwire"
)

const (
	// headerVersion is the only one there is.
	headerVersion = 1
	// maxHeader bounds a header without its length, in bytes: two short texts
	// and two numbers.
	maxHeader = 256
	// idSize is the length of a connection's id, in bytes.
	idSize = 8
	// maxPeers bounds the proxies an agent is told of.
	maxPeers = 256
	// maxAddresses and maxAddress bound the addresses of one of them.
	maxAddresses = 16
	maxAddress   = 264 // a host name and a port
)

// header is what a proxy writes on a data connection when it takes it into use:
// a length in four bytes, then the fields as in RFC 4251, section 5.
type header struct {
	from netip.AddrPort // the client, as the proxy attests it
	id   [idSize]byte   // the same in the logs of both ends
}

// headerWire is a header's form for [ssh.Marshal].
type headerWire struct {
	Version    uint32
	OriginAddr string
	OriginPort uint32
	ID         [idSize]byte
}

func newHeader(from netip.AddrPort) header {
	h := header{from: from}
	_, _ = rand.Read(h.id[:]) // never fails
	return h
}

func (h header) marshal() []byte {
	body := ssh.Marshal(headerWire{headerVersion, h.from.Addr().String(), uint32(h.from.Port()), h.id})
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// readHeader reads one header from r and nothing behind it.
func readHeader(r io.Reader) (header, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return header{}, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxHeader {
		return header{}, fault.New(fault.BadInput, "data header has %d bytes, want at most %d", n, maxHeader)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return header{}, err
	}
	return parseHeader(body)
}

func parseHeader(body []byte) (header, error) {
	var w headerWire
	if err := ssh.Unmarshal(body, &w); err != nil {
		return header{}, fault.Wrap(fault.BadInput, err, "data header is malformed")
	}
	if w.Version != headerVersion {
		return header{}, fault.New(fault.BadInput, "data header has version %d, want %d", w.Version, headerVersion)
	}
	from := sshwire.ParseOrigin(w.OriginAddr, w.OriginPort)
	if !from.IsValid() || from.Addr().String() != w.OriginAddr {
		return header{}, fault.New(fault.BadInput, "data header names no client address")
	}
	return header{from: from, id: w.ID}, nil
}

// ticketSize is the length of a ticket, in bytes.
const ticketSize = 32

// ticketHash is what is kept of a ticket: to find it by its hash takes as long
// for a good guess as for a bad one.
type ticketHash [sha256.Size]byte

// keyHash is the SHA-256 of a public key's SubjectPublicKeyInfo.
type keyHash [sha256.Size]byte

func parseKeyHash(b []byte) (h keyHash, ok bool) {
	return h, copy(h[:], b) == len(h) && len(b) == len(h)
}

// dataKey is one end's key for TLS, made afresh by each process. Nobody vouches
// for it but the control connection on which its hash is told.
type dataKey struct {
	cert tls.Certificate
	hash keyHash
}

func newDataKey() (*dataKey, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	// Nothing in the certificate is looked at but its key.
	form := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "accessd-data"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280, section 4.1.2.5
	}
	der, err := x509.CreateCertificate(rand.Reader, form, form, public, private)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &dataKey{
		cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf},
		hash: sha256.Sum256(leaf.RawSubjectPublicKeyInfo),
	}, nil
}

// server returns the proxy's TLS configuration. Who the peer is shows only with
// the ticket, so any key may come this far.
func (k *dataKey) server() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{k.cert},
		ClientAuth:             tls.RequireAnyClientCert,
		NextProtos:             []string{listener.ALPNData},
		SessionTicketsDisabled: true,
	}
}

// client returns the agent's TLS configuration towards the proxy whose key has
// the given hash.
func (k *dataKey) client(proxy keyHash) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{k.cert},
		NextProtos:         []string{listener.ALPNData},
		InsecureSkipVerify: true, //nolint:gosec // G402: VerifyConnection pins the very key
		VerifyConnection: func(state tls.ConnectionState) error {
			if peerHash(state) != proxy {
				return fault.New(fault.Denied, "the data connection does not show the proxy's key")
			}
			return nil
		},
	}
}

// peerHash returns the hash of the key the peer of a TLS connection has proven.
func peerHash(state tls.ConnectionState) keyHash {
	if len(state.PeerCertificates) == 0 {
		return keyHash{}
	}
	return sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
}
