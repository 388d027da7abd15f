package sshca_test

import (
	"net/netip"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/sshca"
)

// nest returns c as signed under a certificate that is given as signature key.
func nest(t *testing.T, c, signatureKey *ssh.Certificate, signer ssh.Signer) *ssh.Certificate {
	t.Helper()
	c.SignatureKey = signatureKey
	unsigned := *c
	unsigned.Signature = nil
	b := unsigned.Marshal()
	sig, err := signer.Sign(nil, b[:len(b)-4])
	if err != nil {
		t.Fatal(err)
	}
	c.Signature = sig
	return c
}

// TestNestedAuthority is CVE-2025-49825: mallory signs a certificate with her
// own key and gives, as its signature key, a certificate that names the
// authority. No check and no form of the attack may take it for the authority's.
func TestNestedAuthority(t *testing.T) {
	w := newWorld()
	// A certificate that names the CA as its key; mallory can make one up.
	naming := func(certType uint32) *ssh.Certificate {
		return sign(t, &ssh.Certificate{Key: w.user.PublicKey(), CertType: certType, ValidBefore: ssh.CertTimeInfinity}, w.stranger)
	}
	// A good certificate of mallory's own, from the real CA.
	r := w.userRequest()
	r.User, r.Key = "mallory", w.stranger.PublicKey()
	own := must(t)(sshca.MintUser(w.user, r))

	attacks := map[string]*ssh.Certificate{
		"forged user certificate names the CA": nest(t, must(t)(sshca.MintUser(w.stranger, w.userRequest())), naming(ssh.UserCert), w.stranger),
		"forged host certificate names the CA": nest(t, must(t)(sshca.MintUser(w.stranger, w.userRequest())), naming(ssh.HostCert), w.stranger),
		"signed by the holder of a good one":   nest(t, must(t)(sshca.MintUser(w.stranger, w.userRequest())), own, w.stranger),
	}
	all := sshca.Trust{User: w.trust.User, Host: w.trust.User, Node: w.trust.User, SSHD: w.trust.User}
	for name, c := range attacks {
		t.Run(name, func(t *testing.T) {
			if kind, ok := all.Type(c); ok {
				t.Errorf("Type = %q, want none", kind)
			}
			id, err := all.CheckUser(c, w.peer("alice"))
			expect(t, "CheckUser", c, id, err, sshca.CodeNested)
			id, err = all.CheckLogin(c, w.peer("root"))
			expect(t, "CheckLogin", c, id, err, sshca.CodeNested)
			id, err = all.CheckMember(c, w.peer("alice"))
			expect(t, "CheckMember", c, id, err, sshca.CodeNested)
			c.CertType = ssh.HostCert
			expect(t, "CheckHost", c, nil, all.CheckHost(c, "n1", now), sshca.CodeNested)
			if _, err := ssh.ParsePublicKey(c.Marshal()); err == nil {
				t.Error("ParsePublicKey took a nested certificate from the wire")
			}
		})
	}
}

// TestDeeplyNestedBlob: THREATS 1.2 (x/crypto issue 80414), 1000 certificates
// inside each other are refused by the parser, without a deep stack.
func TestDeeplyNestedBlob(t *testing.T) {
	w := newWorld()
	c := must(t)(sshca.MintUser(w.user, w.userRequest()))
	for range 1000 {
		outer := *c
		outer.Extensions, outer.SignatureKey = nil, c
		c = &outer
	}
	blob := c.Marshal()
	if len(blob) < 200<<10 {
		t.Fatalf("the blob has %d bytes, want at least 200 KiB", len(blob))
	}
	if _, err := ssh.ParsePublicKey(blob); err == nil {
		t.Error("ParsePublicKey = nil, want an error")
	}
	id, err := w.trust.CheckUser(&ssh.Certificate{Key: c, SignatureKey: c}, w.peer("alice"))
	if id != nil || err == nil {
		t.Errorf("CheckUser = %v, %v, want a refusal", id, err)
	}
}

