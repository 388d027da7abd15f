package listener

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/accessd/accessd/lib/defaults"
)

const (
	// headerTimeout bounds the arrival of a PROXY header. A load balancer sends
	// it at once, in one segment.
	headerTimeout = 5 * time.Second
	// silence is how long a peer may say nothing before it is taken for an SSH
	// client that waits for our identification.
	silence = 300 * time.Millisecond
	// sniffBuffer holds what is read ahead: a PROXY header or a client's first
	// line.
	sniffBuffer = 512
)

// What connections begin with. A TLS record has type 22, handshake, and major
// version 3 (RFC 8446, section 5.1).
const (
	beginSSH = "SSH-"
	beginTLS = "\x16\x03"
)

// arrival is a connection on its way to who serves it.
type arrival struct {
	l       *Listener
	bound   *bound
	socket  net.Conn
	peer    netip.AddrPort // whom the socket connects to
	remote  net.Addr       // the client
	relay   netip.AddrPort
	place   *place
	trusted bool // peer is a load balancer: a PROXY header must come
}

// rejection ends the way of a connection.
type rejection struct {
	why     refusal
	offence Offence // zero for none
	cause   error
}

func (r *rejection) Error() string { return fmt.Sprintf("%s: %v", r.why, r.cause) }

func reject(why refusal, o Offence, cause error) error {
	return &rejection{why: why, offence: o, cause: cause}
}

// route finds out what the connection speaks and hands it over, or closes it.
func (a *arrival) route(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { a.socket.Close() })
	defer stop()
	c, p, err := a.identify(ctx)
	if err == nil {
		if !stop() {
			_ = c.Close() // the end of ctx closed the socket
			return
		}
		a.deliver(c, p)
		return
	}
	conn := &Conn{Conn: a.socket, socket: a.socket, remote: a.remote, place: a.place, l: a.l}
	if r, ok := errors.AsType[*rejection](err); ok && ctx.Err() == nil {
		a.l.refuse(a.remote, r.why, r.cause)
		if r.offence != 0 {
			conn.Penalize(r.offence)
		}
	}
	_ = conn.Close()
}

// identify reads as little as tells the protocol, and does TLS's handshake.
func (a *arrival) identify(ctx context.Context) (*Conn, Protocol, error) {
	ahead := bufio.NewReaderSize(a.socket, sniffBuffer)
	if a.trusted {
		if err := a.readHeader(ahead); err != nil {
			return nil, "", err
		}
	}
	c := &Conn{socket: a.socket, remote: a.remote, relay: a.relay, place: a.place, l: a.l}
	c.Conn = &prefixed{Conn: a.socket, ahead: ahead}
	p, inTLS, err := a.sniff(ahead)
	if err != nil {
		return nil, "", err
	}
	if err := a.socket.SetReadDeadline(time.Time{}); err != nil {
		return nil, "", err
	}
	if inTLS {
		if p, err = a.startTLS(ctx, c); err != nil {
			return nil, "", err
		}
	}
	if !a.bound.serves(p) {
		return nil, "", reject(refusedProtocol, 0, fmt.Errorf("%s is not served at %q", p, a.bound.bind.Addr))
	}
	return c, p, nil
}

// readHeader takes the client's address from the PROXY header.
func (a *arrival) readHeader(ahead *bufio.Reader) error {
	if err := a.socket.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
		return err
	}
	client, err := readHeader(ahead)
	if err != nil {
		return reject(refusedHeader, 0, err)
	}
	source := a.peer
	if client.IsValid() {
		source, a.relay = client, a.peer
		a.remote = net.TCPAddrFromAddrPort(client)
	}
	if why := a.place.attribute(source.Addr()); why != "" {
		return reject(why, 0, nil)
	}
	return nil
}

// sniff tells the protocol by the first bytes, which stay in ahead; inTLS
// tells that TLS comes first and its ALPN decides.
func (a *arrival) sniff(ahead *bufio.Reader) (p Protocol, inTLS bool, err error) {
	if err := a.socket.SetReadDeadline(time.Now().Add(silence)); err != nil {
		return "", false, err
	}
	first, err := ahead.Peek(1)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ProtocolSSH, false, nil
	case err != nil:
		return "", false, reject(refusedSlow, OffenceNoAuth, err)
	}
	if err := a.socket.SetReadDeadline(time.Now().Add(defaults.KexTimeout)); err != nil {
		return "", false, err
	}
	switch first[0] {
	case beginSSH[0]:
		return ProtocolSSH, false, expect(ahead, beginSSH)
	case beginTLS[0]:
		return "", true, expect(ahead, beginTLS)
	case DataPreface[0]:
		if !a.l.cfg.PlainData {
			break
		}
		if err := expect(ahead, DataPreface); err != nil {
			return "", false, err
		}
		_, err := ahead.Discard(len(DataPreface))
		return ProtocolData, false, err
	}
	return "", false, reject(refusedGarbage, OffenceProtocol, fmt.Errorf("first byte %#02x", first[0]))
}

// expect waits for want, byte by byte, and refuses the first that differs.
func expect(ahead *bufio.Reader, want string) error {
	for i := range len(want) {
		got, err := ahead.Peek(i + 1)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return reject(refusedSlow, OffenceGrace, err)
		case errors.Is(err, io.EOF):
			return reject(refusedSlow, OffenceNoAuth, err)
		case err != nil:
			return err
		case got[i] != want[i]:
			return reject(refusedGarbage, OffenceProtocol, fmt.Errorf("byte %d is %#02x, want %q", i, got[i], want))
		}
	}
	return nil
}

// startTLS does the handshake on c and returns what its ALPN chose.
func (a *arrival) startTLS(ctx context.Context, c *Conn) (Protocol, error) {
	conn := SecureServer(c.Conn, &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: a.l.tlsConfig,
	})
	ctx, cancel := context.WithTimeout(ctx, defaults.KexTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return "", reject(refusedHandshake, OffenceNoAuth, err)
	}
	state := conn.ConnectionState()
	c.Conn, c.tls = conn, &state
	switch state.NegotiatedProtocol {
	case ALPNSSH:
		return ProtocolSSH, nil
	case ALPNData:
		return ProtocolData, nil
	}
	return ProtocolHTTPS, nil
}

var errNotServed = errors.New("no protocol the client offers is served with TLS")

// tlsConfig returns the configuration for what the client offers by ALPN. An
// offer of several protocols is answered for the first of ours; a client that
// offers none speaks HTTP.
func (l *Listener) tlsConfig(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	cfg := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: l.cfg.Certificate,
		NextProtos:     []string{"h2", "http/1.1"},
	}
	for _, p := range hello.SupportedProtos {
		if p == ALPNData && l.cfg.Data != nil {
			return l.cfg.Data, nil
		}
		if p == ALPNSSH {
			cfg.NextProtos, cfg.MinVersion = []string{ALPNSSH}, tls.VersionTLS13
			break
		}
	}
	if cfg.GetCertificate == nil {
		return nil, errNotServed
	}
	return cfg, nil
}

// deliver gives c to who serves p.
func (a *arrival) deliver(c *Conn, p Protocol) {
	if p == ProtocolData {
		c.timer.Store(time.AfterFunc(defaults.LoginTimeout, func() {
			c.Penalize(OffenceGrace)
			_ = c.Close()
		}))
	}
	if !a.l.queues[p].put(c, defaults.KexTimeout) {
		_ = c.Close()
		return
	}
	a.l.metrics.accepted.WithLabelValues(string(p)).Inc()
}
