package sshserver

import (
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"
)

// quiet turns off what a flood would fill the log with, and its brake.
func quiet(c *Config) {
	c.Log = zap.NewNop()
	c.Limits.MessageRate = 1 << 30
}

// heap returns the bytes of live objects.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// grows fails the test when the heap has grown by more than limit since base.
func grows(t *testing.T, what string, base, limit int64) {
	t.Helper()
	if grown := heap() - base; grown > limit {
		t.Errorf("%s: %d KiB held, want at most %d", what, grown>>10, limit>>10)
	}
}

// sendMany sends a payload n times, many at a time.
func (c *rawClient) sendMany(payload []byte, n int) error {
	var batch []byte
	for i := range n {
		batch = append(batch, c.seal(payload)...)
		if len(batch) > 60<<10 || i == n-1 {
			if _, err := c.conn.Write(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return nil
}

// ping sends a request and waits for its answer: whatever was sent before has
// been taken in.
func (c *rawClient) ping() {
	c.t.Helper()
	c.mustSend(cat(msgGlobalRequest, str("hello"), []byte{1}))
	for {
		p, err := c.recv()
		if err != nil {
			c.t.Fatal(err)
		}
		if p[0] == msgRequestSuccess {
			return
		}
	}
}

// stuck accepts a channel and never reads it.
func stuck(c *Conn, nc ssh.NewChannel) {
	if _, _, err := nc.Accept(); err == nil {
		<-c.Context().Done()
	}
}

// talk accepts a channel and writes without end.
func talk(_ *Conn, nc ssh.NewChannel) {
	ch, _, err := nc.Accept()
	for buf := make([]byte, 1<<20); err == nil; {
		_, err = ch.Write(buf)
	}
}

// TestTinyPackets: BUDGETS 12. Packets of one byte, which x/crypto's window lets
// through by the million, on a channel that nobody reads: the channel is dropped
// when its client holds too much, what it held is let go, and the connection
// lives. Extended data, which nobody ever reads, is not kept at all.
func TestTinyPackets(t *testing.T) {
	const limit = 2 << 20
	w := newWorld(t, func(c *Config) {
		quiet(c)
		c.Channels["stuck"] = stuck
		c.Limits.MaxBuffered, c.Limits.StallTimeout = limit, time.Millisecond
	})
	c := w.rawLogin()
	base := heap()
	n := c.mustOpen("stuck", 7)
	extended := cat(msgChannelExtData, u32(n), u32(1), str("x"))
	if err := c.sendMany(extended, 40_000); err != nil {
		t.Fatal(err)
	}
	c.ping()
	grows(t, "extended data", base, 1<<20)

	data := cat(msgChannelData, u32(n), str("x"))
	for i := range 20 { // 7 MiB on the wire, 10 MiB in x/crypto's lists
		if err := c.sendMany(data, 10_000); err != nil {
			t.Fatal(err)
		}
		c.ping()
		grows(t, "tiny packets", base, 2*limit)
		if w.server.clients.total.Load() > 2*limit {
			t.Errorf("after %d packets the account has %d bytes", i*10_000, w.server.clients.total.Load())
		}
	}
	grows(t, "after the flood", base, limit)
	if got := w.server.clients.total.Load(); got > limit {
		t.Errorf("the account has %d bytes", got)
	}
	// The one channel is gone, others work.
	if err := c.send(cat(msgChannelClose, u32(n))); err != nil {
		t.Fatal(err)
	}
	e := c.mustOpen("echo", 8)
	c.mustSend(cat(msgChannelData, u32(e), str("still here")))
	for p, err := c.recv(); ; p, err = c.recv() {
		if err != nil {
			t.Fatal(err)
		}
		if p[0] == msgChannelData {
			break
		}
	}
}

// TestSlowReaderIsNotDropped: back-pressure alone bounds a channel whose handler
// reads slowly, however much goes through it.
func TestSlowReaderIsNotDropped(t *testing.T) {
	const size = 24 << 20
	got := make(chan int, 1)
	w := newWorld(t, func(c *Config) {
		quiet(c)
		c.Limits.MaxBuffered, c.Limits.StallTimeout = 1<<20, 5*time.Second
		c.Channels["slow"] = func(_ *Conn, nc ssh.NewChannel) {
			ch, _, err := nc.Accept()
			if err != nil {
				return
			}
			n := 0
			for buf := make([]byte, 16<<10); ; {
				m, err := ch.Read(buf)
				n += m
				runtime.Gosched()
				if err != nil {
					break
				}
			}
			got <- n
		}
	})
	ch := mustChannel(t, w.login(), "slow")
	if n, err := ch.Write(make([]byte, size)); n != size || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
	ch.CloseWrite()
	if n := <-got; n != size {
		t.Errorf("the handler read %d bytes, want %d", n, size)
	}
}

// TestUnsolicitedAnswers: CVE-2026-39830, a hundred thousand answers nobody asked
// for, on the connection and on a channel, wedge nothing.
func TestUnsolicitedAnswers(t *testing.T) {
	w := newWorld(t, quiet)
	c := w.rawLogin()
	n := c.mustOpen("echo", 0)
	for _, p := range [][]byte{{msgRequestSuccess}, {msgRequestFailure}, cat(msgChannelSuccess, u32(n)), cat(msgChannelFailed, u32(n))} {
		if err := c.sendMany(p, 100_000); err != nil {
			t.Fatal(err)
		}
	}
	c.ping()
	start := time.Now()
	w.conn().Close()
	<-w.errs
	if took := time.Since(start); took > time.Second {
		t.Errorf("closing took %v, want less than a second", took)
	}
}

// TestFloods: F15, CVE-2026-39827. Messages that cost us work, by the tens of
// thousand: memory stays flat and the connection serves on.
func TestFloods(t *testing.T) {
	const n = 30_000
	w := newWorld(t, quiet)
	c := w.rawLogin()
	id := c.mustOpen("echo", 0)
	done := make(chan struct{})
	hellos := 0
	go func() { // an honest client reads
		defer close(done)
		for hellos < 1 {
			p, err := c.recv()
			if err != nil {
				t.Error(err)
				return
			}
			if p[0] == msgRequestSuccess {
				hellos++
			}
		}
	}()
	base := heap()
	for name, payload := range map[string][]byte{
		"channel opens":    cat(msgChannelOpen, str("tun@openssh.com"), u32(1), u32(0), u32(32<<10)),
		"global requests":  cat(msgGlobalRequest, str("nonsense"), []byte{1}),
		"channel requests": cat(msgChannelRequest, u32(id), str("env"), []byte{1}, str("A"), str("b")),
		"window-change":    cat(msgChannelRequest, u32(id), str("window-change"), []byte{0}, make([]byte, 16)),
		"empty data":       cat(msgChannelData, u32(id), str("")),
		"window adjusts":   cat(93, u32(id), u32(0)),
		"ignore":           cat(msgIgnore, str("x")),
		"debug":            cat(4, []byte{0}, str("x"), str("")),
		"pings":            cat(msgPing, str("x")),
	} {
		if err := c.sendMany(payload, n); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		grows(t, name, base, 8<<20)
	}
	c.mustSend(cat(msgGlobalRequest, str("hello"), []byte{1}))
	<-done
	grows(t, "in the end", base, 4<<20)
}

// TestFloodUnread: the same from a peer that reads none of the refusals: what
// waits to be written is bounded, and the peer is cut.
func TestFloodUnread(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		quiet(c)
		c.Keepalive = Keepalive{Interval: 100 * time.Millisecond, Misses: 3}
	})
	c := w.rawLogin()
	base, goroutines := heap(), runtime.NumGoroutine()
	failed := make(chan error, 1)
	go func() { failed <- c.sendMany(cat(msgChannelOpen, str("nonsense"), u32(1), u32(0), u32(32<<10)), 1<<20) }()
	for {
		select {
		case err := <-w.errs:
			if !errors.Is(err, errDead) {
				t.Errorf("ServeConn = %v, want %v", err, errDead)
			}
			if err := <-failed; err == nil {
				t.Error("all was taken from a peer that reads nothing")
			}
			return
		default:
			if n := runtime.NumGoroutine() - goroutines; n > maxRefusing+1000 { // and those that were read at once, which count when they run
				t.Fatalf("%d goroutines for a peer that reads nothing", n)
			}
			grows(t, "unread refusals", base, 16<<20)
		}
	}
}

// TestRateIsBounded: F15, beyond its rate a peer is read more slowly.
func TestRateIsBounded(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.MessageRate = 500 })
	c := w.login()
	start := time.Now()
	for range 1250 { // the burst is 1000
		if _, _, err := c.SendRequest("nonsense", true, nil); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took < 400*time.Millisecond {
		t.Errorf("1250 requests took %v, want about 500 ms", took)
	}
}

