package listener

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"
)

// pipes is a listener in memory, for bubbles.
type pipes struct {
	conns chan net.Conn
	errs  chan error
	done  chan struct{}
}

func newPipes() *pipes {
	return &pipes{conns: make(chan net.Conn), errs: make(chan error), done: make(chan struct{})}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case err := <-p.errs:
		return nil, err
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 3022} }

// from is a connection with a remote address.
type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// dial connects from an address.
func (p *pipes) dial(addr string) net.Conn {
	client, server := net.Pipe()
	p.conns <- from{server, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))}
	return client
}

// bench is a running listener in a bubble, and what it gave out.
type bench struct {
	*Listener
	*pipes
	t    *testing.T
	reg  *prometheus.Registry
	got  chan given
	stop func()
}

type given struct {
	p Protocol
	c *Conn
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: []string{"a"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// run starts a listener in the test's bubble.
func run(t *testing.T, change func(*Config)) *bench {
	t.Helper()
	cert := selfSigned(t)
	reg := prometheus.NewRegistry()
	cfg := Config{
		Bind:        Bind{Addr: "192.0.2.1:3022"},
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		Data:        &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}},
		Registerer:  reg,
		Log:         zaptest.NewLogger(t),
	}
	if change != nil {
		change(&cfg)
	}
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Listener: l, pipes: newPipes(), t: t, reg: reg, got: make(chan given, 16)}
	l.listen = func(context.Context, string) (net.Listener, error) { return b.pipes, nil }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	for p, ln := range map[Protocol]net.Listener{ProtocolSSH: l.SSH(), ProtocolHTTPS: l.HTTPS(), ProtocolData: l.Data()} {
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				b.got <- given{p, c.(*Conn)}
			}
		}()
	}
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	}
	return b
}

// count returns the value of a counter, by the value of its label if it has one.
func (b *bench) count(name, label string) float64 {
	b.t.Helper()
	families, err := b.reg.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "accessd_listener_"+name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// closed reports whether the peer of c has closed it, after having read nothing
// from it: whatever the listener refuses it answers with silence.
func closed(t *testing.T, c net.Conn) {
	t.Helper()
	got, err := io.ReadAll(c)
	if len(got) > 0 {
		t.Errorf("the listener answered %q, want nothing", got)
	}
	if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("reading until the end: %v", err)
	}
}

// TestFirstBytes: F12, the first bytes decide and garbage is closed without a
// word.
func TestFirstBytes(t *testing.T) {
	junk := strings.Repeat("A", 1<<20)
	for name, row := range map[string]struct {
		send string
		want Protocol // "" is closed
	}{
		"ssh":               {"SSH-2.0-OpenSSH_9.2\r\n", ProtocolSSH},
		"ssh version 1":     {"SSH-1.5-x\r\n", ProtocolSSH}, // for sshserver to refuse
		"plain data":        {DataPreface + "ticket", ProtocolData},
		"http":              {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ""},
		"nul":               {"\x00\x00\x00\x00\x00\x00\x00\x00", ""},
		"1 MB":              {junk, ""},
		"almost ssh":        {"SSH_2.0", ""},
		"almost data":       {"ACCESSD-DATA/2\n", ""},
		"lines before ssh":  {strings.Repeat("hello\r\n", 1024) + "SSH-2.0-x\r\n", ""},
		"proxy v1":          {"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nSSH-2.0-x\r\n", ""},
		"proxy v2":          {"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c", ""},
		"TLS but no hello":  {"\x16\x03\x01\x00\x05hello", ""},
		"SSL 2":             {"\x80\x2e\x01\x00\x02", ""},
		"escape sequences":  {"\x1b]52;c;AAAA\x07", ""},
		"a TLS alert first": {"\x15\x03\x01\x00\x02\x02\x28", ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := run(t, func(c *Config) { c.PlainData = true })
				defer b.stop()
				c := b.dial("198.51.100.1:5000")
				go io.WriteString(c, row.send)
				if row.want == "" {
					if strings.HasPrefix(row.send, "\x16") {
						io.Copy(io.Discard, c) // TLS answers with its alert
					} else {
						closed(t, c)
					}
					synctest.Wait()
					if n := len(b.got); n != 0 {
						t.Errorf("%d connections were given out, want none", n)
					}
					return
				}
				g := <-b.got
				if g.p != row.want {
					t.Errorf("protocol = %q, want %q", g.p, row.want)
				}
				if g.c.RemoteAddr().String() != "198.51.100.1:5000" {
					t.Errorf("RemoteAddr = %v", g.c.RemoteAddr())
				}
				want := strings.TrimPrefix(row.send, DataPreface)
				got := make([]byte, len(want))
				if _, err := io.ReadFull(g.c, got); err != nil || string(got) != want {
					t.Errorf("the connection begins with %q, %v, want %q", got, err, want)
				}
				g.c.Close()
				c.Close()
			})
		})
	}
}

