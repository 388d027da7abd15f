package daemon

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// member is the identity of one role of this process: its keys, which never
// leave its directory, and the certificates it holds now.
type member struct {
	dir     string
	key     ssh.Signer // dials with it
	hostKey ssh.Signer // answers with it

	state atomic.Pointer[memberState]
}

// memberState is what the authority said of a member; it is on disk as
// member.json.
type memberState struct {
	ID          names.NodeID   `json:"id"`
	Name        names.NodeName `json:"name"`
	Kind        sshca.Kind     `json:"kind"`
	Cluster     string         `json:"cluster"`
	Member      string         `json:"member_certificate"`
	Host        string         `json:"host_certificate"`
	Expires     time.Time      `json:"expires"`
	Renew       time.Time      `json:"renew"`
	GatewayPort int            `json:"gateway_port,omitempty"`
	HostCA      []string       `json:"host_ca,omitempty"` // believed before the policy is there
	Keys        []string       `json:"keys,omitempty"`    // of all authorities, as the authority was last told

	memberCert, hostCert *ssh.Certificate
}

// openMember opens the identity in dir, with fresh keys when there is none.
func openMember(dir string) (*member, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.BadInput, "make identity directory: %w", err)
	}
	m := &member{dir: dir}
	var err error
	if m.key, err = openKey(filepath.Join(dir, "member_key")); err != nil {
		return nil, err
	}
	if m.hostKey, err = openKey(filepath.Join(dir, "host_key")); err != nil {
		return nil, err
	}
	return m, m.load()
}

// openKey reads the private key at path, or makes one.
func openKey(path string) (ssh.Signer, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newKey(path)
	}
	if err != nil {
		return nil, fault.New(fault.BadInput, "read key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fault.New(fault.BadInput, "key %q: %w", path, err)
	}
	return signer, nil
}

// newKey makes a key and puts it on disk before anyone relies on it.
func newKey(path string) (ssh.Signer, error) {
	private, signer := sshca.Generate()
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return nil, err
	}
	if err := writeDurably(path, pem.EncodeToMemory(block)); err != nil {
		return nil, err
	}
	return signer, nil
}

// writeDurably puts data at path whole, readable by the owner alone, and on
// disk when it returns.
func writeDurably(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return fault.New(fault.Unavailable, "write %q: %w", path, err)
	}
	defer os.Remove(f.Name()) // gone already when all went well
	defer f.Close()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fault.New(fault.Unavailable, "write %q: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (m *member) statePath() string { return filepath.Join(m.dir, "member.json") }

// load reads the state from disk, if there is one.
func (m *member) load() error {
	text, err := os.ReadFile(m.statePath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.BadInput, "read identity: %w", err)
	}
	s := &memberState{}
	if err := json.Unmarshal(text, s); err != nil {
		return fault.New(fault.BadInput, "identity %q: %w", m.statePath(), err)
	}
	if err := m.check(s); err != nil {
		return fault.New(fault.BadInput, "identity %q: %w", m.statePath(), err)
	}
	m.state.Store(s)
	return nil
}

// check parses s's certificates and refuses those for other keys.
func (m *member) check(s *memberState) error {
	var err error
	if s.memberCert, err = certificateFor(s.Member, m.key); err != nil {
		return fault.New(fault.BadInput, "member certificate: %w", err)
	}
	if s.hostCert, err = certificateFor(s.Host, m.hostKey); err != nil {
		return fault.New(fault.BadInput, "host certificate: %w", err)
	}
	return nil
}

// certificateFor parses line, which must be a certificate of key.
func certificateFor(line string, key ssh.Signer) (*ssh.Certificate, error) {
	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, err
	}
	cert, ok := pub.(*ssh.Certificate)
	if !ok {
		return nil, fault.New(fault.BadInput, "a plain key")
	}
	if string(cert.Key.Marshal()) != string(key.PublicKey().Marshal()) {
		return nil, fault.New(fault.BadInput, "for another key")
	}
	return cert, nil
}

// joined reports whether the member was admitted once.
func (m *member) joined() bool { return m.state.Load() != nil }

// adopt takes s as the member's state from now on and puts it on disk.
func (m *member) adopt(s *memberState) error {
	if err := m.check(s); err != nil {
		return err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := writeDurably(m.statePath(), text); err != nil {
		return err
	}
	m.state.Store(s)
	return nil
}

// renewed returns the state with fresh certificates.
func (s *memberState) renewed(c *accessdv1.MemberCertificates) *memberState {
	next := *s
	next.Member, next.Host = c.GetMember(), c.GetHost()
	next.Expires, next.Renew = c.GetExpires().AsTime(), c.GetRenew().AsTime()
	return &next
}

// believing returns the state with the authorities' keys as they are now.
func (s *memberState) believing(trust sshca.Trust) *memberState {
	next := *s
	next.HostCA, next.Keys = nil, keysInOrder(trust)
	for _, key := range trust.Host {
		next.HostCA = append(next.HostCA, string(ssh.MarshalAuthorizedKey(key)))
	}
	return &next
}

// believes reports whether trust is what the state was last made with. Nobody
// believes in no keys at all.
func (s *memberState) believes(trust sshca.Trust) bool {
	return len(trust.Host) == 0 || slices.Equal(s.Keys, keysInOrder(trust))
}

// keysInOrder names the keys of each authority, the one that signs first.
func keysInOrder(t sshca.Trust) []string {
	var out []string
	for _, keys := range [][]ssh.PublicKey{t.User, t.Host, t.Node, t.SSHD} {
		for _, key := range keys {
			out = append(out, ssh.FingerprintSHA256(key))
		}
		out = append(out, "") // ends an authority
	}
	return out
}

// signedBy reports whether the certificates are of the keys of trust that sign, as
// far as there are any.
func (s *memberState) signedBy(trust sshca.Trust) bool {
	by := func(c *ssh.Certificate, keys []ssh.PublicKey) bool {
		return len(keys) == 0 || bytes.Equal(c.SignatureKey.Marshal(), keys[0].Marshal())
	}
	return by(s.memberCert, trust.Node) && by(s.hostCert, trust.Host)
}

// credentials returns the member's name, and its key with its certificate, to
// dial with.
func (m *member) credentials() (names.NodeName, ssh.Signer) {
	s := m.state.Load()
	return s.Name, certified(s.memberCert, m.key)
}

// certified returns key with cert, which check has found to belong together.
func certified(cert *ssh.Certificate, key ssh.Signer) ssh.Signer {
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		panic("daemon: internal error: certificate and key were checked and do not match: " + err.Error())
	}
	return signer
}

// hostSigners returns what the member answers with: its certificate first, and
// the plain key for clients that know no certificates.
func (m *member) hostSigners() []ssh.Signer {
	s := m.state.Load()
	if s == nil {
		return []ssh.Signer{m.hostKey}
	}
	return []ssh.Signer{certified(s.hostCert, m.hostKey), m.hostKey}
}

// identity returns the member as its certificate says, for calls inside the
// process.
func (m *member) identity(trust sshca.Trust, now time.Time) (*sshca.Identity, error) {
	s := m.state.Load()
	return trust.CheckMember(s.memberCert, sshca.Peer{SSHUser: string(s.Name), Now: now})
}

// publicLine returns a signer's public key as an authorized_keys line.
func publicLine(s ssh.Signer) string {
	return string(ssh.MarshalAuthorizedKey(s.PublicKey()))
}
