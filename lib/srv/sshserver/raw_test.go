package sshserver

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Message numbers (RFC 4250, section 4.1.2).
const (
	msgDisconnect     = 1
	msgIgnore         = 2
	msgServiceRequest = 5
	msgExtInfo        = 7
	msgKexInit        = 20
	msgNewKeys        = 21
	msgECDHInit       = 30
	msgAuthRequest    = 50
	msgAuthFailure    = 51
	msgAuthSuccess    = 52
	msgAuthPKOK       = 60
	msgGlobalRequest  = 80
	msgRequestSuccess = 81
	msgRequestFailure = 82
	msgChannelOpen    = 90
	msgChannelConfirm = 91
	msgChannelFailure = 92
	msgChannelData    = 94
	msgChannelExtData = 95
	msgChannelClose   = 97
	msgChannelRequest = 98
	msgChannelSuccess = 99
	msgChannelFailed  = 100
	msgPing           = 192
)

// rawClient is an SSH client that sends what no library would: it has one
// algorithm of each kind and no manners. Its methods end the test on an error of
// its own making, and return those of the connection.
type rawClient struct {
	t       testing.TB
	conn    net.Conn
	r       *bufio.Reader
	session []byte
	out, in gcmState

	kexInit  []byte // our last KEXINIT
	peerInit []byte
	secret   *ecdh.PrivateKey
	strict   bool
}

type gcmState struct {
	aead cipher.AEAD // nil before the first NEWKEYS
	iv   [12]byte
}

// clientLine is how rawClient identifies itself.
const clientLine = "SSH-2.0-raw"

// offer is what rawClient negotiates.
type offer struct{ kex, hostKey, cipher, mac, compression string }

var plainOffer = offer{"curve25519-sha256", "ssh-ed25519", ssh.CipherAES128GCM, ssh.HMACSHA256ETM, "none"}

func (o offer) kexInit() []byte {
	b := append([]byte{msgKexInit}, make([]byte, 16)...)
	rand.Read(b[1:])
	for _, list := range []string{o.kex, o.hostKey, o.cipher, o.cipher, o.mac, o.mac, o.compression, o.compression, "", ""} {
		b = append(b, str(list)...)
	}
	return append(b, 0, 0, 0, 0, 0)
}

func str(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func cat(first byte, rest ...[]byte) []byte {
	b := []byte{first}
	for _, r := range rest {
		b = append(b, r...)
	}
	return b
}

// newRaw has exchanged identifications.
func newRaw(t testing.TB, conn net.Conn) *rawClient {
	t.Helper()
	c := &rawClient{t: t, conn: conn, r: bufio.NewReader(conn)}
	if _, err := io.WriteString(conn, clientLine+"\r\n"); err != nil {
		t.Fatal(err)
	}
	line, err := c.r.ReadString('\n')
	if err != nil || line != Version+"\r\n" {
		t.Fatalf("the server identifies itself as %q, %v", line, err)
	}
	return c
}

// frame is the plain binary packet of a payload (RFC 4253, section 6).
func frame(payload []byte, block int) []byte {
	header := 5
	if block == 16 {
		header = 1 // with AES-GCM the length is not encrypted, nor padded
	}
	pad := block - (header+len(payload))%block
	if pad < 4 {
		pad += block
	}
	b := u32(uint32(1 + len(payload) + pad))
	b = append(b, byte(pad))
	b = append(b, payload...)
	return append(b, make([]byte, pad)...)
}

func (c *rawClient) seal(payload []byte) []byte {
	if c.out.aead == nil {
		return frame(payload, 8)
	}
	plain := frame(payload, 16)
	sealed := c.out.aead.Seal(plain[:4:4], c.out.iv[:], plain[4:], plain[:4])
	c.out.next()
	return sealed
}

// next counts the nonce (RFC 5647, section 7.1).
func (g *gcmState) next() {
	n := binary.BigEndian.Uint64(g.iv[4:])
	binary.BigEndian.PutUint64(g.iv[4:], n+1)
}

func (c *rawClient) send(payload []byte) error {
	_, err := c.conn.Write(c.seal(payload))
	return err
}

func (c *rawClient) mustSend(payload []byte) {
	c.t.Helper()
	if err := c.send(payload); err != nil {
		c.t.Fatal(err)
	}
}

func (c *rawClient) recv() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > 1<<20 {
		return nil, fmt.Errorf("a packet of %d bytes", n)
	}
	if c.in.aead != nil {
		n += 16
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return nil, err
	}
	if c.in.aead != nil {
		var err error
		if body, err = c.in.aead.Open(nil, c.in.iv[:], body, head[:]); err != nil {
			return nil, err
		}
		c.in.next()
	}
	return body[1 : len(body)-int(body[0])], nil
}

// expect returns the next message of the wanted type; it skips EXT_INFO.
func (c *rawClient) expect(want byte) []byte {
	c.t.Helper()
	for {
		p, err := c.recv()
		if err != nil {
			c.t.Fatalf("waiting for message %d: %v", want, err)
		}
		if p[0] == msgExtInfo && want != msgExtInfo {
			continue
		}
		if p[0] != want {
			c.t.Fatalf("got message %d, want %d: %q", p[0], want, p)
		}
		return p
	}
}