// TestBadPackets: F14, lengths and windows that cannot be, before and after the
// key exchange: the connection ends, at once and without a panic.
func TestBadPackets(t *testing.T) {
	lengths := []uint32{0, 1, 2, 4, 256<<10 + 1, 1 << 31, 1<<32 - 1}
	t.Run("in clear", func(t *testing.T) {
		for _, n := range lengths {
			w := newWorld(t, nil)
			c := newRaw(t, w.serve())
			c.conn.Write(append(u32(n), make([]byte, 64)...))
			c.ended()
			if err := <-w.errs; err == nil {
				t.Errorf("length %d: ServeConn = nil", n)
			}
		}
	})
	t.Run("padding", func(t *testing.T) {
		for _, pad := range []byte{0, 1, 3, 255} {
			w := newWorld(t, nil)
			c := newRaw(t, w.serve())
			c.conn.Write(append(append(u32(12), pad, msgKexInit), make([]byte, 10)...))
			c.conn.Write(make([]byte, 64))
			c.ended()
			<-w.errs
		}
	})
	t.Run("encrypted", func(t *testing.T) {
		for _, n := range lengths {
			w := newWorld(t, nil)
			c := w.rawLogin()
			c.conn.Write(append(u32(n), make([]byte, 64)...))
			c.ended()
			<-w.errs
		}
	})
	for name, send := range map[string]func(c *rawClient, ch uint32) []byte{
		"data past the window": func(c *rawClient, ch uint32) []byte {
			for range 2<<20/(32<<10) + 1 {
				c.send(cat(msgChannelData, u32(ch), str(string(make([]byte, 32<<10)))))
			}
			return []byte{msgRequestSuccess}
		},
		"window overflow": func(c *rawClient, ch uint32) []byte {
			c.send(cat(93, u32(ch), u32(1<<32-1)))
			return cat(93, u32(ch), u32(1<<32-1))
		},
		"data larger than a packet may hold": func(_ *rawClient, ch uint32) []byte {
			return cat(msgChannelData, u32(ch), str(string(make([]byte, 33<<10))))
		},
		"a lying data length":   func(_ *rawClient, ch uint32) []byte { return cat(msgChannelData, u32(ch), u32(1<<31), []byte("x")) },
		"data on no channel":    func(*rawClient, uint32) []byte { return cat(msgChannelData, u32(4711), str("x")) },
		"an unknown message":    func(*rawClient, uint32) []byte { return []byte{77} },
		"a short channel open":  func(*rawClient, uint32) []byte { return []byte{msgChannelOpen, 0, 0} },
		"a short channel close": func(*rawClient, uint32) []byte { return []byte{msgChannelClose, 0} },
		"a confirmation": func(_ *rawClient, ch uint32) []byte {
			return cat(msgChannelConfirm, u32(ch), u32(0), u32(1), u32(32<<10))
		},
		"NEWKEYS out of the air": func(*rawClient, uint32) []byte { return []byte{msgNewKeys} },
		"data in a key exchange": func(c *rawClient, ch uint32) []byte {
			c.send(plainOffer.kexInit())
			return cat(msgChannelData, u32(ch), str("x"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Channels["stuck"] = stuck })
			c := w.rawLogin()
			c.send(send(c, c.mustOpen("stuck", 0)))
			c.ended()
			<-w.errs
			if len(w.closed) != 1 {
				t.Errorf("Closed was called %d times, want once", len(w.closed))
			}
		})
	}
}