// TestSourceAddressMatrix: THREATS 1.2 (CVE-2026-46595, CVE-2026-56854), at the
// proxy and at the node alike.
func TestSourceAddressMatrix(t *testing.T) {
	w := newWorld()
	in4, in6 := "192.0.2.7", "2001:db8::7"
	unix := "" // a peer without an address
	cases := []struct {
		option, peer string
		want         sshca.Code
	}{
		{"192.0.2.0/24", in4, ""},
		{"192.0.2.7", in4, ""},
		{"192.0.2.7/32", in4, ""},
		{"10.0.0.0/8,192.0.2.0/24", in4, ""},
		{"2001:db8::/32", in6, ""},
		{"0.0.0.0/0,::/0", in6, ""},
		{"192.0.2.0/24", "::ffff:192.0.2.7", ""}, // the same peer on a v6 socket
		{"fe80::/10", "fe80::1%eth0", ""},
		{"192.0.2.0/24", "192.0.3.7", sshca.CodeSourceAddress},
		{"192.0.2.0/24", "::ffff:192.0.3.7", sshca.CodeSourceAddress},
		{"192.0.2.0/24", in6, sshca.CodeSourceAddress},
		{"2001:db8::/32", in4, sshca.CodeSourceAddress},
		{"::/0", in4, sshca.CodeSourceAddress},
		{"192.0.2.0/24", unix, sshca.CodeSourceAddress},
		{"0.0.0.0/0,::/0", unix, sshca.CodeSourceAddress},
		{"", in4, sshca.CodeSourceAddress}, // empty allows nobody
		{",", in4, sshca.CodeSourceAddress},
		{"192.0.2.0/24,", in4, sshca.CodeSourceAddress},
		{" 192.0.2.0/24", in4, sshca.CodeSourceAddress},
		{"192.0.2.0/24 ", in4, sshca.CodeSourceAddress},
		{"192.0.2.0/33", in4, sshca.CodeSourceAddress},
		{"192.0.2.7/24", in4, sshca.CodeSourceAddress}, // host bits
		{"192.0.2", in4, sshca.CodeSourceAddress},
		{"192.0.2.*", in4, sshca.CodeSourceAddress},
		{"!10.0.0.0/8", in4, sshca.CodeSourceAddress},
		{"localhost", "127.0.0.1", sshca.CodeSourceAddress},
		{"::ffff:192.0.2.0/120", in4, sshca.CodeSourceAddress}, // v4 in v6 form: two meanings
		{"::ffff:192.0.2.0/120", "::ffff:192.0.2.7", sshca.CodeSourceAddress},
		{"fe80::1%eth0", "fe80::1%eth0", sshca.CodeSourceAddress},
		{"192.0.2.0/24,garbage", in4, sshca.CodeSourceAddress}, // one bad one spoils all
	}
	for _, row := range cases {
		t.Run(row.option+" from "+row.peer, func(t *testing.T) {
			c := must(t)(sshca.MintUser(w.user, w.userRequest()))
			option("source-address", row.option)(c)
			sign(t, c, w.user)
			peer := w.peer("alice")
			peer.Addr, _ = netip.ParseAddr(row.peer) // "" is the zero Addr
			id, err := w.trust.CheckUser(c, peer)
			expect(t, "CheckUser", c, id, err, row.want)
			peer.SSHUser = "root"
			id, err = w.trust.CheckLogin(c, peer)
			expect(t, "CheckLogin", c, id, err, row.want)
		})
	}
	c := must(t)(sshca.MintUser(w.user, w.userRequest()))
	if _, err := w.trust.CheckUser(c, sshca.Peer{SSHUser: "alice", Now: now}); err != nil {
		t.Errorf("CheckUser from a Unix socket without source-address = %v, want nil", err)
	}
}
