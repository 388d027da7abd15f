package recording

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"regexp"
	"slices"
	"testing"
	"time"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
)

// What could drive the terminal of whoever looks, each between two letters, whole
// and split at every byte (THREATS F32).
func TestFilterHostile(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"OSC 52, BEL", "\x1b]52;c;cm0gLXJmIC8=\a", ""},
		{"OSC 52, ST", "\x1b]52;c;?\x1b\\", ""},
		{"OSC 52, 8-bit", "\x9d52;c;cm0=\x9c", ""},
		{"title", "\x1b]0;root@db\a", ""},
		{"title of tmux", "\x1bkroot\x1b\\", "kroot"},
		{"link", "\x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\", "x"},
		{"colour asked for", "\x1b]11;?\a", ""},
		{"notification", "\x1b]777;notify;a;b\a", ""},
		{"DCS DECRQSS", "\x1bP$q\"p\x1b\\", ""},
		{"DCS XTGETTCAP", "\x1bP+q544e\x1b\\", ""},
		{"DCS DECUDK", "\x1bP0;1|17/726d\x1b\\", ""},
		{"DCS sixel", "\x1bPq#0;2;0;0;0#0~~\x1b\\", ""},
		{"DCS, 8-bit", "\x90+q544e\x9c", ""},
		{"APC", "\x1b_Gf=24;AAAA\x1b\\", ""},
		{"APC, 8-bit", "\x9fGf=24;AAAA\x9c", ""},
		{"PM", "\x1b^secret\x1b\\", ""},
		{"PM, 8-bit", "\x9esecret\x9c", ""},
		{"SOS", "\x1bXsecret\x1b\\", ""},
		{"SOS, 8-bit", "\x98secret\x9c", ""},
		{"DA1", "\x1b[c", ""},
		{"DA2", "\x1b[>c", ""},
		{"DA3", "\x1b[=c", ""},
		{"DECID", "\x1bZ", ""},
		{"DECID, 8-bit", "\x9a", ""},
		{"DSR", "\x1b[5n\x1b[6n\x1b[?6n", ""},
		{"DSR, 8-bit CSI", "\x9b6n", ""},
		{"DECRQM", "\x1b[?2004$p", ""},
		{"DECREQTPARM", "\x1b[1x", ""},
		{"XTVERSION", "\x1b[>0q", ""},
		{"ENQ", "\x05", ""},
		{"BEL", "\a", ""},
		{"charset G0", "\x1b(0", ""},
		{"charset G1", "\x1b)0", ""},
		{"SO and SI", "\x0e\x0f", ""},
		{"UTF-8 off", "\x1b%@", ""},
		{"LS2", "\x1bn", ""},
		{"S8C1T", "\x1b G", ""},
		{"window", "\x1b[8;1;1t\x1b[21t\x1b[2t", ""},
		{"mouse", "\x1b[?1000h\x1b[?1002h\x1b[?1003h\x1b[?1006h", ""},
		{"mouse highlighting", "\x1b[1;2;3;4;5T", ""},
		{"focus and bracketed paste", "\x1b[?1004h\x1b[?2004h", ""},
		{"one harmless mode among others", "\x1b[?25;1000l", "\x1b[?25l"},
		{"keyboard", "\x1b[>4;2m\x1b[>1u\x1b[=1u\x1b[?u", ""},
		{"application keys", "\x1b[?1h\x1b=\x1b>", ""},
		{"insert and newline mode", "\x1b[4h\x1b[20h", ""},
		{"media copy", "\x1b[5i\x1b[?5i", ""},
		{"DECSTR", "\x1b[!p", ""},
		{"cursor style", "\x1b[5 q", ""},
		{"DECALN", "\x1b#8", ""},
		{"checksum of an area", "\x1b[1;1;1;1;1;1*y", ""},
		{"C1 as UTF-8", "\u009b6n", "6n"},
		{"bidi override", "\u202eabc\u202c", "abc"},
		{"DEL and NUL", "\x7f\x00", ""},
		{"full reset", "\x1bc", "\x1b[0m\x1b[r\x1b[H\x1b[2J"},
		{"huge parameter", "\x1b[99999999999b", ""},
		{"cancelled", "\x1b]0;a\x18b", "b"},
		{"sequence in a sequence", "\x1b[3\x1b[6nx", "x"},

		{"colour", "\x1b[1;38;5;9mx\x1b[m", "\x1b[1;38;5;9mx\x1b[m"},
		{"colour with colons", "\x1b[38:2:1:2:3m", "\x1b[38:2:1:2:3m"},
		{"cursor, 8-bit CSI", "\x9b2;3H", "\x1b[2;3H"},
		{"erase and move", "\x1b[2J\x1b[K\x1b[3A", "\x1b[2J\x1b[K\x1b[3A"},
		{"alternate screen", "\x1b[?1049h\x1b[?1049l", "\x1b[?1049h\x1b[?1049l"},
		{"text", "grüße 日本 👩\u200d💻\r\n\t\b", "grüße 日本 👩\u200d💻\r\n\t\b"},
	} {
		in, want := "A"+tc.in+"Z", "A"+tc.want+"Z"
		for i := range len(in) + 1 {
			f := NewFilter()
			got := string(f.Filter([]byte(in[:i]))) + string(f.Filter([]byte(in[i:])))
			if got != want {
				t.Errorf("%s, split at %d: %q, want %q", tc.name, i, got, want)
			}
		}
	}
}

