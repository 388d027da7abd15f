package sshserver

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// middle is somebody on the way between a client and a server. Each function
// has one direction; nil passes everything on.
type middle struct {
	toServer, toClient func(from *bufio.Reader, to io.Writer) error
}

// through returns the client's end of a connection to w that goes through m.
func (m middle) through(w *world) net.Conn {
	w.t.Helper()
	far := w.serve()
	near, between := tcpPair(w.t)
	var wg sync.WaitGroup
	carry := func(f func(*bufio.Reader, io.Writer) error, from, to net.Conn) {
		r := bufio.NewReaderSize(from, 64<<10)
		var err error
		if f != nil {
			err = f(r, to)
		}
		if err == nil {
			_, _ = r.WriteTo(to)
		}
		from.Close()
		to.Close()
	}
	wg.Go(func() { carry(m.toServer, between, far) })
	wg.Go(func() { carry(m.toClient, far, between) })
	w.t.Cleanup(func() {
		near.Close()
		between.Close()
		far.Close()
		wg.Wait()
	})
	return near
}

// flip changes one bit of the byte at an offset.
func flip(at int64, bit uint) func(*bufio.Reader, io.Writer) error {
	return func(from *bufio.Reader, to io.Writer) error {
		if _, err := io.CopyN(to, from, at); err != nil {
			return err
		}
		b, err := from.ReadByte()
		if err != nil {
			return err
		}
		_, err = to.Write([]byte{b ^ 1<<bit})
		return err
	}
}

// counter counts what is written to it.
type counter struct {
	io.Writer
	n atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// pattern is text in which no part is like another.
func pattern(n int) []byte {
	b := make([]byte, 0, n)
	for i := uint32(0); len(b) < n; i++ {
		b = binary.BigEndian.AppendUint32(b, i*2654435761)
	}
	return b
}

// TestOneBitOnTheWay: THREATS 2 (network attacker). With every cipher that may be
// configured, whichever bit of a connection is changed on the way, in whichever
// direction, what was changed reaches nobody and the connection ends.
func TestOneBitOnTheWay(t *testing.T) {
	text := pattern(64 << 10)
	for i, cipher := range ciphers {
		t.Run(cipher, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(c *Config) { quiet(c); c.Algorithms.Ciphers = []string{cipher} })
			cfg := w.clientConfig("alice", w.alice)
			cfg.Ciphers = []string{cipher}
			for n := range int64(4) {
				at := 4_000 + 1531*n + int64(i) // beyond the sign-in, some way into the data
				for name, m := range map[string]middle{"to the server": {toServer: flip(at, uint(n)%8)}, "to the client": {toClient: flip(at, uint(n)%8)}} {
					c, err := w.dial(m.through(w), cfg)
					if err != nil {
						t.Fatalf("%s, byte %d: signed in with %v", name, at, err)
					}
					ch := mustChannel(t, c, "echo")
					go func() { // a changed length waits for more, so there is more
						for err := error(nil); err == nil; {
							_, err = ch.Write(text)
						}
					}()
					var got bytes.Buffer
					_, _ = io.Copy(&got, io.LimitReader(ch, 100<<20))
					if whole := bytes.Repeat(text, got.Len()/len(text)+1); !bytes.HasPrefix(whole, got.Bytes()) {
						t.Errorf("%s, byte %d: what came back was not sent", name, at)
					}
					if got.Len() >= 100<<20 {
						t.Errorf("%s, byte %d: the connection lives", name, at)
					}
					c.Close()
					<-w.errs
				}
			}
		})
	}
}

// clearPacket reads one packet that is not encrypted.
func clearPacket(from *bufio.Reader) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(from, n[:]); err != nil {
		return nil, err
	}
	p := make([]byte, 4+binary.BigEndian.Uint32(n[:]))
	copy(p, n[:])
	_, err := io.ReadFull(from, p[4:])
	return p, err
}

// rewritten has one word in a KEXINIT replaced by another of the same length.
func rewritten(from *bufio.Reader, to io.Writer, old, word string) error {
	line, err := from.ReadString('\n')
	if err != nil {
		return err
	}
	if _, err := io.WriteString(to, line); err != nil {
		return err
	}
	p, err := clearPacket(from)
	if err != nil {
		return err
	}
	if len(old) != len(word) || !bytes.Contains(p, []byte(old)) {
		return fmt.Errorf("%q cannot be made of %q", word, old)
	}
	_, err = to.Write(bytes.ReplaceAll(p, []byte(old), []byte(word)))
	return err
}

