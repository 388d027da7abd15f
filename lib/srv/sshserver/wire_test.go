package sshserver

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
)

// flight is the first thing a raw client sends, its identification included.
func flight(t testing.TB) []byte {
	t.Helper()
	c := &rawClient{t: t}
	return append([]byte(clientLine+"\r\n"), c.firstFlight(plainOffer)...)
}

// TestIdentification: F12, F31. Only one line may come first, and it is printable.
func TestIdentification(t *testing.T) {
	for name, row := range map[string]struct {
		send string
		ok   bool
	}{
		"plain":           {"SSH-2.0-x\r\n", true},
		"LF alone":        {"SSH-2.0-x\n", true},
		"1.99":            {"SSH-1.99-x\r\n", true},
		"comment":         {"SSH-2.0-x with a comment\r\n", true},
		"longest":         {"SSH-2.0-" + strings.Repeat("x", 245) + "\r\n", true},
		"too long":        {"SSH-2.0-" + strings.Repeat("x", 246) + "\r\n", false},
		"endless":         {"SSH-2.0-" + strings.Repeat("x", 1<<20), false},
		"version 1":       {"SSH-1.5-x\r\n", false},
		"version 3":       {"SSH-3.0-x\r\n", false},
		"http":            {"GET / HTTP/1.1\r\n\r\n", false},
		"lines before it": {strings.Repeat("hello\r\n", 1024) + "SSH-2.0-x\r\n", false},
		"empty line":      {"\r\nSSH-2.0-x\r\n", false},
		"NUL":             {"SSH-2.0-\x00\r\n", false},
		"escape":          {"SSH-2.0-\x1b]52;c;AAAA\x07\r\n", false},
		"CR inside":       {"SSH-2.0-a\rb\r\n", false},
		"C1":              {"SSH-2.0-\x9b31m\r\n", false},
		"RTL override":    {"SSH-2.0-\u202e\r\n", false},
		"cut":             {"SSH-2", false},
		"a log line":      {"SSH-2.0-x\r\nAccepted publickey for root from 1.2.3.4\r\n", true}, // what follows is no packet
	} {
		t.Run(name, func(t *testing.T) {
			client, server := memPair()
			io.WriteString(client, row.send)
			client.(*memConn).w.close()
			line, err := identify(server)
			if (err == nil) != row.ok {
				t.Errorf("identify = %q, %v, want ok: %v", line, err, row.ok)
			}
			if err == nil && !strings.HasPrefix(row.send, line) {
				t.Errorf("identify = %q of %q", line, row.send)
			}
			server.Close()
			if got, _ := io.ReadAll(client); string(got) != Version+"\r\n" {
				t.Errorf("the server says %q", got)
			}
		})
	}
}

// FuzzIdentify: whatever comes, it is refused or printable, and bounded.
func FuzzIdentify(f *testing.F) {
	for _, s := range []string{"SSH-2.0-OpenSSH_9.2\r\n", "SSH-1.99-x\n", "SSH-", "SSH-2.0-\x1b[2J\r\n", strings.Repeat("SSH-2.0-", 60)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		client, server := memPair()
		client.Write(b)
		client.Close()
		line, err := identify(server)
		if err != nil {
			return
		}
		if len(line) > maxIdentification || !strings.HasPrefix(string(b), line) || strings.ContainsFunc(strings.TrimRight(line, "\r\n"), func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("identify = %q of %q", line, b)
		}
	})
}

// FuzzHandshake: bytes of an unauthenticated peer, in clear, end in an error and
// in nothing else: no panic, no identity.
func FuzzHandshake(f *testing.F) {
	good := flight(f)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(clientLine + "\r\n\x00\x00\x00\x0c\x0a\x14"))
	for _, o := range []offer{
		{kex: plainOffer.kex + ",kex-strict-c-v00@openssh.com,ext-info-c", hostKey: "ssh-ed25519", cipher: "aes128-gcm@openssh.com", compression: "none"},
		{kex: "mlkem768x25519-sha256", hostKey: "ssh-ed25519", cipher: "aes128-gcm@openssh.com", compression: "none"},
		{kex: "ecdh-sha2-nistp256", hostKey: "ssh-ed25519", cipher: "aes256-gcm@openssh.com", compression: "none"},
		{},
	} {
		c := &rawClient{t: f}
		f.Add(append([]byte(clientLine+"\r\n"), c.firstFlight(o)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWorld(t, func(c *Config) { c.Log = zap.NewNop() })
		client, server := memPair()
		client.Write(b)
		client.(*memConn).w.close()
		if err := w.server.ServeConn(t.Context(), server); err == nil || len(w.conns()) != 0 {
			t.Errorf("ServeConn = %v with %d connections opened", err, len(w.conns()))
		}
	})
}