func TestSilenceIsSSH(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, nil)
		defer b.stop()
		start := time.Now()
		c := b.dial("198.51.100.1:5000")
		defer c.Close()
		g := <-b.got
		defer g.c.Close()
		if g.p != ProtocolSSH || time.Since(start) != silence {
			t.Errorf("given out as %q after %v, want ssh after %v", g.p, time.Since(start), silence)
		}
		// The read deadline does not outlive the guess.
		time.AfterFunc(time.Hour, func() { io.WriteString(c, "SSH-") })
		got := make([]byte, 4)
		if _, err := io.ReadFull(g.c, got); err != nil {
			t.Errorf("reading an hour later: %v", err)
		}
	})
}

// TestSlowFirstBytes: F10, a byte now and then does not hold a place for long.
func TestSlowFirstBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, nil)
		defer b.stop()
		start := time.Now()
		c := b.dial("198.51.100.1:5000")
		var sender sync.WaitGroup
		defer sender.Wait()
		sender.Go(func() {
			for _, s := range "SSH-2.0-slow" {
				if _, err := io.WriteString(c, string(s)); err != nil {
					return
				}
				<-time.After(6 * time.Second)
			}
		})
		io.Copy(io.Discard, c)
		if got := time.Since(start); got > 11*time.Second {
			t.Errorf("closed after %v, want about 10 s", got)
		}
		if n := b.count("refused_total", string(refusedSlow)); n != 1 {
			t.Errorf("%v slow connections counted, want 1", n)
		}
		c.Close()
	})
}

func TestALPN(t *testing.T) {
	for name, row := range map[string]struct {
		offer []string
		want  Protocol // "" is a failed handshake
		alpn  string
	}{
		"none":             {nil, ProtocolHTTPS, ""},
		"http":             {[]string{"h2", "http/1.1"}, ProtocolHTTPS, "h2"},
		"http 1":           {[]string{"http/1.1"}, ProtocolHTTPS, "http/1.1"},
		"ssh":              {[]string{ALPNSSH}, ProtocolSSH, ALPNSSH},
		"data":             {[]string{ALPNData}, ProtocolData, ALPNData},
		"ssh, else http":   {[]string{ALPNSSH, "h2"}, ProtocolSSH, ALPNSSH},
		"unknown":          {[]string{"smtp"}, "", ""},
		"unknown and http": {[]string{"smtp", "http/1.1"}, ProtocolHTTPS, "http/1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := run(t, nil)
				defer b.stop()
				raw := b.dial("198.51.100.1:5000")
				c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: row.offer})
				go func() {
					if c.Handshake() == nil {
						io.WriteString(c, "hello")
					}
				}()
				if row.want == "" {
					if err := c.Handshake(); err == nil {
						t.Error("the handshake succeeded")
					}
					raw.Close()
					return
				}
				g := <-b.got
				got := make([]byte, 5)
				if _, err := io.ReadFull(g.c, got); err != nil || string(got) != "hello" {
					t.Errorf("read %q, %v", got, err)
				}
				if g.p != row.want || g.c.TLS() == nil || g.c.TLS().NegotiatedProtocol != row.alpn {
					t.Errorf("got %q with TLS %v, want %q by %q", g.p, g.c.TLS(), row.want, row.alpn)
				}
				rest := make(chan error, 1)
				go func() {
					_, err := io.Copy(io.Discard, c)
					rest <- err
				}()
				if err := errors.Join(g.c.CloseWrite(), <-rest); err != nil {
					t.Errorf("CloseWrite: %v", err)
				}
				g.c.Close()
				raw.Close()
			})
		})
	}
}

func TestNoTLSWithoutCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, func(c *Config) { c.Certificate, c.Data = nil, nil })
		defer b.stop()
		for _, alpn := range []string{"h2", ALPNSSH, ALPNData} {
			raw := b.dial("198.51.100.1:5000")
			c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}})
			if err := c.HandshakeContext(t.Context()); err == nil {
				t.Errorf("%s: the handshake succeeded", alpn)
			}
			raw.Close()
		}
	})
}

func TestPlainDataIsRefusedByDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, nil)
		defer b.stop()
		c := b.dial("198.51.100.1:5000")
		go io.WriteString(c, DataPreface)
		closed(t, c)
	})
}

func TestLimitedBind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, func(c *Config) { c.Protocols = []Protocol{ProtocolHTTPS} })
		defer b.stop()
		c := b.dial("198.51.100.1:5000")
		go io.WriteString(c, "SSH-2.0-x\r\n")
		closed(t, c)
		if n := b.count("refused_total", string(refusedProtocol)); n != 1 {
			t.Errorf("%v connections refused for their protocol, want 1", n)
		}
	})
}

// TestDataMustAuthenticate: a data connection whose ticket does not come is
// closed, and its place freed.
func TestDataMustAuthenticate(t *testing.T) {
	for _, good := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := run(t, func(c *Config) { c.PlainData = true })
			defer b.stop()
			start := time.Now()
			c := b.dial("198.51.100.1:5000")
			go io.WriteString(c, DataPreface)
			g := <-b.got
			if good {
				g.c.Authenticated()
				time.AfterFunc(time.Hour, func() { c.Close() })
			}
			io.Copy(io.Discard, c)
			if got := time.Since(start); (got == 30*time.Second) == good {
				t.Errorf("authenticated: %v; the connection ended after %v", good, got)
			}
			synctest.Wait()
			if open, _, _ := b.gate.figures(); open != 0 {
				t.Errorf("%d places are held, want none", open)
			}
			g.c.Close()
		})
	}
}

// TestPlacesAreFreed: the connection frees its place whichever way it ends.
func TestPlacesAreFreed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, nil)
		var conns []net.Conn
		for range 3 {
			conns = append(conns, b.dial("198.51.100.1:5000"))
		}
		g := []given{<-b.got, <-b.got, <-b.got}
		if open, _, _ := b.gate.figures(); open != 3 {
			t.Errorf("%d places are held, want 3", open)
		}
		g[0].c.Authenticated()
		if err := g[1].c.Parked(); err != nil {
			t.Error(err)
		}
		if open, parked, _ := b.gate.figures(); open != 1 || parked != 1 {
			t.Errorf("open, parked = %d, %d, want 1, 1", open, parked)
		}
		g[1].c.Authenticated()
		g[2].c.KexDone()
		for _, h := range g {
			h.c.Close()
			if err := h.c.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("closing twice = %v", err)
			}
		}
		if open, parked, _ := b.gate.figures(); open != 0 || parked != 0 {
			t.Errorf("open, parked = %d, %d, want none", open, parked)
		}
		for _, c := range conns {
			closed(t, c)
		}
		b.stop()
	})
}

