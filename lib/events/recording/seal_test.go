//go:build unix

package recording

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
)

// keyPair is a recipient and the file that opens what is sealed for it.
type keyPair struct {
	name, recipient string
	identity        []byte
}

func ageKey(t *testing.T) keyPair {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{"X25519", id.Recipient().String(), []byte("# a comment\n" + id.String() + "\n")}
}

func sshKey(t *testing.T, name string, key any, passphrase string) keyPair {
	t.Helper()
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))) + " alice@laptop"
	return keyPair{name, line, pem.EncodeToMemory(block)}
}

func keyPairs(t *testing.T) []keyPair {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return []keyPair{ageKey(t), sshKey(t, "ssh-ed25519", ed, ""), sshKey(t, "ssh-rsa", rsaKey, "")}
}

func identities(t *testing.T, k keyPair) []age.Identity {
	t.Helper()
	ids, err := ParseIdentities(k.identity, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// A recording sealed for several recipients opens for each of them, with this
// package and with stock age and zstd, and for nobody else.
func TestSealedForEachRecipient(t *testing.T) {
	pairs := keyPairs(t)
	var recipients []string
	for _, k := range pairs {
		recipients = append(recipients, k.recipient)
	}
	dir := filepath.Join(t.TempDir(), "spool")
	r := newRecorder(t, Config{Dir: dir, Recipients: func() []string { return recipients }})
	w, h := begin(t, r)
	show(t, w, "the secret text")
	sum := closed(t, w)
	if !sum.Sealed {
		t.Fatal("the summary does not say that it is sealed")
	}
	part := filepath.Join(dir, string(h.Session), partName(1))
	stored, err := os.ReadFile(part)
	if err != nil || !IsSealed(stored) {
		t.Fatalf("the part is not sealed: %v", err)
	}
	for _, k := range pairs {
		t.Run(k.name, func(t *testing.T) {
			frames := playDir(t, dir, h.Session, sum, identities(t, k)...)
			if got := printed(frames, stdout); got != "the secret text" {
				t.Errorf("it opens to %q", got)
			}
			file := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(file, k.identity, 0o600); err != nil {
				t.Fatal(err)
			}
			if plain := stock(t, "age -d -i "+file+" "+part+" | zstd -dc"); !bytes.Contains(plain, []byte("the secret text")) {
				t.Errorf("stock age and zstd make %d bytes of it", len(plain))
			}
		})
	}
	if _, err := Open(stored, nil); !fault.Is(err, fault.Denied) || fault.Hint(err) == "" {
		t.Errorf("Open without an identity = %v", err)
	}
	if _, err := Open(stored, identities(t, ageKey(t))); !fault.Is(err, fault.Denied) {
		t.Errorf("Open with a stranger's identity = %v", err)
	}
}

// stock runs a pipe of stock tools, which integration/install-deps installs.
func stock(t *testing.T, pipe string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", "set -o pipefail; "+pipe)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", pipe, err, stderr.Bytes())
	}
	return out
}

