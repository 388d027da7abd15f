// Package sshsig makes and checks the signatures of ssh-keygen -Y over texts
// (OpenSSH PROTOCOL.sshsig).
//
// A signature says with which key, and in which namespace, a text was signed; it
// says nothing of whose key that is. A signature for one namespace is no good in
// another, and none can pass for one of an SSH handshake.
package sshsig

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
)

// The parts of the format, PROTOCOL.sshsig sections 2 and 3.
const (
	magic      = "SSHSIG"
	version    = 1
	hashSHA512 = "sha512"
	hashSHA256 = "sha256"
	header     = "-----BEGIN SSH SIGNATURE-----"
	footer     = "-----END SSH SIGNATURE-----"
	lineLength = 70 // characters of base64, as ssh-keygen writes them
)

// maxArmored bounds a signature that is read, in bytes: one of RSA with 16384
// bits takes half of it.
const maxArmored = 16 << 10

// signedData is what a key signs (section 3), behind magic.
type signedData struct {
	Namespace string
	Reserved  string
	Hash      string
	Sum       []byte
}

// wire is a signature (section 2), behind magic.
type wire struct {
	Version   uint32
	PublicKey []byte
	Namespace string
	Reserved  string
	Hash      string
	Signature []byte
}

// A Signer signs data with the key it has; for RSA with the algorithm
// [ssh.KeyAlgoRSASHA512].
type Signer func(data []byte) (*ssh.Signature, error)

// Sign returns the armored signature of text, made by sign with the key whose
// public half is key.
func Sign(key ssh.PublicKey, namespace string, text []byte, sign Signer) ([]byte, error) {
	sum := sha512.Sum512(text)
	sig, err := sign(toSign(signedData{Namespace: namespace, Hash: hashSHA512, Sum: sum[:]}))
	if err != nil {
		return nil, err
	}
	return armor(append([]byte(magic), ssh.Marshal(wire{
		Version: version, PublicKey: key.Marshal(), Namespace: namespace, Hash: hashSHA512, Signature: ssh.Marshal(sig),
	})...)), nil
}

func toSign(d signedData) []byte { return append([]byte(magic), ssh.Marshal(d)...) }

func armor(raw []byte) []byte {
	var out bytes.Buffer
	out.WriteString(header + "\n")
	text := base64.StdEncoding.EncodeToString(raw)
	for len(text) > 0 {
		n := min(len(text), lineLength)
		out.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	out.WriteString(footer + "\n")
	return out.Bytes()
}

// A Signature is one that was read. It proves nothing until Verify says so.
type Signature struct {
	Key ssh.PublicKey // which may be a certificate

	namespace string
	hash      string
	signature *ssh.Signature
}

// Parse reads an armored signature, with nothing but white space around it, or
// returns a [fault.BadInput] error.
func Parse(armored []byte) (*Signature, error) {
	if len(armored) > maxArmored {
		return nil, fault.New(fault.BadInput, "signature: %d bytes, want at most %d", len(armored), maxArmored)
	}
	body, headed := strings.CutPrefix(strings.TrimSpace(string(armored)), header)
	body, footed := strings.CutSuffix(body, footer)
	if !headed || !footed {
		return nil, fault.New(fault.BadInput, "signature: want what ssh-keygen -Y sign writes, from %q to %q", header, footer)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(body), ""))
	if err != nil {
		return nil, fault.New(fault.BadInput, "signature: not base64")
	}
	raw, ok := bytes.CutPrefix(raw, []byte(magic))
	if !ok {
		return nil, fault.New(fault.BadInput, "signature: it does not begin with %s", magic)
	}
	var w wire
	if err := ssh.Unmarshal(raw, &w); err != nil {
		return nil, fault.New(fault.BadInput, "signature: malformed")
	}
	if w.Version != version {
		return nil, fault.New(fault.BadInput, "signature: version %d, want %d", w.Version, version)
	}
	return w.parse()
}

func (w wire) parse() (*Signature, error) {
	s := &Signature{namespace: w.Namespace, hash: w.Hash, signature: new(ssh.Signature)}
	var err error
	if s.Key, err = ssh.ParsePublicKey(w.PublicKey); err != nil {
		return nil, fault.New(fault.BadInput, "signature: its public key is malformed")
	}
	if err := ssh.Unmarshal(w.Signature, s.signature); err != nil {
		return nil, fault.New(fault.BadInput, "signature: malformed")
	}
	return s, nil
}

// userPresent is the flag of a FIDO signature that says that somebody touched
// the key (PROTOCOL.u2f, "SSH U2F Signatures").
const userPresent = 0x01

// Verify checks that s is one of text for namespace, not with SHA-1, and, when
// its key is a FIDO one, that the key was touched for it. It returns a
// [fault.Denied] error when not.
func (s *Signature) Verify(namespace string, text []byte) error {
	if s.namespace != namespace {
		return fault.New(fault.Denied, "the signature is for namespace %.80q, want %q", s.namespace, namespace)
	}
	var sum []byte
	switch s.hash {
	case hashSHA512:
		full := sha512.Sum512(text)
		sum = full[:]
	case hashSHA256:
		full := sha256.Sum256(text)
		sum = full[:]
	default:
		return fault.New(fault.Denied, "the signature has hash %.80q, want sha512", s.hash)
	}
	if s.signature.Format == ssh.KeyAlgoRSA { // with SHA-1; section 2 rules it out
		return fault.New(fault.Denied, "the signature is made with SHA-1")
	}
	key := Plain(s.Key)
	if err := key.Verify(toSign(signedData{Namespace: namespace, Hash: s.hash, Sum: sum}), s.signature); err != nil {
		return fault.New(fault.Denied, "the signature is not one of this text by this key: %w", err)
	}
	switch key.Type() {
	case ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		if len(s.signature.Rest) == 0 || s.signature.Rest[0]&userPresent == 0 {
			return fault.New(fault.Denied, "the security key was not touched for the signature")
		}
	}
	return nil
}

// Plain returns key or, of a certificate, the key that it is for.
func Plain(key ssh.PublicKey) ssh.PublicKey {
	if c, ok := key.(*ssh.Certificate); ok {
		return c.Key
	}
	return key
}