// TestRefusedWithoutReading: F11, beyond the bound of its source a connection is
// closed before anything is read, and penalised sources are too.
func TestRefusedWithoutReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, func(c *Config) { c.Limits.PerSource = 2 })
		defer b.stop()
		first, second := b.dial("198.51.100.1:1"), b.dial("198.51.100.1:2")
		closed(t, b.dial("198.51.100.1:3"))
		other := b.dial("198.51.100.2:1")
		for _, g := range []given{<-b.got, <-b.got, <-b.got} { // in any order
			if strings.HasPrefix(g.c.RemoteAddr().String(), "198.51.100.1:") {
				g.c.Penalize(OffenceProtocol)
				g.c.Penalize(OffenceProtocol)
			}
			g.c.Close()
		}
		closed(t, b.dial("198.51.100.1:4"))
		closed(t, first)
		closed(t, second)
		closed(t, other)
		for reason, want := range map[refusal]float64{refusedSource: 1, refusedPenalty: 1} {
			if n := b.count("refused_total", string(reason)); n != want {
				t.Errorf("%s: %v counted, want %v", reason, n, want)
			}
		}
		<-time.After(time.Hour)
		if c := b.dial("198.51.100.1:5"); c != nil {
			(<-b.got).c.Close()
		}
	})
}

// TestAcceptSurvivesErrors: F09, the system may be out of file descriptors for a
// while: the listener waits, longer each time, and goes on.
func TestAcceptSurvivesErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, nil)
		defer b.stop()
		emfile := &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
		start := time.Now()
		for range 20 {
			b.errs <- emfile
		}
		c := b.dial("198.51.100.1:5000")
		defer c.Close()
		(<-b.got).c.Close()
		// 5+10+…+640 ms, then a second each; the last pause is before the dial.
		if got := time.Since(start); got < 12*time.Second || got > 15*time.Second {
			t.Errorf("20 failures took %v, want about 13 s of pauses", got)
		}
		if n := b.count("accept_errors_total", ""); n != 20 {
			t.Errorf("%v failures counted, want 20", n)
		}
	})
}

// TestStop: Run ends with its context, whatever connections are in the middle
// of, and closes those it has not given out.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
		var conns []net.Conn
		for _, addr := range []string{"198.51.100.1:1", "10.0.0.1:1"} {
			conns = append(conns, b.dial(addr))
		}
		partial := b.dial("198.51.100.1:2")
		go io.WriteString(partial, "\x16\x03")
		synctest.Wait()
		b.stop()
		for _, c := range append(conns, partial) {
			closed(t, c)
		}
	})
}

func TestListenTwiceOrNot(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l, err := New(Config{Bind: Bind{Addr: "127.0.0.1:0"}, Extra: []Bind{{Addr: ln.Addr().String()}}})
	if err != nil {
		t.Fatal(err)
	}
	if l.Addr() != nil || l.SSH().Addr() != nil {
		t.Error("there is an address before Listen")
	}
	if err := l.Run(t.Context()); err == nil || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("Run on an address in use = %v, want an error that names it", err)
	}
	if got := l.Addrs(); len(got) != 0 {
		t.Errorf("Addrs = %v after a failure, want none", got)
	}
}

// TestRealSocket: everything once over TCP, with both addresses.
func TestRealSocket(t *testing.T) {
	l, err := New(Config{Bind: Bind{Addr: "127.0.0.1:0"}, Extra: []Bind{{Addr: "127.0.0.1:0"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	for _, a := range l.Addrs() {
		c, err := net.Dial(a.Network(), a.String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "SSH-2.0-x\r\n")
		s, err := l.SSH().Accept()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 11)
		if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, []byte("SSH-2.0-x\r\n")) {
			t.Errorf("read %q, %v", got, err)
		}
		// Half a close leaves the other half open.
		if err := s.(*Conn).CloseWrite(); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(c); len(got) != 0 || err != nil {
			t.Errorf("after CloseWrite the client reads %q, %v", got, err)
		}
		io.WriteString(c, "more")
		if _, err := io.ReadFull(s, got[:4]); err != nil {
			t.Errorf("after CloseWrite: %v", err)
		}
		s.Close()
		c.Close()
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	if _, err := l.SSH().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after the end = %v, want ErrClosed", err)
	}
}
