package sshserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestDefaultAlgorithms(t *testing.T) {
	for aes, want := range map[bool][]string{
		true:  {"aes128-gcm@openssh.com", "aes256-gcm@openssh.com"},
		false: {"chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com", "aes256-gcm@openssh.com"},
	} {
		cfg := Algorithms{}.config("SSH-2.0-OpenSSH_10.0", aes)
		if !slices.Equal(cfg.Ciphers, want) {
			t.Errorf("with AES: %v: ciphers = %v, want %v", aes, cfg.Ciphers, want)
		}
		if cfg.KeyExchanges[0] != "mlkem768x25519-sha256" {
			t.Errorf("the first key exchange is %v, want the post-quantum one", cfg.KeyExchanges[0])
		}
		for _, bad := range []string{"sha1", "group", "cbc", "arcfour", "none", "md5", "96"} {
			if all := strings.Join(slices.Concat(cfg.KeyExchanges, cfg.Ciphers, cfg.MACs, publicKeyAlgorithms()), " "); strings.Contains(all, bad) {
				t.Errorf("%q is in %q", bad, all)
			}
		}
		for _, m := range cfg.MACs {
			if !strings.HasSuffix(m, "-etm@openssh.com") {
				t.Errorf("MAC %q is not encrypt-then-MAC", m)
			}
		}
	}
	configured := Algorithms{Ciphers: []string{ssh.CipherChaCha20Poly1305}}.config("SSH-2.0-libssh2_1.10.0", true)
	if want := []string{ssh.CipherChaCha20Poly1305}; !slices.Equal(configured.Ciphers, want) {
		t.Errorf("configured ciphers = %v, want %v alone", configured.Ciphers, want)
	}
}

// TestKnownClients: only the versions that lack what others have get more.
func TestKnownClients(t *testing.T) {
	more := func(version string) string {
		k := lookUp(version)
		return strings.Join(append(k.ciphers, k.macs...), " ")
	}
	const ctr = "aes256-ctr aes192-ctr aes128-ctr"
	for version, want := range map[string]string{
		"SSH-2.0-OpenSSH_9.2p1 Debian-2":   "",
		"SSH-2.0-Go":                       "",
		"SSH-2.0-dropbear_2022.83":         "chacha20-poly1305@openssh.com",
		"SSH-2.0-dropbear":                 "chacha20-poly1305@openssh.com",
		"SSH-2.0-PuTTY_Release_0.77":       "chacha20-poly1305@openssh.com",
		"SSH-2.0-PuTTY_Release_0.78":       "",
		"SSH-2.0-PuTTY_Release_0.83":       "",
		"SSH-2.0-WinSCP_release_5.21.8":    "chacha20-poly1305@openssh.com",
		"SSH-2.0-WinSCP_release_6.1":       "",
		"SSH-2.0-paramiko_2.12.0":          ctr,
		"SSH-2.0-paramiko_3.4.1":           ctr,
		"SSH-2.0-paramiko_3.5.0":           "",
		"SSH-2.0-paramiko_4.0.0":           "",
		"SSH-2.0-libssh2_1.10.0":           "aes256-ctr aes128-ctr hmac-sha2-256 hmac-sha2-512",
		"SSH-2.0-libssh2_1.9.0":            "aes256-ctr aes128-ctr hmac-sha2-256 hmac-sha2-512",
		"SSH-2.0-libssh2_1.11.1":           "",
		"SSH-2.0-AsyncSSH_2.10.1":          "",
		"SSH-2.0-x SSH-2.0-dropbear":       "",
		"SSH-2.0-PuTTY_Release_0.7":        "",
		"SSH-2.0-paramiko_10.0 libssh2_1.": "",
	} {
		if got := more(version); got != want {
			t.Errorf("%q gets %q more, want %q", version, got, want)
		}
	}
	for _, k := range knownClients {
		if k.reason == "" {
			t.Errorf("%v has no reason", k.version)
		}
		for _, c := range k.ciphers {
			if !slices.Contains(ciphers, c) {
				t.Errorf("%v gets %q, which could not be configured", k.version, c)
			}
		}
	}
}

