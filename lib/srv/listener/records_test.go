package listener

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// counted counts the writes to a socket.
type counted struct {
	net.Conn
	writes atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// securePair returns both sides of TLS over loopback, after the handshake.
func securePair(t *testing.T) (near, far *Secure, socket *counted) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close(); peer.Close() })
	socket = &counted{Conn: raw}
	near = SecureClient(socket, &tls.Config{InsecureSkipVerify: true})
	far = SecureServer(peer, &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}, SessionTicketsDisabled: true})
	done := make(chan error, 1)
	go func() { done <- far.Handshake() }()
	if err := errors.Join(near.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return near, far, socket
}

// TestSecureCarriesEverything: whatever the sizes, and however it is read.
func TestSecureCarriesEverything(t *testing.T) {
	near, far, _ := securePair(t)
	data := make([]byte, 2<<20)
	_, _ = rand.Read(data)
	go func() {
		rest := data
		for i := 0; len(rest) > 0; i++ {
			sizes := []int{1, 100, maxRecord, maxRecord + 1, 32 << 10, 200 << 10, 7}
			n := min(sizes[i%len(sizes)], len(rest))
			if w, err := near.Write(rest[:n]); w != n || err != nil {
				t.Errorf("Write = %d, %v, want %d", w, err, n)
			}
			rest = rest[n:]
		}
		_ = near.CloseWrite()
	}()
	var got bytes.Buffer
	for buf := make([]byte, 32<<10); ; {
		n, err := far.Read(buf)
		if n > 0 && n <= maxRecord {
			n += far.ReadMore(buf[n:])
		}
		got.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), data) {
		t.Errorf("%d bytes came of %d, or others", got.Len(), len(data))
	}
	if n := far.ReadMore(make([]byte, 10)); n != 0 {
		t.Errorf("ReadMore = %d after the end", n)
	}
}

// TestSecureWritesOnce: what SSH says in one packet goes to the socket at once.
func TestSecureWritesOnce(t *testing.T) {
	near, far, socket := securePair(t)
	big := make([]byte, 1<<20) // past the small records that crypto/tls begins with
	read := func(n int) {
		t.Helper()
		if _, err := io.ReadFull(far, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	go near.Write(big)
	read(len(big))
	for _, c := range []struct{ size, writes int }{{10, 1}, {maxRecord, 1}, {maxRecord + 1, 1}, {2 * maxRecord, 1}, {4 * maxRecord, 2}} {
		before := socket.writes.Load()
		if _, err := near.Write(big[:c.size]); err != nil {
			t.Fatal(err)
		}
		if got := socket.writes.Load() - before; got != int64(c.writes) {
			t.Errorf("%d bytes took %d writes, want %d", c.size, got, c.writes)
		}
		read(c.size)
	}
	if near.records.held != nil {
		t.Error("an idle connection keeps a buffer for writing")
	}
}

// TestReadMoreDoesNotWait: nothing, or half a record, is not waited for, and the
// rest of it is read later as if nobody had asked.
func TestReadMoreDoesNotWait(t *testing.T) {
	near, far, _ := securePair(t)
	buf := make([]byte, 64<<10)
	if n := far.ReadMore(buf); n != 0 {
		t.Fatalf("ReadMore = %d where nothing was sent", n)
	}
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	go near.Write(data)
	if _, err := io.ReadFull(far, buf[:1<<10]); err != nil {
		t.Fatal(err)
	}
	got := bytes.Clone(buf[:1<<10])
	for len(got) < len(data) {
		n, err := far.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
		for n := far.ReadMore(buf); n > 0; n = far.ReadMore(buf) { // to the half record at the end
			got = append(got, buf[:n]...)
		}
	}
	if !bytes.Equal(got, data) {
		t.Error("what came is not what was sent")
	}
	if far.records.buf != nil {
		t.Error("a connection of which all is read keeps a buffer for reading")
	}
}

// TestSecureFailsForGood: after a write that failed half-way nothing more is sent,
// since TLS takes its records for sent.
func TestSecureFailsForGood(t *testing.T) {
	near, _, socket := securePair(t)
	if err := near.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := near.Write(make([]byte, 32<<10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write = %v, want that it took too long", err)
	}
	if err := near.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	before := socket.writes.Load()
	for _, size := range []int{1, 32 << 10} {
		if _, err := near.Write(make([]byte, size)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write of %d bytes = %v after one that failed", size, err)
		}
	}
	if socket.writes.Load() != before {
		t.Error("something was sent after a write that failed")
	}
}
