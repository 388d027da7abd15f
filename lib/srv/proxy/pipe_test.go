package proxy

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

func TestPipe(t *testing.T) {
	here, there := &net.TCPAddr{IP: net.IPv6loopback}, &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 4711}
	a, b := newPipe(there, here)
	if a.LocalAddr() != there || a.RemoteAddr() != here || b.LocalAddr() != here || b.RemoteAddr() != there {
		t.Errorf("addresses: %v and %v, %v and %v", a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr())
	}
	if err := errors.Join(a.SetDeadline(time.Time{}), b.SetReadDeadline(time.Time{})); err != nil {
		t.Errorf("no deadline: %v", err)
	}
	if err := a.SetWriteDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("a deadline: %v, want %v", err, os.ErrNoDeadline)
	}

	// Both ways at once, in pieces that do not fit the buffers.
	data := make([]byte, 5*pipeSize+7)
	_, _ = rand.Read(data)
	var wg sync.WaitGroup
	for _, ends := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			for rest := data; len(rest) > 0; {
				n, err := ends[0].Write(rest[:min(len(rest), 3*pipeSize/2)])
				if err != nil {
					t.Error(err)
					return
				}
				rest = rest[n:]
			}
		})
		wg.Go(func() {
			got := make([]byte, len(data))
			if _, err := io.ReadFull(ends[1], got); err != nil || !bytes.Equal(got, data) {
				t.Errorf("read: %v, equal %v", err, bytes.Equal(got, data))
			}
		})
	}
	wg.Wait()
	if end := a.(*pipeEnd); end.in.buf != nil || end.out.buf != nil {
		t.Error("a pipe that holds nothing has a buffer")
	}
}

// TestPipeClose: the other end reads what was written and then the end of it,
// and whoever waits to write learns that there is nobody to read.
func TestPipeClose(t *testing.T) {
	a, b := newPipe(nil, nil)
	if _, err := a.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := b.Write(make([]byte, pipeSize+1))
		waiting <- err
	}()
	if _, err := io.ReadFull(a, make([]byte, 1)); err != nil { // it writes now
		t.Fatal(err)
	}
	a.Close()
	<-waiting // either it had room for all or it is told
	if got, err := io.ReadAll(b); err != nil || string(got) != "last words" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := b.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write to nobody: %v, want %v", err, io.ErrClosedPipe)
	}
}