// TestNoDowngrade: F27, without an algorithm in common the connection ends; there
// is no fallback.
func TestNoDowngrade(t *testing.T) {
	change := func(f func(*offer)) offer {
		o := plainOffer
		f(&o)
		return o
	}
	for name, o := range map[string]offer{
		"kex group1":        change(func(o *offer) { o.kex = "diffie-hellman-group1-sha1" }),
		"kex group14 SHA-1": change(func(o *offer) { o.kex = "diffie-hellman-group14-sha1" }),
		"kex group14":       change(func(o *offer) { o.kex = "diffie-hellman-group14-sha256" }),
		"kex exchange":      change(func(o *offer) { o.kex = "diffie-hellman-group-exchange-sha256,diffie-hellman-group-exchange-sha1" }),
		"no kex":            change(func(o *offer) { o.kex = "" }),
		"cipher none":       change(func(o *offer) { o.cipher = "none" }),
		"cipher CBC":        change(func(o *offer) { o.cipher = "aes128-cbc,aes256-cbc,3des-cbc" }),
		"cipher RC4":        change(func(o *offer) { o.cipher = "arcfour,arcfour128,arcfour256" }),
		"cipher CTR":        change(func(o *offer) { o.cipher = "aes128-ctr,aes256-ctr" }),
		"host key ssh-rsa":  change(func(o *offer) { o.hostKey = "ssh-rsa,ssh-dss" }),
		"compression":       change(func(o *offer) { o.compression = "zlib,zlib@openssh.com" }),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			c := newRaw(t, w.serve())
			if err := c.kex(o); err == nil {
				t.Error("the key exchange succeeded")
			}
			if err := <-w.errs; !fails[*ssh.AlgorithmNegotiationError](err) {
				t.Errorf("ServeConn = %v, want a failed negotiation", err)
			}
		})
	}
}

// TestWeakMACs: a client that is known to lack AES-GCM gets CTR, but not with any
// MAC.
func TestWeakMACs(t *testing.T) {
	cfg := Algorithms{}.config("SSH-2.0-paramiko_2.12.0", true)
	if slices.Contains(cfg.MACs, ssh.HMACSHA256) || slices.Contains(cfg.MACs, ssh.HMACSHA1) {
		t.Errorf("paramiko gets %v", cfg.MACs)
	}
	if cfg = (Algorithms{}).config("SSH-2.0-libssh2_1.10.0", true); slices.Contains(cfg.MACs, ssh.HMACSHA1) {
		t.Errorf("libssh2 gets %v", cfg.MACs)
	}
}

