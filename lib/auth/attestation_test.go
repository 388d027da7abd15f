package auth

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"golang.org/x/crypto/ssh"
)

// FuzzCBOR: what is read of an authenticator's word is bounded, and refused or
// read without going beyond it.
func FuzzCBOR(f *testing.F) {
	for _, s := range []string{"a501020326200121582000", "a16b6372656450726f7465637403", "5903e8", "9fff", "bb7fffffffffffffff", "818181818181"} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &cborReader{rest: b}
		if m, err := r.mapping(); err == nil && (len(m) > maxCBORItems || len(r.rest) >= len(b)) {
			t.Errorf("%x: %d items, %d bytes left", b, len(m), len(r.rest))
		}
	})
}

// FuzzAttestation: bytes of a stranger's are refused and nothing else.
func FuzzAttestation(f *testing.F) {
	public := make([]byte, 32)
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct{ Type, Key, Application string }{ssh.KeyAlgoSKED25519, string(public), "ssh:"}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("ssh-sk-attest-v01"), []byte{0xa0})
	sum := sha256.Sum256([]byte("ssh:"))
	f.Add([]byte{}, append(append(append(sum[:], 0x41), make([]byte, 22)...), append([]byte("\xa4\x01\x01\x03\x27\x20\x06\x21\x58\x20"), public...)...))
	f.Fuzz(func(t *testing.T, file, data []byte) {
		if a, err := parseAttestation(file, key); err == nil && a.cert == nil {
			t.Errorf("%q: an attestation without a certificate", file)
		}
		a := &attestation{data: data}
		if a.read(key) == nil && (len(a.aaguid) != 36 || len(data) < 87) {
			t.Errorf("%x: read as of model %q", data, a.aaguid)
		}
	})
}
