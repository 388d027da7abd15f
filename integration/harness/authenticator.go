package harness

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/asn1"
	wire "encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

//go:embed testdata/authenticator.c
var middleware []byte

// Flags of a FIDO authenticator (WebAuthn level 2, section 6.1) and of sk-api.h,
// which has the first two.
const (
	userPresent  = 0x01
	userVerified = 0x04
	attested     = 0x40
	extended     = 0x80
)

// algED25519 is a kind of key in sk-api.h; the other is P-256.
const algED25519 = 1

// Authenticator is a FIDO authenticator in software, as stock ssh and ssh-keygen
// use one: the library Provider hands all they ask to the test, which has the keys.
type Authenticator struct {
	Provider string // for SecurityKeyProvider and ssh-keygen -w
	Root     string // PEM, of who made it

	t      testing.TB
	aaguid [16]byte
	vendor *ecdsa.PrivateKey
	cert   []byte // of vendor, DER

	mu       sync.Mutex
	absent   bool
	careless bool
	signed   int
	handles  map[string]fidoKey
}

// fidoKey is a private key, and whether it signs for nobody it has not verified.
type fidoKey struct {
	private  any
	verifies bool
}

// NewAuthenticator plugs in an authenticator that somebody touches when it blinks.
func NewAuthenticator(t testing.TB) *Authenticator {
	t.Helper()
	a := &Authenticator{t: t, aaguid: [16]byte(random(16)), handles: map[string]fidoKey{}}
	a.certify()
	dir, err := os.MkdirTemp("", "sk") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var live sync.WaitGroup
	live.Go(func() { a.serve(ln, &live) })
	t.Cleanup(func() { ln.Close(); live.Wait() })
	source := filepath.Join(dir, "authenticator.c")
	WriteFile(t, source, string(middleware))
	a.Provider = filepath.Join(dir, "authenticator.so")
	for _, version := range []string{"0x000a0000", "0x000b0000", "0x00090000"} { // of OpenSSH 9.0 to 9.9, 10.0, 8.9
		r := Run(t, nil, "gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-DVERSION="+version, "-DSOCKET=\""+socket+"\"", "-o", a.Provider, source)
		if r.Code != 0 {
			t.Fatalf("gcc: %s", r.Stderr)
		}
		probe := filepath.Join(dir, "probe")
		r = Run(t, nil, "ssh-keygen", "-q", "-t", "ed25519-sk", "-N", "", "-C", "", "-w", a.Provider, "-f", probe)
		if r.Code == 0 {
			return a
		}
	}
	t.Fatal("ssh-keygen takes no middleware that is known here")
	return nil
}

// Key makes a key with ssh-keygen -t KIND, with more options.
func (a *Authenticator) Key(path, kind string, options ...string) string {
	a.t.Helper()
	args := append([]string{"-q", "-t", kind, "-N", "", "-C", "", "-w", a.Provider, "-f", path}, options...)
	if r := Run(a.t, nil, "ssh-keygen", args...); r.Code != 0 {
		a.t.Fatalf("ssh-keygen %q: %s", args, r.Stderr)
	}
	return path
}

// Model returns its AAGUID as people write it.
func (a *Authenticator) Model() string {
	g := a.aaguid
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[:4], g[4:6], g[6:8], g[8:10], g[10:])
}

// Leave has nobody touch the authenticator any more, for as long as away is true.
// It signs all the same, and says in the signature that nobody has.
func (a *Authenticator) Leave(away bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.absent = away
}

// Forget has the authenticator sign without making sure who touches it, whatever
// the key was made for, as none that is sold does.
func (a *Authenticator) Forget(careless bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.careless = careless
}

// Signed returns how many signatures were made.
func (a *Authenticator) Signed() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.signed
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func (a *Authenticator) fail(err error) {
	if err != nil {
		a.t.Fatal(err)
	}
}

// certify gives the authenticator what its maker puts into it.
func (a *Authenticator) certify() {
	root, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.fail(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test Root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, root.Public(), root)
	a.fail(err)
	a.Root = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	a.vendor, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.fail(err)
	id, err := asn1.Marshal(a.aaguid[:])
	a.fail(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, BasicConstraintsValid: true,
		Subject:         pkix.Name{Country: []string{"DE"}, Organization: []string{"Test"}, OrganizationalUnit: []string{"Authenticator Attestation"}, CommonName: "Test Key"},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 45724, 1, 1, 4}, Value: id}},
	}
	a.cert, err = x509.CreateCertificate(rand.Reader, leaf, ca, a.vendor.Public(), root)
	a.fail(err)
}

func (a *Authenticator) serve(ln net.Listener, live *sync.WaitGroup) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		live.Go(func() {
			defer c.Close()
			if err := a.answer(c); err != nil && !errors.Is(err, net.ErrClosed) {
				a.t.Errorf("authenticator: %v", err)
			}
		})
	}
}