// Recipients are asked for with every part: one that was added opens what is
// recorded from then on.
func TestRecipientsRotate(t *testing.T) {
	first, second := ageKey(t), ageKey(t)
	recipients := []string(nil)
	dir := filepath.Join(t.TempDir(), "spool")
	r := newRecorder(t, Config{Dir: dir, Recipients: func() []string { return recipients }})
	w, h := begin(t, r)
	show(t, w, "x")
	next := func(with ...string) {
		w.mu.Lock()
		w.fullLocked()
		w.awaitLocked()
		w.mu.Unlock()
		recipients = with
		show(t, w, "x")
	}
	next(first.recipient)
	next(first.recipient, second.recipient)
	sum := closed(t, w)
	playDir(t, dir, h.Session, sum, identities(t, first)...)
	for n, want := range []fault.Kind{0: fault.Internal, 1: fault.Denied, 2: fault.Internal} {
		part, err := os.ReadFile(filepath.Join(dir, string(h.Session), partName(uint32(n)+1)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(part, identities(t, second)); (err != nil) != (want == fault.Denied) {
			t.Errorf("part %d for the second recipient: %v", n+1, err)
		}
		if IsSealed(part) != (n > 0) {
			t.Errorf("part %d is sealed: %v", n+1, IsSealed(part))
		}
	}
	if !sum.Sealed {
		t.Error("a recording with sealed parts says that it is not sealed")
	}
}

// A recipient that cannot be used stops the recording: nothing is stored open that
// was to be sealed. It goes on when the recipients are mended.
func TestBadRecipientIsAFailure(t *testing.T) {
	recipients := []string{"age1nonsense"}
	told := make(chan error, 10)
	dir := filepath.Join(t.TempDir(), "spool")
	r := newRecorder(t, Config{Dir: dir, Recipients: func() []string { return recipients }})
	h := header()
	h.OnFail = func(err error) { told <- err }
	w, err := r.Begin(h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); !fault.Is(err, fault.BadInput) {
		t.Fatalf("Close = %v", err)
	}
	if err := <-told; !fault.Is(err, fault.BadInput) {
		t.Errorf("OnFail got %v", err)
	}
	for _, name := range spooled(t, dir) {
		if strings.Contains(name, partSuffix) {
			t.Errorf("there is a part: %s", name)
		}
	}
	key := ageKey(t)
	recipients = []string{key.recipient}
	playDir(t, dir, h.Session, closed(t, w), identities(t, key)...)
	if len(told) > 0 {
		t.Errorf("OnFail was called again: %v", <-told)
	}
}

func TestParseRecipient(t *testing.T) {
	for _, k := range keyPairs(t) {
		if _, err := ParseRecipient(" " + k.recipient + "\n"); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
	}
	for _, bad := range []string{"", "age1", "AGE-SECRET-KEY-1", "ssh-ed25519", "ecdsa-sha2-nistp256 AAAA", "ssh-dss AAAA", "github:alice"} {
		if _, err := ParseRecipient(bad); !fault.Is(err, fault.BadInput) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A key with a passphrase asks for it only when it opens something.
func TestProtectedIdentity(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	protected := sshKey(t, "ssh-ed25519", ed, "open sesame")
	seal := func(recipient string) []byte {
		s, err := newSealer(func() []string { return []string{recipient} })
		if err != nil {
			t.Fatal(err)
		}
		part, sealed, err := s.seal(unjournal(appendPrint(nil, 0, stdout, []byte("x"))))
		if err != nil || !sealed {
			t.Fatal(err)
		}
		return part
	}
	asked, answer := 0, "open sesame"
	ask := func() ([]byte, error) {
		asked++
		if answer == "" {
			return nil, errors.New("nobody is there")
		}
		return []byte(answer), nil
	}
	ids, err := ParseIdentities(protected.identity, ask)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(seal(ageKey(t).recipient), ids); !fault.Is(err, fault.Denied) || asked != 0 {
		t.Errorf("a part for somebody else: %v, asked %d times", err, asked)
	}
	part := seal(protected.recipient)
	for range 2 {
		if frames, err := Open(part, ids); err != nil || len(frames) != 1 || asked != 1 {
			t.Errorf("%d frames, %v, asked %d times", len(frames), err, asked)
		}
	}
	for _, wrong := range []string{"", "wrong"} {
		answer = wrong
		ids, err := ParseIdentities(protected.identity, ask)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(part, ids); err == nil {
			t.Errorf("it opens with %q", wrong)
		}
	}
	if _, err := ParseIdentities(protected.identity, nil); !fault.Is(err, fault.BadInput) {
		t.Errorf("without a way to ask: %v", err)
	}
	for _, bad := range []string{"", "x", "age1nonsense", "-----BEGIN OPENSSH PRIVATE KEY-----\n"} {
		if _, err := ParseIdentities([]byte(bad), ask); !fault.Is(err, fault.BadInput) {
			t.Errorf("ParseIdentities(%q) = %v", bad, err)
		}
	}
}
