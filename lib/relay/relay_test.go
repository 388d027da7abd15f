package relay_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/accessd/accessd/lib/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tcpPair returns both ends of a connection that can be half-closed.
func tcpPair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if near, err = net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(err)
	}
	if far, err = ln.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		near.Close()
		far.Close()
	})
	return near, far
}

type counts struct{ aToB, bToA int64 }

// start joins the inner ends of two connections and returns the outer ones.
func start(t testing.TB, ctx context.Context) (a, b *net.TCPConn, done <-chan counts) {
	t.Helper()
	a, innerA := tcpPair(t)
	b, innerB := tcpPair(t)
	out := make(chan counts, 1)
	go func() {
		var c counts
		c.aToB, c.bToA = relay.Pipe(ctx, innerA, innerB)
		out <- c
	}()
	return a, b, out
}

// TestTailSurvivesHalfClose sends an answer of every awkward size after the
// request's end: nothing of it may be lost (gliderlabs' forwarder loses up to
// 44 %).
func TestTailSurvivesHalfClose(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, 513, 2 << 10, 32 << 10, 32<<10 + 1, 5 << 20} {
		a, b, done := start(t, t.Context())
		answer := make([]byte, size)
		_, _ = rand.Read(answer)
		go func() {
			_, _ = io.Copy(io.Discard, b) // to the request's end, and only then
			_, _ = b.Write(answer)
			b.CloseWrite()
		}()
		if _, err := a.Write([]byte("request")); err != nil {
			t.Fatal(err)
		}
		a.CloseWrite()
		got, err := io.ReadAll(a)
		if err != nil || !bytes.Equal(got, answer) {
			t.Errorf("answer of %d bytes: got %d, %v", size, len(got), err)
		}
		if got, want := <-done, (counts{7, int64(size)}); got != want {
			t.Errorf("counted %+v, want %+v", got, want)
		}
	}
}

func TestEndOfContextClosesBoth(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a, b, done := start(t, ctx)
	cancel()
	<-done
	for name, c := range map[string]net.Conn{"a": a, "b": b} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s is still open", name)
		}
	}
}

func TestErrorClosesBoth(t *testing.T) {
	a, b, done := start(t, t.Context())
	if err := a.SetLinger(0); err != nil { // close by RST
		t.Fatal(err)
	}
	a.Close()
	<-done
	if _, err := b.Read(make([]byte, 1)); err == nil {
		t.Error("b is still open after a was reset")
	}
}

// TestPipeWithoutHalfClose: an end that cannot be told of an EOF is closed.
func TestPipeWithoutHalfClose(t *testing.T) {
	a, innerA := net.Pipe()
	b, innerB := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		relay.Pipe(t.Context(), innerA, innerB)
	}()
	go a.Write([]byte("x"))
	if _, err := b.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if _, err := b.Read(make([]byte, 1)); err == nil {
		t.Error("b is still open")
	}
	<-done
}

// F16: an end that takes nothing is given a minute, and no memory.
func TestStalledEndIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, innerA := net.Pipe()
		b, innerB := net.Pipe() // nobody reads b
		defer b.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			relay.Pipe(t.Context(), innerA, innerB)
		}()
		began := time.Now()
		var sent int
		for { // as much as is taken; a write to a stalled pair ends with the cut
			n, err := a.Write(make([]byte, 1<<10))
			sent += n
			if err != nil {
				break
			}
		}
		<-done
		if got := time.Since(began); got != relay.Stall {
			t.Errorf("cut after %v, want %v", got, relay.Stall)
		}
		if sent > 32<<10 {
			t.Errorf("%d bytes were taken for an end that reads nothing", sent)
		}
	})
}

// TestIdleIsNotCut: a pair over which nothing goes may stay for ever.
func TestIdleIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, innerA := net.Pipe()
		b, innerB := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			relay.Pipe(t.Context(), innerA, innerB)
		}()
		for range 3 {
			<-time.After(10 * relay.Stall) // the bubble's clock
			go a.Write([]byte("key"))
			if _, err := io.ReadFull(b, make([]byte, 3)); err != nil {
				t.Fatal(err)
			}
		}
		a.Close()
		b.Close()
		<-done
	})
}

