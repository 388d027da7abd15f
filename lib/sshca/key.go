package sshca

import (
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"regexp"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
)

// Sizes of RSA keys, in bits. Below, a key can be factored; above, each
// signature costs the verifier more than it is worth (x/crypto alone would take
// 16384).
const (
	minRSA = 2048
	maxRSA = 4096
)

// Generate returns a fresh Ed25519 key and its signer.
func Generate() (ed25519.PrivateKey, ssh.Signer) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic("sshca: internal error: " + err.Error()) // crypto/rand never fails
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		panic("sshca: internal error: " + err.Error()) // every Ed25519 key has a signer
	}
	return key, signer
}

// checkKey refuses a key that may not be certified, before anything is computed
// with it.
func checkKey(key ssh.PublicKey) error {
	if key == nil {
		return refuse(CodeNotCertificate, "there is no key")
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return refuse(CodeNested, "the certified key is itself a certificate")
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256,
		ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return nil
	case ssh.KeyAlgoRSA:
		return checkRSA(key)
	}
	return refuse(CodeWeakKey, "%q keys are not accepted", key.Type())
}

func checkRSA(key ssh.PublicKey) error {
	c, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return refuse(CodeWeakKey, "the RSA key does not tell its size")
	}
	k, ok := c.CryptoPublicKey().(*rsa.PublicKey)
	if !ok {
		return refuse(CodeWeakKey, "the RSA key does not tell its size")
	}
	if bits := k.N.BitLen(); bits < minRSA || bits > maxRSA {
		return refuse(CodeWeakKey, "the RSA key has %d bits, want %d to %d", bits, minRSA, maxRSA)
	}
	return nil
}

// Pin returns the pin of a host authority's key, "sha256:" and the hexadecimal
// SHA-256 of its wire form. A member that joins knows the cluster by it.
func Pin(hostCA ssh.PublicKey) string {
	sum := sha256.Sum256(hostCA.Marshal())
	return "sha256:" + hex.EncodeToString(sum[:])
}

var pinGrammar = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// ParsePin returns s unless it is not what [Pin] returns.
func ParsePin(s string) (string, error) {
	if !pinGrammar.MatchString(s) {
		return "", fault.New(fault.BadInput, "CA pin %.80q: want sha256: and 64 hexadecimal digits in lower case", s)
	}
	return s, nil
}
