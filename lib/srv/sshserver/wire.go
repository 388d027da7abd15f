package sshserver

import (
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	gliderlabs "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"
)

// maxPreAuth bounds what a peer may send before it has authenticated, in bytes:
// room for the largest packet of x/crypto (256 KiB) and for a hundred keys of an
// agent.
const maxPreAuth = 512 << 10

// maxIdentification bounds an identification, CR and LF included (RFC 4253,
// section 4.2).
const maxIdentification = 255

var (
	errPreAuthBytes   = errors.New("too many bytes before authentication")
	errIdentification = errors.New("no SSH-2.0 identification")
)

// identify exchanges identifications with a client. It is done here, before
// x/crypto would, so that the client's decides what is negotiated with it, and
// because x/crypto takes 1023 lines before it, which only servers may send
// (RFC 4253, section 4.2). It returns the client's line as it came.
func identify(nc net.Conn) (string, error) {
	if _, err := io.WriteString(nc, Version+"\r\n"); err != nil {
		return "", err
	}
	var line strings.Builder
	for b := make([]byte, 1); line.Len() < maxIdentification; {
		if _, err := io.ReadFull(nc, b); err != nil {
			return "", err
		}
		line.WriteByte(b[0])
		if b[0] == '\n' {
			return line.String(), checkIdentification(line.String())
		}
		// Refuse what cannot become one at its first wrong byte.
		if n := min(line.Len(), 4); line.String()[:n] != "SSH-"[:n] {
			break
		}
	}
	return "", errIdentification
}

func checkIdentification(line string) error {
	line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
	if !strings.HasPrefix(line, "SSH-2.0-") && !strings.HasPrefix(line, "SSH-1.99-") {
		return errIdentification
	}
	for _, b := range []byte(line) {
		if b < ' ' || b > '~' {
			return errIdentification
		}
	}
	return nil
}

// wire is the connection as gliderlabs and x/crypto see it. It gives them the
// identifications that were exchanged already, counts what is received, and
// reads no more than the peer is allowed.
type wire struct {
	net.Conn
	c   *Conn
	ctx gliderlabs.Context

	replay  string // the client's identification, until it was read
	written bool   // our identification was swallowed
	live    atomic.Bool
	in      reader
	out     writer
}

func (w *wire) Read(b []byte) (int, error) {
	if w.replay != "" {
		n := copy(b, w.replay)
		w.replay = w.replay[n:]
		return n, nil
	}
	if err := w.c.admit(); err != nil {
		return 0, err
	}
	n, fresh, err := w.in.read(w.Conn, b)
	w.c.meter.received(fresh)
	if !w.live.Load() && w.c.meter.total.Load() > maxPreAuth {
		return 0, errPreAuthBytes
	}
	return n, err
}

func (w *wire) Write(b []byte) (int, error) {
	if !w.written { // x/crypto's first write is the identification, in one piece
		w.written = true
		return len(b), nil
	}
	w.c.meter.wake(&w.c.writing)
	defer w.c.meter.rest(&w.c.writing)
	return w.out.write(w.Conn, b)
}

func (w *wire) Close() error {
	w.c.Cut(net.ErrClosed)
	return nil
}

// LocalAddr also tells that the peer has authenticated. gliderlabs has no hook
// between that and the first handler, but asks for the address there, having
// just put the connection into its context, and nobody else does before.
func (w *wire) LocalAddr() net.Addr {
	if !w.live.Load() {
		if sc, ok := w.ctx.Value(gliderlabs.ContextKeyConn).(*ssh.ServerConn); ok {
			w.live.Store(true)
			w.out.gcm.Store(writesGCM(sc))
			w.c.established(sc)
		}
	}
	return w.Conn.LocalAddr()
}

func writesGCM(sc *ssh.ServerConn) bool {
	m, ok := sc.Conn.(ssh.AlgorithmsConnMetadata)
	return ok && slices.Contains(gcm(), m.Algorithms().Write.Cipher)
}

// SetDeadline does nothing: gliderlabs would clear deadlines at each read and
// write. Here timers close the connection.
func (w *wire) SetDeadline(time.Time) error { return nil }