// sha1Signer is an RSA key that would sign with anything.
func rsaSigner(t *testing.T) ssh.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestHostKeys: a certificate before its plain key, RSA with SHA-2 alone, and
// what was renewed is shown at once.
func TestHostKeys(t *testing.T) {
	w := newWorld(t, nil)
	ca := newSigner(t)
	cert := &ssh.Certificate{Key: w.host.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"a"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	certified, err := ssh.NewCertSigner(cert, w.host)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	offered := func() string {
		c := newRaw(t, w.serve())
		if err := c.kex(plainOffer); err != nil {
			t.Fatal(err)
		}
		rest := c.peerInit[17:]
		n := 4 + int(rest[2])<<8 + int(rest[3])
		rest = rest[n:]
		return string(rest[4 : 4+int(rest[2])<<8+int(rest[3])])
	}
	if got, want := offered(), "ssh-ed25519"; got != want {
		t.Errorf("host keys = %q, want %q", got, want)
	}
	w.server.cfg.HostKeysOf = func(*Conn) []ssh.Signer { return []ssh.Signer{certified, w.host, ec, rsaSigner(t)} }
	if got, want := offered(), "ssh-ed25519-cert-v01@openssh.com,ssh-ed25519,ecdsa-sha2-nistp256,rsa-sha2-256,rsa-sha2-512"; got != want {
		t.Errorf("host keys = %q, want %q", got, want)
	}
	if _, err := hostKeys([]ssh.Signer{onlySigner{rsaSigner(t)}}); err == nil {
		t.Error("an RSA key that signs with SHA-1 alone was taken")
	}
	if _, err := hostKeys([]ssh.Signer{forger{w.host, dsaKey(t)}}); err == nil {
		t.Error("a DSA key was taken")
	}
	w.server.cfg.HostKeysOf = func(*Conn) []ssh.Signer { return nil }
	if _, err := w.dial(w.serve(), w.clientConfig("alice", w.alice)); err == nil {
		t.Error("a server without keys serves")
	}
}

func dsaKey(t *testing.T) ssh.PublicKey {
	t.Helper()
	key, err := ssh.ParsePublicKey(cat(0, u32(7)[1:], []byte("ssh-dss"), dsaNumber(128), dsaNumber(20), dsaNumber(1), dsaNumber(1)))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// dsaNumber is a positive number of n bytes.
func dsaNumber(n int) []byte { return str("\x00\x80" + strings.Repeat("\x01", n-1)) }

// onlySigner cannot choose its algorithm.
type onlySigner struct{ ssh.Signer }

// TestGoClientNegotiates: x/crypto's own client gets the post-quantum exchange.
func TestGoClientNegotiates(t *testing.T) {
	w := newWorld(t, nil)
	w.login()
	a := negotiated(t, w.conn())
	if a.KeyExchange != ssh.KeyExchangeMLKEM768X25519 || a.Read.Cipher != ssh.CipherAES128GCM || a.HostKey != ssh.KeyAlgoED25519 {
		t.Errorf("negotiated %+v", a)
	}
}

func negotiated(t *testing.T, c *Conn) ssh.NegotiatedAlgorithms {
	t.Helper()
	m, ok := c.Conn.(ssh.AlgorithmsConnMetadata)
	if !ok {
		t.Fatal("the connection does not tell its algorithms")
	}
	return m.Algorithms()
}

// TestSHA1Signatures: F25, an RSA key that signs with SHA-1 is refused, whatever
// the embedder says.
func TestSHA1Signatures(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Authenticate = func(c *Conn, cfg *ssh.ServerConfig) error {
			cfg.PublicKeyCallback = func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }
			cfg.VerifiedPublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey, p *ssh.Permissions, _ string) (*ssh.Permissions, error) {
				return p, c.ProveKey(key)
			}
			cfg.PublicKeyAuthAlgorithms = []string{ssh.KeyAlgoRSA} // not theirs to set
			return nil
		}
	})
	key := rsaSigner(t)
	for algo, ok := range map[string]bool{ssh.KeyAlgoRSA: false, ssh.KeyAlgoRSASHA256: true, ssh.KeyAlgoRSASHA512: true} {
		as, isAS := key.(ssh.AlgorithmSigner)
		if !isAS {
			t.Fatal("not an AlgorithmSigner")
		}
		restricted, err := ssh.NewSignerWithAlgorithms(as, []string{algo})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.dial(w.serve(), w.clientConfig("alice", restricted))
		if (err == nil) != ok {
			t.Errorf("a signature with %s: %v, want ok: %v", algo, err, ok)
		}
	}
	// And by hand, since x/crypto's client would not: the query and the signature.
	c := newRaw(t, w.serve())
	c.handshake()
	c.mustSend(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("publickey"), []byte{0}, str("ssh-rsa"), str(string(key.PublicKey().Marshal()))))
	c.expect(msgAuthFailure)
}

func TestLeft(t *testing.T) {
	if left(errors.New("ssh: invalid packet length")) || !left(nil) || !left(errors.New("ssh: disconnect, reason 11: bye")) {
		t.Error("left cannot tell who left")
	}
}
