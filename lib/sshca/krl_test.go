package sshca_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// revoked asks the stock ssh-keygen whether the list in path has key.
func revoked(t *testing.T, path string, key ssh.PublicKey) bool {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(file, ssh.MarshalAuthorizedKey(key), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ssh-keygen", "-Q", "-f", path, file).CombinedOutput()
	switch {
	case err == nil && bytes.HasSuffix(out, []byte(": ok\n")):
		return false
	case err != nil && bytes.HasSuffix(out, []byte("REVOKED\n")):
		return true
	}
	t.Fatalf("ssh-keygen -Q: %v\n%s", err, out)
	return false
}

// TestKRL: stock ssh-keygen takes the list, and finds in it what is meant and
// nothing else.
func TestKRL(t *testing.T) {
	w := newWorld()
	_, older := sshca.Generate()
	signed := func(ca ssh.Signer, user names.UserName, serial uint64) *ssh.Certificate {
		r := w.userRequest()
		r.User, r.Serial = user, serial
		return must(t)(sshca.MintUser(ca, r))
	}
	alice, alices, bob := signed(w.user, "alice", 7), signed(older, "alice", 1<<40), signed(w.user, "bob", 8)
	session := w.sessionRequest()
	session.Serial = 9
	inside := must(t)(sshca.MintSession(w.sshd, session))
	host := must(t)(sshca.MintHost(w.host, w.hostRequest()))
	people := []ssh.PublicKey{w.user.PublicKey(), older.PublicKey()}

	for name, c := range map[string]struct {
		list []sshca.Revocations
		want []ssh.PublicKey
	}{
		"nothing":      {},
		"a person":     {[]sshca.Revocations{{CAs: people, KeyIDs: []string{"carol", "alice", "alice"}}}, []ssh.PublicKey{alice, alices}},
		"serials":      {[]sshca.Revocations{{CAs: people, Serials: []uint64{1 << 40, 8, 8, 1}}}, []ssh.PublicKey{alices, bob}},
		"another's":    {[]sshca.Revocations{{CAs: []ssh.PublicKey{w.stranger.PublicKey()}, Serials: []uint64{7}, KeyIDs: []string{"bob"}}}, nil},
		"everyone":     {[]sshca.Revocations{{CAs: people, All: true}}, []ssh.PublicKey{alice, alices, bob}},
		"each its own": {[]sshca.Revocations{{CAs: people, KeyIDs: []string{"bob"}}, {CAs: w.trust.SSHD, Serials: []uint64{9}}}, []ssh.PublicKey{bob, inside}},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := sshca.KRL{Version: 3, Generated: now, Comment: "a test", Revoked: c.list}.Marshal(w.user)
			if err != nil {
				t.Fatal(err)
			}
			checkKRLSignature(t, data, w.user.PublicKey())
			path := filepath.Join(t.TempDir(), "krl")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, key := range []ssh.PublicKey{alice, alices, bob, inside, host, alice.Key} {
				want := false
				for _, k := range c.want {
					want = want || k == key
				}
				if got := revoked(t, path, key); got != want {
					t.Errorf("%s serial %d: revoked %v, want %v", key.Type(), serialOf(key), got, want)
				}
			}
		})
	}
}

// TestKRLIsSigned: a list that was changed on its way is refused by who looks at
// the signature.
func TestKRLIsSigned(t *testing.T) {
	w := newWorld()
	good, err := sshca.KRL{Generated: now, Revoked: []sshca.Revocations{{CAs: w.trust.User, KeyIDs: []string{"alice"}}}}.Marshal(w.user)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Replace(good, []byte("alice"), []byte("alicf"), 1)
	if bytes.Equal(good, bad) || verifyKRL(bad, w.user.PublicKey()) == nil || verifyKRL(good, w.stranger.PublicKey()) == nil {
		t.Error("a changed list, or one of a stranger's, verifies")
	}
	checkKRLSignature(t, good, w.user.PublicKey())
}

func serialOf(key ssh.PublicKey) uint64 {
	if c, ok := key.(*ssh.Certificate); ok {
		return c.Serial
	}
	return 0
}

func checkKRLSignature(t *testing.T, data []byte, key ssh.PublicKey) {
	t.Helper()
	if err := verifyKRL(data, key); err != nil {
		t.Errorf("the list's signature: %v", err)
	}
}

// verifyKRL checks the signature at the list's end as PROTOCOL.krl, section 5,
// says: over all before it.
func verifyKRL(data []byte, key ssh.PublicKey) error {
	const signature = 4
	head := append([]byte{signature}, binary.BigEndian.AppendUint32(nil, uint32(len(key.Marshal())))...)
	head = append(head, key.Marshal()...)
	at := bytes.LastIndex(data, head)
	if at < 0 {
		return os.ErrNotExist
	}
	at += len(head)
	var sig ssh.Signature
	if err := ssh.Unmarshal(data[at+4:], &sig); err != nil {
		return err
	}
	return key.Verify(data[:at], &sig)
}
