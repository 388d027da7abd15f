package recording

import (
	"context"
	"io"
	"iter"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

// Frames are the frames of a recording, in order; the error is the last.
type Frames = iter.Seq2[*accessdv1.Frame, error]

// Pace is how fast a recording is played.
type Pace struct {
	// Speed is by how much faster than it happened; zero means as it happened.
	Speed float64
	// MaxIdle, when set, is the longest that nothing happens.
	MaxIdle time.Duration
	// Wait waits for d; nil waits on the clock.
	Wait func(ctx context.Context, d time.Duration) error
}

// Play shows frames on a terminal, at their pace, through a [Filter]. It ends with
// the terminal as it was. What is missing is said in the place where it is missing.
func Play(ctx context.Context, w io.Writer, frames Frames, pace Pace) (err error) {
	if pace.Speed <= 0 {
		pace.Speed = 1
	}
	if pace.Wait == nil {
		pace.Wait = wait
	}
	filter := NewFilter()
	defer func() {
		if _, failed := io.WriteString(w, terminalReset); err == nil {
			err = failed
		}
	}()
	var last uint64
	terminal := true
	for f, err := range frames {
		if err != nil {
			return err
		}
		if s := f.GetStart(); s != nil {
			terminal = s.GetTerminal()
		}
		if d := pace.of(f.GetAtUs() - last); d > 0 {
			if err := pace.Wait(ctx, d); err != nil {
				return nil // whoever looks has seen enough
			}
		}
		last = f.GetAtUs()
		if _, err := w.Write(shown(f, filter, terminal)); err != nil {
			return err
		}
	}
	return nil
}

// of returns how long to wait for what came us microseconds later.
func (p Pace) of(us uint64) time.Duration {
	const longest = 365 * 24 * time.Hour
	d := longest
	if us < uint64(longest/time.Microsecond) {
		d = time.Duration(us) * time.Microsecond
	}
	if p.MaxIdle > 0 {
		d = min(d, p.MaxIdle)
	}
	return time.Duration(float64(d) / p.Speed)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// shown returns what a frame looks like on a terminal. Output that was not made
// for one ends its lines with LF alone.
func shown(f *accessdv1.Frame, filter *Filter, terminal bool) []byte {
	if g := f.GetGap(); g != nil {
		return []byte("\r\n[" + missing(g) + "]\r\n")
	}
	p := f.GetPrint()
	if p == nil || p.GetStream() == accessdv1.Stream_STREAM_STDIN {
		return nil
	}
	data := p.GetData()
	if !terminal {
		data = withReturns(data)
	}
	return filter.Filter(data)
}

// withReturns returns p with a CR before each LF.
func withReturns(p []byte) []byte {
	out := make([]byte, 0, len(p)+len(p)/16)
	for _, b := range p {
		if b == '\n' {
			out = append(out, '\r')
		}
		out = append(out, b)
	}
	return out
}
