package sshsig_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshsig"
)

const (
	namespace = "accessd-request@example"
	text      = "accessd access request 1\nreason: \"grün\"\n"
)

// keygen makes a key with ssh-keygen and returns its file and the key.
func keygen(t *testing.T, args ...string) (string, ssh.Signer) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	run(t, "", append([]string{"-q", "-N", "", "-C", "", "-f", file}, args...)...)
	pemText, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(pemText)
	if err != nil {
		t.Fatal(err)
	}
	return file, signer
}

func run(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command("ssh-keygen", args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil {
		t.Fatalf("ssh-keygen %q: %v\n%s%s", args, err, out.String(), talk.String())
	}
	return out.String()
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// sign signs as an agent does: RSA with SHA-512.
func sign(t *testing.T, s ssh.Signer, text string) []byte {
	t.Helper()
	out, err := sshsig.Sign(s.PublicKey(), namespace, []byte(text), func(data []byte) (*ssh.Signature, error) {
		if s.PublicKey().Type() == ssh.KeyAlgoRSA {
			return s.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, data, ssh.KeyAlgoRSASHA512)
		}
		return s.Sign(rand.Reader, data)
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What ssh-keygen signs is taken here, and what is signed here ssh-keygen takes,
// for every type of key.
func TestInteroperates(t *testing.T) {
	for _, args := range [][]string{{"-t", "ed25519"}, {"-t", "ecdsa", "-b", "256"}, {"-t", "ecdsa", "-b", "521"}, {"-t", "rsa", "-b", "2048"}} {
		t.Run(strings.Join(args[1:], " "), func(t *testing.T) {
			t.Parallel()
			file, signer := keygen(t, args...)
			for _, hash := range []string{"sha256", "sha512"} {
				theirs := run(t, text, "-Y", "sign", "-q", "-f", file, "-n", namespace, "-O", "hashalg="+hash)
				s, err := sshsig.Parse([]byte(theirs))
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Verify(namespace, []byte(text)); err != nil {
					t.Errorf("ssh-keygen's, %s: %v", hash, err)
				}
				if !bytes.Equal(s.Key.Marshal(), signer.PublicKey().Marshal()) {
					t.Errorf("the signature is by %s", s.Key.Type())
				}
			}
			signers := write(t, "signers", "lea "+string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
			signature := write(t, "signature", string(sign(t, signer, text)))
			run(t, text, "-Y", "verify", "-f", signers, "-I", "lea", "-n", namespace, "-s", signature)
		})
	}
}

// A signature by a key that has a certificate names the certificate.
func TestCertificateIsItsKey(t *testing.T) {
	file, signer := keygen(t, "-t", "ed25519")
	ca, _ := keygen(t, "-t", "ed25519")
	run(t, "", "-q", "-s", ca, "-I", "lea", "-n", "user:lea", file+".pub")
	s, err := sshsig.Parse([]byte(run(t, text, "-Y", "sign", "-q", "-f", file+"-cert.pub", "-n", namespace)))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Key.(*ssh.Certificate); !ok {
		t.Errorf("key = %T, want a certificate", s.Key)
	}
	if err := s.Verify(namespace, []byte(text)); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(sshsig.Plain(s.Key).Marshal(), signer.PublicKey().Marshal()) {
		t.Error("the plain key is another")
	}
}

func TestRefuses(t *testing.T) {
	_, private, _ := ed25519.GenerateKey(rand.Reader)
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	good := string(sign(t, signer, text))
	s, err := sshsig.Parse([]byte("\n" + good + "\n\n"))
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"another text":      s.Verify(namespace, []byte(text+"\n")),
		"another namespace": s.Verify("file", []byte(text)),
	} {
		if !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v, want a denial", what, err)
		}
	}
	raw := func(edit func(b []byte) []byte) string {
		block, _ := pem.Decode([]byte(good)) // the same but for the length of lines
		b := edit(bytes.Clone(block.Bytes))
		return "-----BEGIN SSH SIGNATURE-----\n" + base64.StdEncoding.EncodeToString(b) + "\n-----END SSH SIGNATURE-----\n"
	}
	for what, armored := range map[string]string{
		"nothing":          "",
		"a public key":     string(ssh.MarshalAuthorizedKey(signer.PublicKey())),
		"no end":           strings.TrimSuffix(good, "-----END SSH SIGNATURE-----\n"),
		"more behind it":   good + "x",
		"two":              good + good,
		"not base64":       strings.Replace(good, "U1NI", "!!!!", 1),
		"another magic":    raw(func(b []byte) []byte { b[0] = 'X'; return b }),
		"another version":  raw(func(b []byte) []byte { b[9] = 2; return b }),
		"cut":              raw(func(b []byte) []byte { return b[:len(b)-1] }),
		"more in it":       raw(func(b []byte) []byte { return append(b, 0) }),
		"larger than ever": strings.Repeat("A", 17<<10),
	} {
		if _, err := sshsig.Parse([]byte(armored)); !fault.Is(err, fault.BadInput) {
			t.Errorf("%s: %v, want bad input", what, err)
		}
	}
}

// A signature of RSA with SHA-1 is none, whatever it is over.
func TestRefusesSHA1(t *testing.T) {
	_, signer := keygen(t, "-t", "rsa", "-b", "2048")
	armored, err := sshsig.Sign(signer.PublicKey(), namespace, []byte(text), func(data []byte) (*ssh.Signature, error) {
		return signer.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, data, ssh.KeyAlgoRSA)
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := sshsig.Parse(armored)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(namespace, []byte(text)); !fault.Is(err, fault.Denied) {
		t.Errorf("Verify = %v, want a denial", err)
	}
}

// A security key that was not touched has not agreed to anything. The signature
// is a good one: the flags are part of what is signed (PROTOCOL.u2f).
func TestSecurityKeyIsTouched(t *testing.T) {
	public, private, _ := ed25519.GenerateKey(rand.Reader)
	const application = "ssh:"
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct{ Type, Key, Application string }{ssh.KeyAlgoSKED25519, string(public), application}))
	if err != nil {
		t.Fatal(err)
	}
	for flags, touched := range map[byte]bool{0: false, 1: true, 4: false, 5: true} {
		armored, err := sshsig.Sign(key, namespace, []byte(text), func(data []byte) (*ssh.Signature, error) {
			return skSign(private, application, flags, data), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		s, err := sshsig.Parse(armored)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(namespace, []byte(text)); (err == nil) != touched {
			t.Errorf("flags %#x: %v, want it good %t", flags, err, touched)
		}
	}
}

// skSign signs as a security key does.
func skSign(private ed25519.PrivateKey, application string, flags byte, data []byte) *ssh.Signature {
	const counter = 7
	sum := func(b []byte) string { h := sha256.Sum256(b); return string(h[:]) }
	blob := []byte(sum([]byte(application)))
	blob = append(blob, flags, 0, 0, 0, counter)
	blob = append(blob, sum(data)...)
	return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(private, blob), Rest: []byte{flags, 0, 0, 0, counter}}
}

// FuzzParse: what is taken for a signature can be looked at and is for one text
// at most.
func FuzzParse(f *testing.F) {
	_, private, _ := ed25519.GenerateKey(rand.Reader)
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		f.Fatal(err)
	}
	armored, err := sshsig.Sign(signer.PublicKey(), namespace, []byte(text), func(data []byte) (*ssh.Signature, error) {
		return signer.Sign(rand.Reader, data)
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(armored)
	f.Add([]byte("-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n-----END SSH SIGNATURE-----"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := sshsig.Parse(b)
		if err != nil {
			return
		}
		other := sha512.Sum512(b)
		if s.Verify(namespace, other[:]) == nil {
			t.Errorf("%q is a signature of anything", b)
		}
	})
}