// firstFlight is everything a client sends up to the server's key.
func (c *rawClient) firstFlight(o offer) []byte {
	c.t.Helper()
	var err error
	if c.secret, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
		c.t.Fatal(err)
	}
	c.kexInit = o.kexInit()
	c.strict = strings.Contains(o.kex, "kex-strict-c")
	return append(c.seal(c.kexInit), c.seal(cat(msgECDHInit, str(string(c.secret.PublicKey().Bytes()))))...)
}

// kex exchanges keys, for the first time or again.
func (c *rawClient) kex(o offer) error {
	c.t.Helper()
	if _, err := c.conn.Write(c.firstFlight(o)); err != nil {
		return err
	}
	return c.finishKex()
}

func (c *rawClient) finishKex() error {
	c.t.Helper()
	var err error
	if c.peerInit, err = c.recv(); err != nil {
		return err
	}
	if c.peerInit[0] != msgKexInit {
		return fmt.Errorf("got message %d for a KEXINIT", c.peerInit[0])
	}
	reply, err := c.recv()
	if err != nil {
		return err
	}
	var msg struct {
		HostKey, Key, Sig []byte `sshtype:"31"`
	}
	if err := ssh.Unmarshal(reply, &msg); err != nil {
		return err
	}
	peer, err := ecdh.X25519().NewPublicKey(msg.Key)
	if err != nil {
		return err
	}
	shared, err := c.secret.ECDH(peer)
	if err != nil {
		return err
	}
	k := mpint(shared)
	h := sha256.New()
	for _, s := range []string{clientLine, Version, string(c.kexInit), string(c.peerInit), string(msg.HostKey), string(c.secret.PublicKey().Bytes()), string(msg.Key)} {
		h.Write(str(s))
	}
	h.Write(k)
	hash := h.Sum(nil)
	if c.session == nil {
		c.session = hash
	}
	if err := c.send([]byte{msgNewKeys}); err != nil {
		return err
	}
	c.out = c.derive(k, hash, 'A', 'C')
	p, err := c.recv()
	if err != nil {
		return err
	}
	if p[0] != msgNewKeys {
		return fmt.Errorf("got message %d for NEWKEYS", p[0])
	}
	c.in = c.derive(k, hash, 'B', 'D')
	return nil
}

func mpint(b []byte) []byte {
	n := new(big.Int).SetBytes(b).Bytes()
	if len(n) > 0 && n[0]&0x80 != 0 {
		n = append([]byte{0}, n...)
	}
	return str(string(n))
}

func (c *rawClient) derive(k, hash []byte, iv, key byte) gcmState {
	material := func(tag byte) []byte {
		sum := sha256.Sum256(cat(k[0], k[1:], hash, []byte{tag}, c.session))
		return sum[:]
	}
	block, err := aes.NewCipher(material(key)[:16])
	if err != nil {
		c.t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		c.t.Fatal(err)
	}
	g := gcmState{aead: aead}
	copy(g.iv[:], material(iv))
	return g
}

// handshake gets as far as the first authentication request.
func (c *rawClient) handshake() {
	c.t.Helper()
	if err := c.kex(plainOffer); err != nil {
		c.t.Fatal(err)
	}
	c.mustSend(cat(msgServiceRequest, str("ssh-userauth")))
	c.expect(6)
}

// query asks whether a key would do, without proving anything.
func (c *rawClient) query(user string, key ssh.PublicKey) {
	c.t.Helper()
	c.mustSend(cat(msgAuthRequest, str(user), str("ssh-connection"), str("publickey"), []byte{0}, str(key.Type()), str(string(key.Marshal()))))
}

// prove authenticates with a key.
func (c *rawClient) prove(user string, signer ssh.Signer) {
	c.t.Helper()
	key := signer.PublicKey()
	body := cat(msgAuthRequest, str(user), str("ssh-connection"), str("publickey"), []byte{1}, str(key.Type()), str(string(key.Marshal())))
	sig, err := signer.Sign(rand.Reader, append(str(string(c.session)), body...))
	if err != nil {
		c.t.Fatal(err)
	}
	c.mustSend(append(body, str(string(ssh.Marshal(sig)))...))
}

// rawLogin returns a raw client that has logged in.
func (w *world) rawLogin() *rawClient {
	w.t.Helper()
	c := newRaw(w.t, w.serve())
	c.handshake()
	c.prove("alice", w.alice)
	c.expect(msgAuthSuccess)
	return c
}

// open opens a channel and returns the server's number for it. Ours is id.
func (c *rawClient) open(kind string, id, window uint32) (uint32, error) {
	if err := c.send(cat(msgChannelOpen, str(kind), u32(id), u32(window), u32(32<<10))); err != nil {
		return 0, err
	}
	for {
		p, err := c.recv()
		switch {
		case err != nil:
			return 0, err
		case p[0] == msgExtInfo:
		case p[0] == msgChannelConfirm:
			return binary.BigEndian.Uint32(p[5:]), nil
		default:
			return 0, fmt.Errorf("message %d for a confirmation", p[0])
		}
	}
}

func (c *rawClient) mustOpen(kind string, id uint32) uint32 {
	c.t.Helper()
	n, err := c.open(kind, id, 1<<20)
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// ended waits until the server has closed the connection and returns the number
// of messages before that. It answers nothing.
func (c *rawClient) ended() (n int) {
	for {
		if _, err := c.recv(); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !left(err) {
				c.t.Errorf("the connection ends with %v", err)
			}
			return n
		}
		n++
	}
}