// request is what the middleware asks.
type request struct {
	op                             byte
	algorithm                      uint32
	flags                          byte
	data, application, handle, pin []byte
}

func readRequest(r io.Reader) (request, error) {
	var q request
	var head [6]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return q, err
	}
	q.op, q.algorithm, q.flags = head[0], wire.BigEndian.Uint32(head[1:]), head[5]
	for _, b := range []*[]byte{&q.data, &q.application, &q.handle, &q.pin} {
		var n uint32
		if err := wire.Read(r, wire.BigEndian, &n); err != nil {
			return q, err
		}
		*b = make([]byte, n)
		if _, err := io.ReadFull(r, *b); err != nil {
			return q, err
		}
	}
	return q, nil
}

func (a *Authenticator) answer(c net.Conn) error {
	q, err := readRequest(bufio.NewReader(c))
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if q.op == 's' && a.handles[string(q.handle)].verifies && !a.careless { // by a finger: no PIN is asked for
		q.flags |= userVerified
	}
	if a.absent {
		q.flags &^= userPresent | userVerified
	}
	var blobs [5][]byte
	const counter = 7
	if q.op == 'e' {
		blobs, err = a.enroll(q, counter)
		q.flags &^= userVerified // it takes no PIN
	} else {
		a.signed++
		blobs, err = a.sign(q, counter)
	}
	if err != nil {
		return err
	}
	out := wire.BigEndian.AppendUint32(append(make([]byte, 4), q.flags), counter)
	for _, b := range blobs {
		out = append(wire.BigEndian.AppendUint32(out, uint32(len(b))), b...)
	}
	_, err = c.Write(out)
	return err
}

// enroll makes a key and attests it ("packed", WebAuthn level 2, section 8.2).
func (a *Authenticator) enroll(q request, counter uint32) (out [5][]byte, err error) {
	handle := random(32)
	var private any
	var public, cose []byte
	if q.algorithm == algED25519 {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return out, err
		}
		// {1: 1 (OKP), 3: -8 (EdDSA), -1: 6 (Ed25519), -2: key}
		private, public, cose = key, pub, slices.Concat([]byte{0xa4, 1, 1, 3, 0x27, 0x20, 6, 0x21, 0x58, 32}, pub)
	} else {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return out, err
		}
		if public, err = key.PublicKey.Bytes(); err != nil {
			return out, err
		}
		// {1: 2 (EC2), 3: -7 (ES256), -1: 1 (P-256), -2: x, -3: y}
		private, cose = key, slices.Concat([]byte{0xa5, 1, 2, 3, 0x26, 0x20, 1, 0x21, 0x58, 32}, public[1:33], []byte{0x22, 0x58, 32}, public[33:])
	}
	a.handles[string(handle)] = fidoKey{private, q.flags&userVerified != 0}
	flags, extensions := q.flags&(userPresent|userVerified)|attested, []byte(nil)
	if q.flags&userVerified != 0 { // it will not sign without: {"credProtect": 3} (CTAP 2.1, section 12.1)
		flags, extensions = flags|extended, append([]byte{0xa1, 0x6b}, "credProtect\x03"...)
	}
	rp, sum := sha256.Sum256(q.application), sha256.Sum256(q.data)
	data := slices.Concat(rp[:], []byte{flags}, wire.BigEndian.AppendUint32(nil, counter), a.aaguid[:], []byte{0, byte(len(handle))}, handle, cose, extensions)
	signed := sha256.Sum256(slices.Concat(data, sum[:]))
	signature, err := ecdsa.SignASN1(rand.Reader, a.vendor, signed[:])
	wrapped := append([]byte{0x59, byte(len(data) >> 8), byte(len(data))}, data...) // a CBOR byte string
	return [5][]byte{public, handle, signature, a.cert, wrapped}, err
}

// sign signs as PROTOCOL.u2f has it, "SSH U2F Signatures".
func (a *Authenticator) sign(q request, counter uint32) (out [5][]byte, err error) {
	application, sum := sha256.Sum256(q.application), sha256.Sum256(q.data)
	message := slices.Concat(application[:], []byte{q.flags}, wire.BigEndian.AppendUint32(nil, counter), sum[:])
	switch key := a.handles[string(q.handle)].private.(type) {
	case ed25519.PrivateKey:
		out[0] = ed25519.Sign(key, message)
	case *ecdsa.PrivateKey:
		digest := sha256.Sum256(message)
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			return out, err
		}
		out[0], out[1] = r.Bytes(), s.Bytes()
	default:
		return out, errors.New("a key of another authenticator")
	}
	return out, nil
}
