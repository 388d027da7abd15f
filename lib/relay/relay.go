// Package relay joins two byte streams: what one sends, the other gets.
//
// It stands between a client and a node, so it neither loses the tail of a
// stream whose other half has ended, nor holds much memory for a pair that is
// idle, nor waits for ever on an end that takes nothing. At least one of the
// two ends is a channel of an SSH connection, so there is nothing for the
// kernel to splice.
package relay

import (
	"context"
	"io"
	"sync"
	"time"
)

// Bounds of one direction.
const (
	// idleSize is what a direction holds while nothing comes, in bytes: room
	// for keystrokes and lines, with what SSH puts around them.
	idleSize = 512
	// busySize is what it borrows while bytes keep coming: the largest data
	// message of SSH as x/crypto speaks it, and two records of TLS.
	busySize = 32 << 10
	// recordSize is the most that a record of TLS carries.
	recordSize = 16 << 10
	// calm is how many reads in a row that idleSize would have held end a stretch.
	// One is not enough: a stream of 32 KiB messages in records of 16 KiB has a small
	// remainder after each.
	calm = 2
	// streamSize is how much a stretch brings before it is taken for a stream, in
	// bytes. A stream waits with the large buffer, or each of its messages would be
	// cut in two. What is less, a handshake, a policy, a screen, does not: a wait may
	// be long, and nothing can take the buffer away from it.
	streamSize = 64 << 10
	// Stall is how long an end may take nothing before the pair is cut.
	Stall = time.Minute
)

// buffers has those of directions that are not busy any more.
var buffers = sync.Pool{New: func() any { return new([busySize]byte) }} //nolint:gochecknoglobals // a cache

// Pipe copies both ways between a and b until both directions have ended, then
// closes both, and returns how many bytes went from a to b and from b to a.
//
// When one end says EOF, the other is told with CloseWrite and the opposite
// direction goes on; an end without CloseWrite is closed. An error, the end of
// ctx, or an end that takes nothing for [Stall] closes both at once. Pipe
// returns when none of its goroutines runs any more; that needs ends whose Close
// ends a Read and a Write that wait.
func Pipe(ctx context.Context, a, b io.ReadWriteCloser) (aToB, bToA int64) {
	cut := sync.OnceFunc(func() {
		a.Close()
		b.Close()
	})
	defer cut()
	defer context.AfterFunc(ctx, cut)()
	var wg sync.WaitGroup
	wg.Go(func() { aToB = direct(b, a, cut) })
	bToA = direct(a, b, cut) // here, for each goroutine that waits holds a stack
	wg.Wait()
	return aToB, bToA
}

// Copy copies from src to dst until src says EOF or either fails, and returns how
// many bytes went. It holds as little as Pipe does, and waits for both ends for
// as long as they please: a person may well stop reading.
func Copy(dst io.Writer, src io.Reader) (int64, error) {
	var d direction
	defer d.release()
	for {
		n, err := d.read(src)
		if n > 0 {
			if err := d.write(dst, n); err != nil {
				return d.moved, err
			}
		}
		switch {
		case err == io.EOF: //nolint:errorlint // an error that wraps it is one
			return d.moved, nil
		case err != nil:
			return d.moved, err
		}
	}
}

// direct copies from src to dst until src says EOF, and passes that on; on any
// error it calls cut.
func direct(dst io.WriteCloser, src io.Reader, cut func()) int64 {
	d := direction{stall: time.AfterFunc(Stall, cut)}
	d.stall.Stop()
	defer d.release()
	for {
		n, err := d.read(src)
		if n > 0 {
			if err := d.write(dst, n); err != nil {
				cut()
				return d.moved
			}
		}
		switch {
		case err == io.EOF: //nolint:errorlint // an error that wraps it is one
			if closeWrite(dst) != nil {
				cut()
			}
			return d.moved
		case err != nil:
			cut()
			return d.moved
		}
	}
}

// direction is one way through a pair.
type direction struct {
	idle    [idleSize]byte
	busy    *[busySize]byte // nil while idle
	small   int             // reads in a row that idle would have held
	stretch int64           // bytes since there were calm of those
	moved   int64
	stall   *time.Timer // runs while a write does; nil never
}

// buffer returns where the next Read puts its bytes.
func (d *direction) buffer() []byte {
	if d.busy == nil {
		return d.idle[:]
	}
	return d.busy[:]
}

// eager is a source that gives its bytes in small pieces, and can tell what has
// come already: ReadMore returns 0 rather than wait.
type eager interface {
	ReadMore(p []byte) int
}

// read reads from src. While a lot comes it fills the buffer with what is there:
// the other side has work by the piece.
func (d *direction) read(src io.Reader) (int, error) {
	b := d.buffer()
	n, err := src.Read(b)
	if more, ok := src.(eager); ok && d.busy != nil && err == nil {
		for len(b)-n >= recordSize { // nothing smaller is left for the next
			m := more.ReadMore(b[n:])
			if m == 0 {
				break
			}
			n += m
		}
	}
	return n, err
}

// write sends the n bytes that were read and chooses the next buffer by them.
func (d *direction) write(dst io.Writer, n int) error {
	if d.stall != nil {
		d.stall.Reset(Stall)
	}
	w, err := dst.Write(d.buffer()[:n])
	if d.stall != nil {
		d.stall.Stop()
	}
	d.moved += int64(w)
	d.stretch += int64(n)
	if d.small++; n >= idleSize {
		d.small = 0
	}
	if d.small >= calm {
		d.stretch = 0
	}
	switch {
	case d.busy == nil && n == idleSize: // there is more
		d.busy, _ = buffers.Get().(*[busySize]byte)
	case n < busySize && d.stretch < streamSize: // that was all, and not much
		d.release()
	}
	return err
}

// release gives the large buffer back.
func (d *direction) release() {
	if d.busy != nil {
		buffers.Put(d.busy)
		d.busy = nil
	}
}

// closeWrite tells w that nothing more comes.
func closeWrite(w io.WriteCloser) error {
	if half, ok := w.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return w.Close()
}