func BenchmarkPipe(b *testing.B) {
	near, far, done := start(b, b.Context())
	chunk := make([]byte, 32<<10)
	b.SetBytes(int64(len(chunk)))
	go func() {
		for range b.N {
			if _, err := near.Write(chunk); err != nil {
				return
			}
		}
		near.CloseWrite()
	}()
	if _, err := io.Copy(io.Discard, far); err != nil {
		b.Error(err)
	}
	far.Close()
	<-done
}

// TestCopy: everything comes across, however it is cut, and the end of the one
// is not the end of the other.
func TestCopy(t *testing.T) {
	data := make([]byte, 300<<10)
	_, _ = rand.Read(data)
	for _, piece := range []int{1 << 10, 2 << 10, 32 << 10, 100 << 10} {
		var out bytes.Buffer
		n, err := relay.Copy(&out, &pieces{data, piece})
		if err != nil || n != int64(len(data)) || !bytes.Equal(out.Bytes(), data) {
			t.Errorf("pieces of %d: %d bytes, %v; equal %v", piece, n, err, bytes.Equal(out.Bytes(), data))
		}
	}
	if n, err := relay.Copy(full{}, bytes.NewReader(data)); !errors.Is(err, io.ErrShortWrite) || n != 7 {
		t.Errorf("to one that is full: %d, %v", n, err)
	}
	if n, err := relay.Copy(io.Discard, io.MultiReader(bytes.NewReader(data[:9]), broken{})); !errors.Is(err, io.ErrUnexpectedEOF) || n != 9 {
		t.Errorf("from one that breaks: %d, %v", n, err)
	}
}

// pieces gives data out at most n bytes at a time.
type pieces struct {
	data []byte
	n    int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.n)], p.data)
	p.data = p.data[n:]
	return n, nil
}

type full struct{}

func (full) Write([]byte) (int, error) { return 7, io.ErrShortWrite }

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// meal is a source that gives what is there and then waits, as a channel does, and
// notes with how much room it is waited for.
type meal struct {
	portions []int // what comes at a time
	there    int
	waits    []int
}

func (m *meal) Read(b []byte) (int, error) {
	if m.there == 0 {
		m.waits = append(m.waits, len(b))
		if len(m.portions) == 0 {
			return 0, io.EOF
		}
		m.there, m.portions = m.portions[0], m.portions[1:]
	}
	n := min(len(b), m.there)
	m.there -= n
	return n, nil
}

// counter counts writes.
type counter struct{ writes int }

func (c *counter) Write(p []byte) (int, error) {
	c.writes++
	return len(p), nil
}

// TestWaitsWithLittle: what is no stream leaves no large buffer behind, and a stream
// keeps it, so that it is not cut into pieces, until only little comes.
func TestWaitsWithLittle(t *testing.T) {
	const idle, busy = 512, 32 << 10
	repeat := func(n, size int) []int { return slices.Repeat([]int{size}, n) }
	for _, c := range []struct {
		name     string
		portions []int
		last     int // room of the last wait
		large    int // waits with a large buffer at most
		writes   int // at most
	}{
		{"keys", repeat(100, 10), idle, 0, 100},
		{"a handshake and a policy", []int{20, 1500, 100, 1100, 900, 60, 9000, 40, 500}, idle, 1, 15},
		{"a screen now and then", slices.Repeat([]int{1, 1, 20_000}, 10), idle, 0, 40},
		{"one message of a stream", []int{busy}, idle, 0, 2},
		{"a stream", repeat(100, busy), busy, 100, 104},
		{"a stream with remainders", slices.Repeat([]int{busy, 40}, 50), busy, 100, 106},
		{"a stream that ended", append(repeat(100, busy), 10, 10), idle, 101, 106},
		{"a stream that ended, and a screen", append(repeat(100, busy), 10, 10, 10_000), idle, 101, 108},
	} {
		m, out := meal{portions: c.portions}, counter{}
		if _, err := relay.Copy(&out, &m); err != nil {
			t.Fatal(err)
		}
		large := 0
		for _, room := range m.waits {
			if room > idle {
				large++
			}
		}
		if last := m.waits[len(m.waits)-1]; last != c.last || large > c.large || out.writes > c.writes {
			t.Errorf("%s: %d waits with a large buffer, the last one with room for %d, %d writes; want at most %d, %d, %d",
				c.name, large, last, out.writes, c.large, c.last, c.writes)
		}
	}
}
