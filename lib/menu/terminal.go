package menu

import (
	"context"
	"io"
	"slices"
	"sync"
)

// maxAhead bounds what is read ahead of its reader, in bytes. It is a few pages
// of pasted text; then the client has to wait.
const maxAhead = 64 << 10

// The largest screen that is drawn, in cells: a menu keeps three copies of it
// at some 120 bytes each, and the size is the client's word. On a larger screen
// the menu takes the upper left part.
const (
	maxWidth  = 250
	maxHeight = 80
)

// The size of a terminal that says it has none.
const (
	defaultWidth  = 80
	defaultHeight = 24
)

// A Terminal is the terminal at the far end of a session channel. Its methods
// may be called from any goroutine, but there is one reader at a time.
type Terminal struct {
	out  io.Writer
	term string

	resized chan struct{} // holds one token while a new size waits to be seen

	mu            sync.Mutex
	buf           []byte        // read and not yet taken
	err           error         // why nothing more comes; behind buf
	changed       chan struct{} // closed and replaced when buf, err or room for more changes
	width, height int
	lent          bool // somebody else has had the terminal since the last menu
}

// NewTerminal returns the terminal of type term, of width by height cells, that
// shows what is written to out. Its input is what [Terminal.Pump] reads.
func NewTerminal(out io.Writer, term string, width, height int) *Terminal {
	t := &Terminal{out: out, term: term, resized: make(chan struct{}, 1), changed: make(chan struct{})}
	t.SetSize(width, height)
	return t
}

// SetSize notes a new size in cells; 0 means unknown.
func (t *Terminal) SetSize(width, height int) {
	t.mu.Lock()
	t.width, t.height = width, height
	t.mu.Unlock()
	select {
	case t.resized <- struct{}{}:
	default: // whoever takes the token will see this size
	}
}

// Size returns the size as the client told it.
func (t *Terminal) Size() (width, height int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.width, t.height
}

// screen returns the size to draw.
func (t *Terminal) screen() (width, height int) {
	width, height = t.Size()
	if width <= 0 || height <= 0 {
		width, height = defaultWidth, defaultHeight
	}
	return min(width, maxWidth), min(height, maxHeight)
}

// Pump reads r, the input, until it ends or ctx does. It must be the only reader
// of r. It returns when a Read does after ctx has ended, so close what r reads.
func (t *Terminal) Pump(ctx context.Context, r io.Reader) {
	chunk := make([]byte, 4<<10)
	for {
		n, err := r.Read(chunk)
		t.mu.Lock()
		t.buf = append(t.buf, chunk[:n]...)
		t.err = err
		t.tellLocked()
		for err == nil && len(t.buf) >= maxAhead {
			taken := t.changed
			t.mu.Unlock()
			select {
			case <-taken:
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
			t.mu.Lock()
			t.err = err
		}
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (t *Terminal) tellLocked() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// peek returns what there is to read once that is more than have bytes, and
// takes nothing. The result stays as it is. An error means that no more than
// have will come, or that ctx has ended.
func (t *Terminal) peek(ctx context.Context, have int) ([]byte, error) {
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		t.mu.Lock()
		b, err, changed := slices.Clip(t.buf), t.err, t.changed
		t.mu.Unlock()
		switch {
		case len(b) > have:
			return b, nil
		case err != nil:
			return nil, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// take removes the first n bytes.
func (t *Terminal) take(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = t.buf[n:]
	if len(t.buf) == 0 {
		t.buf = nil // an idle terminal keeps no memory
	}
	t.tellLocked()
}

// Reader returns a reader of the input, for whoever has the terminal next. Once
// ctx ends it returns the cause and takes nothing more.
func (t *Terminal) Reader(ctx context.Context) io.Reader {
	t.mu.Lock()
	t.lent = true
	t.mu.Unlock()
	return readerFunc(func(p []byte) (int, error) {
		if len(p) == 0 {
			return 0, nil
		}
		b, err := t.peek(ctx, 0)
		if err != nil {
			return 0, err
		}
		n := copy(p, b)
		t.take(n)
		return n, nil
	})
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// back turns off what whoever had the terminal may have left on, when it was
// killed in a full-screen program: attributes, the line-drawing set, keys and
// paste in other forms, and reports of the mouse, which would be taken for
// typing.
func (t *Terminal) back() error {
	t.mu.Lock()
	lent := t.lent
	t.lent = false
	t.mu.Unlock()
	if !lent {
		return nil
	}
	_, err := io.WriteString(t.out, "\x1b[m\x1b(B\x1b[?1l\x1b>\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2004l")
	return err
}