// fit is all that a filter may write.
var fit = regexp.MustCompile("^(?:[\b\t\n\v\f\r]|[^\\x00-\\x1f\\x7f-\\x{9f}]|\x1b[78DEM]|\x1b\\[[0-9;:]*[@A-MPSTXZ`abdefmrsu]|\x1b\\[\\?(?:6|7|25|47|1047|1048|1049)[hl])*$")

// Whatever goes in, what comes out is on the list, and so is what a terminal without
// a filter's memory makes of it; a screen takes it without a panic, and its text has no
// control characters.
func TestFilterAnything(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same bytes each time
	alphabet := []byte("\x1b\x1b\x1b[[[]]P_^X?>=;:!$ \a\b\t\n\v\f\r\x0e\x9b\x9d\x90\x9c\xc2\xe2\x80\xf0\xff0123456789hlmnHABCJKLMPSTbcrtuxyz\\")
	text := regexp.MustCompile(`^[^\x00-\x09\x0b-\x1f\x7f-\x{9f}]*$`)
	for range 3000 {
		in := make([]byte, r.IntN(200))
		for i := range in {
			in[i] = alphabet[r.IntN(len(alphabet))]
		}
		if got := NewFilter().Filter(in); !fit.Match(got) {
			t.Fatalf("%q became %q", in, got)
		}
		var b bytes.Buffer
		frames := []*accessdv1.Frame{startFrame(true, uint32(r.IntN(12)), uint32(r.IntN(6))), outFrame(0, string(in)), resizeFrame(0, uint32(r.IntN(9)), uint32(r.IntN(9))), outFrame(0, string(in))}
		if err := WriteText(&b, framesSeq(nil, frames...)); err != nil || !text.Match(b.Bytes()) {
			t.Fatalf("%q became %q, %v", in, b.Bytes(), err)
		}
	}
}

func TestPlay(t *testing.T) {
	var waits []time.Duration
	pace := Pace{Speed: 2, MaxIdle: 4 * time.Second, Wait: func(_ context.Context, d time.Duration) error {
		waits = append(waits, d)
		return nil
	}}
	frames := []*accessdv1.Frame{
		startFrame(true, 80, 24), outFrame(1e6, "a\x1b]0;t"), outFrame(2e6, "itle\ab"), inFrame(2e6, "typed"), outFrame(3600e6, "c"),
		gapFrame(3600e6, "disk \x1b]52;c;eA==\a full", 7), outFrame(3600e6, "d"),
	}
	var b bytes.Buffer
	if err := Play(t.Context(), &b, framesSeq(nil, frames...), pace); err != nil {
		t.Fatal(err)
	}
	want := "abc\r\n[7 bytes are missing here: disk \\x1b]52;c;eA==\\x07 full]\r\nd" + terminalReset
	if b.String() != want {
		t.Errorf("played %q, want %q", b.String(), want)
	}
	if want := []time.Duration{time.Second / 2, time.Second / 2, 2 * time.Second}; !slices.Equal(waits, want) {
		t.Errorf("waited %v, want %v", waits, want)
	}
}

// The terminal is given back however playing ends.
func TestPlayEnds(t *testing.T) {
	broken := errors.New("broken")
	var b bytes.Buffer
	if err := Play(t.Context(), &b, framesSeq(broken, startFrame(false, 0, 0), outFrame(0, "a\nb")), Pace{}); !errors.Is(err, broken) {
		t.Errorf("Play = %v, want %v", err, broken)
	}
	if want := "a\r\nb" + terminalReset; b.String() != want {
		t.Errorf("played %q, want %q", b.String(), want)
	}
	b.Reset()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Play(ctx, &b, framesSeq(nil, startFrame(true, 80, 24), outFrame(3600e6, "never")), Pace{}); err != nil {
		t.Errorf("Play = %v after it was interrupted", err)
	}
	if b.String() != terminalReset {
		t.Errorf("played %q", b.String())
	}
	full := fault.New(fault.Unavailable, "full")
	if err := Play(t.Context(), failingWriter{full}, framesSeq(nil, startFrame(true, 80, 24)), Pace{}); !errors.Is(err, full) {
		t.Errorf("Play = %v, want %v", err, full)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

var _ io.Writer = failingWriter{}

// framesSeq yields frames, and then err, if any.
func framesSeq(err error, frames ...*accessdv1.Frame) Frames {
	return func(yield func(*accessdv1.Frame, error) bool) {
		for _, f := range frames {
			if !yield(f, nil) {
				return
			}
		}
		if err != nil {
			yield(nil, err)
		}
	}
}
