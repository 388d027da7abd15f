package recording

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

// linesOf returns what a LineReader makes of frames, each line behind its time.
func linesOf(t *testing.T, frames Frames) []string {
	t.Helper()
	var got []string
	l := NewLineReader(func(at time.Duration, line string) error {
		got = append(got, at.String()+" "+line)
		return nil
	})
	for f, err := range frames {
		if err == nil {
			err = l.Frame(f)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return got
}

// Without a terminal a line is what was printed on one stream, without what drives
// a terminal; one without an end takes no memory beyond its bound.
func TestLinesWithoutTerminal(t *testing.T) {
	got := linesOf(t, told(
		prints(time.Second, toOut, "out "), prints(2*time.Second, toErr, "err\n"), prints(3*time.Second, typed, "password\n"),
		prints(4*time.Second, toOut, "more\r\n\r\n\x1b]0;title\a\xff\x00x\n"),
		prints(4*time.Second, toOut, "\b\b$ cat paswx\b \b\b \bswd\n"), prints(4*time.Second, toErr, "err\n"),
		prints(5*time.Second, toOut, strings.Repeat("y", MaxLine+1)),
	))
	want := []string{"2s err", "1s out more", "4s \ufffd x", "4s $ cat passwd", "5s " + strings.Repeat("y", MaxLine), "5s y"}
	if !slices.Equal(got, want) {
		t.Errorf("lines are %.300q, want %.300q", got, want)
	}
}

// TestLinesOnScreen: on a screen of 20 columns and 5 rows a line is what was seen,
// in whatever pieces and order it was drawn.
func TestLinesOnScreen(t *testing.T) {
	s := time.Second
	for name, x := range map[string]struct {
		frames []*accessdv1.Frame
		want   []string
	}{
		"typed with mistakes": {[]*accessdv1.Frame{prints(s, toOut, "$ "), prints(2*s, toOut, "cta"), prints(3*s, toOut, "\b\b\x1b[Kat /etc/pas\x1b[1@"), prints(4*s, toOut, "swd\r\nroot:x\r\n")}, []string{"1s $ cat /etc/passwd", "4s root:x"}},
		"drawn in two places": {[]*accessdv1.Frame{prints(s, toOut, "\x1b[2;6Hword\x1b[1;1Htop\x1b[2;1Hpass")}, []string{"1s top", "1s pass word"}},
		"coloured":            {[]*accessdv1.Frame{prints(s, toOut, "\x1b[31mpass\x1b[1mword\x1b[0m\r\n")}, []string{"1s password"}},
		"over two rows":       {[]*accessdv1.Frame{prints(s, toOut, "a line of more than twenty columns\r\nnext")}, []string{"1s a line of more than twenty columns", "1s next"}},
		"over the top":        {[]*accessdv1.Frame{prints(s, toOut, strings.Repeat("abcdefghi ", 12)+"end\r\n1\r\n2\r\n3\r\n4\r\n5\r\n")}, []string{"1s " + strings.Repeat("abcdefghi ", 12) + "end", "1s 1", "1s 2", "1s 3", "1s 4", "1s 5"}},
		"in an editor": {[]*accessdv1.Frame{
			prints(s, toOut, "$ vi\r\n\x1b[?1049h\x1b[1;1Hfirst page"), prints(2*s, toOut, "\x1b[1;1H\x1b[2Ksecond page"),
			prints(3*s, toOut, "\x1b[?1049l$ exit"),
		}, []string{"1s $ vi", "1s first page", "2s second page", "3s $ exit"}},
		"seen by nobody": {[]*accessdv1.Frame{
			prints(s, toOut, "\x1b[?1049h\x1b[1;1H10%"), prints(s+time.Millisecond, toOut, "\x1b[1;1H20%"), prints(s+2*time.Millisecond, toOut, "\x1b[1;1H30%"),
		}, []string{"1s 30%"}},
		"cleared":    {[]*accessdv1.Frame{prints(s, toOut, "before\r\n\x1b[H\x1b[2J"), prints(2*s, toOut, "after")}, []string{"1s before", "2s after"}},
		"seen again": {[]*accessdv1.Frame{prints(s, toOut, "load\r\n"), prints(2*s, toOut, "\x1b[H\x1b[2Jload\r\nmore\r\n")}, []string{"1s load", "2s more"}},
		"made smaller": {[]*accessdv1.Frame{
			prints(s, toOut, "1\r\n2\r\n3\r\n4\r\n5"), resizes(2*s, 20, 2), prints(3*s, toOut, " on"),
		}, []string{"1s 1", "1s 2", "1s 3", "1s 4", "1s 5 on"}},
		"with accents": {[]*accessdv1.Frame{prints(s, toOut, "cafe\u0301 日本語 ok\r\n")}, []string{"1s cafe\u0301 日本語 ok"}},
	} {
		frames := append([]*accessdv1.Frame{begins(true)}, x.frames...)
		if got := linesOf(t, told(frames...)); !slices.Equal(got, x.want) {
			t.Errorf("%s: lines are %q, want %q", name, got, x.want)
		}
	}
}

// An error of whoever takes the lines ends the reading.
func TestLinesEnd(t *testing.T) {
	enough := errors.New("enough")
	for _, terminal := range []bool{true, false} {
		n := 0
		l := NewLineReader(func(time.Duration, string) error { n++; return enough })
		err := l.Frame(begins(terminal))
		if err == nil {
			err = l.Frame(prints(0, toOut, strings.Repeat("1\r\n2\r\n", 10)))
		}
		if !errors.Is(err, enough) || n != 1 {
			t.Errorf("terminal %v: %v after %d lines, want enough after 1", terminal, err, n)
		}
	}
}

// BenchmarkLines is what the index reads in the background.
func BenchmarkLines(b *testing.B) {
	listing := strings.Repeat("\x1b[32m-rwxr-xr-x\x1b[0m 1 root staff 1234567 Nov 21 13:20 some-file-name\r\n", 400)
	for _, terminal := range []bool{true, false} {
		b.Run(map[bool]string{true: "terminal", false: "plain"}[terminal], func(b *testing.B) {
			l := NewLineReader(func(time.Duration, string) error { return nil })
			if err := l.Frame(begins(terminal)); err != nil {
				b.Fatal(err)
			}
			f := prints(0, toOut, listing)
			b.SetBytes(int64(len(listing)))
			for b.Loop() {
				if err := l.Frame(f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