// TestZeroWindow: F16, a peer that lets nothing through makes the handler wait,
// and nothing else; its end ends the handler.
func TestZeroWindow(t *testing.T) {
	ended := make(chan error, 1)
	w := newWorld(t, func(c *Config) {
		c.Channels["talk"] = func(_ *Conn, nc ssh.NewChannel) {
			ch, _, err := nc.Accept()
			if err != nil {
				return
			}
			_, err = ch.Write(make([]byte, 1<<20))
			ended <- err
		}
	})
	c := w.rawLogin()
	base := heap()
	if _, err := c.open("talk", 0, 0); err != nil {
		t.Fatal(err)
	}
	c.ping()
	grows(t, "a shut window", base, 4<<20)
	select {
	case err := <-ended:
		t.Fatalf("the write ended with %v", err)
	default:
	}
	c.conn.Close()
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("the write ended with %v, want EOF", err)
	}
	<-w.errs
}

// TestStalledRekey: CVE-2025-22869, a client begins a key exchange and goes
// silent while the server has a lot to say: little is kept, and the client is
// cut. One that fills the time with SSH_MSG_IGNORE is too.
func TestStalledRekey(t *testing.T) {
	for name, chatty := range map[string]bool{"silent": false, "chatty": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) {
				quiet(c)
				c.Keepalive = Keepalive{Interval: 150 * time.Millisecond, Misses: 3}
				c.Channels["talk"] = talk
			})
			base := heap()
			c := w.rawLogin()
			if _, err := c.open("talk", 0, 1<<31); err != nil {
				t.Fatal(err)
			}
			c.mustSend(plainOffer.kexInit())
			go io.Copy(io.Discard, c.conn)
			start := time.Now()
			for err := error(nil); chatty && err == nil; {
				err = c.send(cat(msgIgnore, str("x")))
				grows(t, "a stalled key exchange", base, 16<<20)
			}
			if err := <-w.errs; !errors.Is(err, errDead) && !chatty {
				t.Errorf("ServeConn = %v, want %v", err, errDead)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("cut after %v", took)
			}
		})
	}
}