// TestTruncatedHandshake: F13, a good handshake cut at each of its bytes ends
// cleanly, and nothing is left running.
func TestTruncatedHandshake(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	good := flight(t)
	w := newWorld(t, func(c *Config) { c.Log = zap.NewNop() })
	for n := range len(good) + 1 {
		client, server := memPair()
		client.Write(good[:n])
		client.(*memConn).w.close()
		start := time.Now()
		if err := w.server.ServeConn(t.Context(), server); err == nil {
			t.Errorf("cut at byte %d: ServeConn = nil", n)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("cut at byte %d: took %v", n, took)
		}
	}
}

// TestFlippedHandshake: F13, the same with each byte flipped in turn. The peer is
// there, but waits for what the server says.
func TestFlippedHandshake(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	good := flight(t)
	w := newWorld(t, func(c *Config) { c.Log = zap.NewNop() })
	for n := range good {
		bad := append([]byte(nil), good...)
		bad[n] ^= 0xff
		client, server := memPair()
		client.Write(bad)
		client.(*memConn).w.close()
		if err := w.server.ServeConn(t.Context(), server); err == nil {
			t.Errorf("byte %d flipped: ServeConn = nil", n)
		}
	}
	if len(w.conns()) != 0 {
		t.Error("somebody got in")
	}
}

// TestFlippedTransport: THREATS 2 (network attacker), after the key exchange a
// flipped bit ends the connection, wherever it is.
func TestFlippedTransport(t *testing.T) {
	for _, at := range []int{0, 2, 3, 4, 5, 12, 19, 20, 30, 35} {
		w := newWorld(t, nil)
		c := w.rawLogin()
		packet := c.seal(cat(msgGlobalRequest, str("hello"), []byte{1}))
		packet[at] ^= 1
		c.conn.Write(packet)
		// A changed length makes the server wait for more; there is enough.
		c.conn.Write(make([]byte, 1<<19))
		for {
			p, err := c.recv()
			if err != nil {
				break
			}
			if p[0] == msgRequestSuccess {
				t.Errorf("bit flipped in byte %d: the packet was taken", at)
			}
		}
		<-w.errs
	}
}

// TestReplayedPackets: a packet sent twice ends the connection.
func TestReplayedPackets(t *testing.T) {
	w := newWorld(t, nil)
	c := w.rawLogin()
	packet := c.seal(cat(msgGlobalRequest, str("hello"), []byte{1}))
	c.conn.Write(packet)
	c.expect(msgRequestSuccess)
	c.conn.Write(packet)
	c.ended()
	<-w.errs
}

// TestTLSHelloAfterIdentification and other strangers that got this far.
func TestStrangers(t *testing.T) {
	for name, b := range map[string][]byte{
		"TLS hello":    append([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, make([]byte, 500)...),
		"NUL":          make([]byte, 4096),
		"text":         []byte(strings.Repeat("hello world ", 1000)),
		"ones":         []byte(strings.Repeat("\xff", 4096)),
		"a reply":      frame(cat(31, str("x"), str("y"), str("z")), 8),
		"auth success": frame([]byte{msgAuthSuccess}, 8),
		"auth request": frame(cat(msgAuthRequest, str("alice"), str("ssh-connection"), str("none")), 8),
		"two KEXINITs": append(frame(plainOffer.kexInit(), 8), frame(plainOffer.kexInit(), 8)...),
		"empty kex":    append(frame(plainOffer.kexInit(), 8), frame(cat(msgECDHInit, str("")), 8)...),
		"zero point":   append(frame(plainOffer.kexInit(), 8), frame(cat(msgECDHInit, str(string(make([]byte, 32)))), 8)...),
		"huge list":    frame(offer{kex: strings.Repeat("a,", 100_000)}.kexInit(), 8),
		"disconnect":   frame(cat(msgDisconnect, u32(11), str("\x1b]0;bye\x07"), str("")), 8),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			c := newRaw(t, w.serve())
			c.conn.Write(b)
			c.conn.(*net.TCPConn).CloseWrite()
			c.ended()
			if err := <-w.errs; err == nil || len(w.conns()) != 0 {
				t.Errorf("ServeConn = %v, want an error", err)
			}
		})
	}
}

// TestFrame checks the test's own client.
func TestFrame(t *testing.T) {
	for n := range 40 {
		for _, block := range []int{8, 16} {
			f := frame(make([]byte, n), block)
			if got := int(binary.BigEndian.Uint32(f)); got != len(f)-4 || f[4] < 4 {
				t.Errorf("frame of %d bytes: length %d of %d, padding %d", n, got, len(f), f[4])
			}
		}
	}
}