// TestRewrittenOffer: F27. Somebody on the way takes the better algorithms, or
// strict key exchange, out of what both sides offer. Each side has signed, or
// checks, what it really said, so there is no connection.
func TestRewrittenOffer(t *testing.T) {
	for name, words := range map[string]struct{ old, word string }{
		"the post-quantum exchange": {old: ssh.KeyExchangeMLKEM768X25519, word: "mlkem768x25519-sha000"},
		"the first cipher":          {old: "aes128-gcm@openssh.com", word: "aes000-gcm@openssh.com"},
		"strict key exchange":       {old: "kex-strict-", word: "kex-000000-"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, quiet)
			done := make(chan error, 2)
			edit := func(from *bufio.Reader, to io.Writer) error {
				err := rewritten(from, to, words.old, words.word)
				done <- err
				return err
			}
			nc := middle{toServer: edit, toClient: edit}.through(w)
			if out, err := newDialer(t).Connect(t.Context(), nc, w.outgoing(nil)); err == nil {
				out.Cut(errors.New("let in"))
				out.Wait()
				t.Error("a connection whose offers were rewritten was made")
			} else if !strings.Contains(err.Error(), "signature") {
				t.Errorf("Connect = %v, want a signature that does not verify", err)
			}
			if err := <-w.errs; err == nil || len(w.conns()) != 0 {
				t.Errorf("ServeConn = %v with %d connections opened", err, len(w.conns()))
			}
			if err := errors.Join(<-done, <-done); err != nil {
				t.Errorf("the test's own: %v", err)
			}
		})
	}
}

// TestSlippedIn: CVE-2023-48795 (Terrapin) against who dials. A message that
// somebody slips into what the server says, before its offer or before its new
// keys, ends the connection at that message, not only by a count that is off.
func TestSlippedIn(t *testing.T) {
	for name, before := range map[string]byte{"before the offer": msgKexInit, "before the server's key": 31, "before the new keys": msgNewKeys} {
		for what, payload := range map[string][]byte{"ignore": cat(msgIgnore, str("")), "debug": cat(4, []byte{0}, str(""), str("")), "ping": cat(msgPing, str(""))} {
			t.Run(what+" "+name, func(t *testing.T) {
				w := newWorld(t, quiet)
				slip := func(from *bufio.Reader, to io.Writer) error {
					line, err := from.ReadString('\n')
					if err != nil {
						return err
					}
					if _, err := io.WriteString(to, line); err != nil {
						return err
					}
					for {
						p, err := clearPacket(from)
						if err != nil {
							return err
						}
						if p[5] == before {
							_, err = to.Write(append(frame(payload, 8), p...))
							return err
						}
						if _, err := to.Write(p); err != nil {
							return err
						}
					}
				}
				out, err := newDialer(t).Connect(t.Context(), middle{toClient: slip}.through(w), w.outgoing(nil))
				if err == nil {
					out.Cut(errors.New("let in"))
					out.Wait()
					t.Fatal("a message was slipped into the key exchange")
				}
				if s := err.Error(); !strings.Contains(s, "unexpected message") && !strings.Contains(s, "sequence number != 1") && !strings.Contains(s, "first packet should be") {
					t.Errorf("Connect = %v, want an end at the message itself", err)
				}
				if err := <-w.errs; err == nil || len(w.conns()) != 0 {
					t.Errorf("ServeConn = %v with %d connections opened", err, len(w.conns()))
				}
			})
		}
	}
}

// TestDialerFlippedHandshake: F13 for who dials. A server's handshake that is cut,
// or has a bit changed, anywhere, gives an error or, where the bit is in padding,
// the connection that it should; nothing hangs and nothing panics.
func TestDialerFlippedHandshake(t *testing.T) {
	w := newWorld(t, quiet)
	var size counter
	out, err := newDialer(t).Connect(t.Context(), middle{toClient: func(from *bufio.Reader, to io.Writer) error {
		size.Writer = to
		_, err := io.Copy(&size, from)
		return err
	}}.through(w), w.outgoing(nil))
	if err != nil {
		t.Fatal(err)
	}
	out.Cut(errors.New("enough"))
	out.Wait()
	<-w.errs
	// A changed length makes the client wait for more, until the server gives up.
	w = newWorld(t, func(c *Config) {
		quiet(c)
		c.Limits.KexTimeout, c.Limits.LoginTimeout = 300*time.Millisecond, 300*time.Millisecond
	})
	for at := int64(0); at < size.n.Load(); at += 29 {
		for name, f := range map[string]func(*bufio.Reader, io.Writer) error{
			"cut": func(from *bufio.Reader, to io.Writer) error {
				if _, err := io.CopyN(to, from, at); err != nil {
					return err
				}
				return io.ErrUnexpectedEOF
			},
			"changed": func(from *bufio.Reader, to io.Writer) error {
				if err := flip(at, uint(at)%8)(from, to); err != nil {
					return err
				}
				_, _ = from.WriteTo(to)
				return nil
			},
		} {
			nc := middle{toClient: f}.through(w)
			out, err := newDialer(t).Connect(t.Context(), nc, w.outgoing(nil))
			if err == nil {
				out.Cut(errors.New("enough"))
				out.Wait()
				if name == "cut" {
					t.Errorf("cut at byte %d of %d: connected", at, size.n.Load())
				}
			}
			nc.Close()
			<-w.errs
		}
	}
}
