//go:build unix

package listener

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestSecureWaitsWithoutBuffer: who waits for more holds nothing, whatever came before.
func TestSecureWaitsWithoutBuffer(t *testing.T) {
	near, far, _ := securePair(t)
	var waits, kept atomic.Int64
	r := far.records
	if r.raw == nil {
		t.Fatal("the socket was not found")
	}
	r.try = func(fd uintptr) bool {
		if r.attempt(fd) {
			return true
		}
		waits.Add(1)
		if r.buf != nil {
			kept.Add(1)
		}
		return false
	}
	buf := make([]byte, 200<<10)
	for _, size := range []int{1, 5000, len(buf), 7} {
		go near.Write(make([]byte, size))
		if _, err := io.ReadFull(far, buf[:size]); err != nil {
			t.Fatal(err)
		}
		before, read := waits.Load(), make(chan error, 1)
		go func() {
			_, err := far.Read(buf[:1])
			read <- err
		}()
		for waits.Load() == before {
			runtime.Gosched()
		}
		if _, err := near.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil {
			t.Fatal(err)
		}
	}
	if kept.Load() != 0 {
		t.Errorf("%d of %d waits had a buffer", kept.Load(), waits.Load())
	}
}

// TestSecureTellsWhatTheSocketTells: time-outs, ends and errors.
func TestSecureTellsWhatTheSocketTells(t *testing.T) {
	near, far, socket := securePair(t)
	buf := make([]byte, 10)
	if err := far.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := far.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read = %v, want that it took too long", err)
		}
	}
	if err := far.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := near.Write(buf[:3]); err != nil {
		t.Fatal(err)
	}
	if n, err := far.Read(buf); n != 3 || err != nil { // a time-out leaves TLS as it was
		t.Errorf("Read = %d, %v after a time-out", n, err)
	}
	raw, ok := socket.Conn.(*net.TCPConn)
	if !ok {
		t.Fatalf("the socket is a %T", socket.Conn)
	}
	if err := errors.Join(raw.SetLinger(0), raw.Close()); err != nil { // by RST
		t.Fatal(err)
	}
	if _, err := far.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read = %v of a connection that was reset", err)
	}

	_, far, socket = securePair(t)
	socket.Close() // by FIN, and TLS was not told
	if _, err := far.Read(buf); !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		t.Errorf("Read = %v of a connection that ended", err)
	}

	_, far, _ = securePair(t)
	read := make(chan error, 1)
	go func() {
		_, err := far.Read(buf)
		read <- err
	}()
	far.records.Close()
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read = %v of a connection that this side closed", err)
	}
}

// TestSniffedComesFirst: the socket is read by itself only once nothing of it is ahead.
func TestSniffedComesFirst(t *testing.T) {
	_, _, socket := securePair(t)
	p := &prefixed{Conn: socket.Conn, ahead: bufio.NewReader(socket.Conn)}
	if rawOf(p) != nil {
		t.Error("what was sniffed is passed by")
	}
	p.ahead = nil
	if rawOf(p) == nil || rawOf(socket.Conn) == nil {
		t.Error("the socket was not found")
	}
	if rawOf(socket) != nil {
		t.Error("what hides the socket is passed by")
	}
}
