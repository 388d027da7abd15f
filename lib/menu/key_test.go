package menu

import (
	"strings"
	"testing"
	"unicode"
)

// FuzzDecode feeds a terminal's input to the decoder as it comes: it gets on,
// takes no more than there is, and gives no character that has no glyph.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{"a", "\x1b[A", "\x1b[", "\x1b\x1b[A", "\x1bOH", "\x1b]0;x\x07", "\x1bP\x1b\\", "\xc3\xa4", "\xc3", "\x1b[\xff", "\x1b[" + strings.Repeat("9", 400)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			k, n := decode(b)
			if n < 0 || n > len(b) {
				t.Fatalf("decode(%q) takes %d bytes of %d", b, n, len(b))
			}
			if n == 0 {
				if len(b) > maxSequence+2 {
					t.Fatalf("decode(%q) wants more than %d bytes for one key", b, len(b))
				}
				return
			}
			if k >= 0 && !unicode.IsPrint(rune(k)) {
				t.Fatalf("decode(%q) = %U, which has no glyph", b, k)
			}
			b = b[n:]
		}
	})
}