// TestRekey: a key exchange in the middle of a connection, asked for by either
// side, and the data goes on.
func TestRekey(t *testing.T) {
	w := newWorld(t, nil)
	c := w.rawLogin()
	n := c.mustOpen("echo", 0)
	for i := range byte(3) {
		if err := c.kex(plainOffer); err != nil {
			t.Fatal(err)
		}
		c.mustSend(cat(msgChannelData, u32(n), str(string('a'+rune(i)))))
		if p := c.expect(msgChannelData); p[9] != 'a'+i {
			t.Errorf("after key exchange %d: %q", i, p)
		}
	}
}

// TestStrictKex: CVE-2023-48795 (Terrapin). With strict key exchange a message
// slipped into the first one ends the connection, and a good one works.
func TestStrictKex(t *testing.T) {
	strict := plainOffer
	strict.kex += ",kex-strict-c-v00@openssh.com"
	w := newWorld(t, nil)
	c := newRaw(t, w.serve())
	flight := c.firstFlight(strict)
	n := 4 + binary.BigEndian.Uint32(flight)
	c.conn.Write(flight[:n])
	c.mustSend(cat(msgIgnore, str("")))
	c.conn.Write(flight[n:])
	c.ended()
	if err := <-w.errs; err == nil {
		t.Error("an IGNORE in a strict key exchange was taken")
	}

	c = newRaw(t, w.serve())
	c.mustSend(cat(msgIgnore, str("")))
	c.conn.Write(c.firstFlight(strict))
	c.ended()
	<-w.errs

	// One that counts its packets anew after NEWKEYS gets on; with AES-GCM the
	// counters are not the packets', so it is enough that the server does not
	// mind.
	c = newRaw(t, w.serve())
	if err := c.kex(strict); err != nil {
		t.Fatal(err)
	}
	c.mustSend(cat(msgServiceRequest, str("ssh-userauth")))
	c.expect(6)
}
