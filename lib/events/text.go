package events

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendText appends s to dst as a JSON string of printable ASCII: everything
// else is escaped, and each byte that is not UTF-8 becomes U+FFFD. The rule
// names no Unicode property, so a string has the same form in every version.
func appendText(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			dst = appendASCII(dst, c)
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r1, r2 := utf16.EncodeRune(r); r1 != utf8.RuneError {
			dst = appendUnit(appendUnit(dst, r1), r2)
		} else {
			dst = appendUnit(dst, r)
		}
		i += n
	}
	return append(dst, '"')
}

func appendASCII(dst []byte, c byte) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(dst, '\\', c)
	case c < ' ' || c == 0x7f:
		return appendUnit(dst, rune(c))
	}
	return append(dst, c)
}

func appendUnit(dst []byte, u rune) []byte {
	return append(dst, '\\', 'u', hexDigits[u>>12&15], hexDigits[u>>8&15], hexDigits[u>>4&15], hexDigits[u&15])
}

// textSize returns how many bytes appendText appends for s.
func textSize(s string) int {
	n := len(`""`)
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			n += asciiSize(c)
			i++
			continue
		}
		r, w := utf8.DecodeRuneInString(s[i:])
		n += len(`\u0000`)
		if r > 0xffff {
			n += len(`\u0000`)
		}
		i += w
	}
	return n
}

func asciiSize(c byte) int {
	switch {
	case c == '"' || c == '\\':
		return 2
	case c < ' ' || c == 0x7f:
		return len(`\u0000`)
	}
	return 1
}

// Display returns s for a terminal or a table: every control or format
// character, everything that has no glyph, and every byte that is not UTF-8
// shows as \xNN or \u{...}; the rest stays.
func Display(s string) string {
	if strings.IndexFunc(s, hidden) < 0 && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case !hidden(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u{%x}`, r)
		}
		i += n
	}
	return b.String()
}

// hidden reports whether r has no glyph of its own or moves others.
func hidden(r rune) bool { return !unicode.IsPrint(r) }

// clip returns the beginning of s for an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// prefix returns at most n bytes of s, not cut inside a character.
func prefix(s string, n int) string {
	if n >= len(s) {
		return s
	}
	for back := 0; back < utf8.UTFMax && back <= n; back++ {
		if utf8.RuneStart(s[n-back]) {
			return s[:n-back]
		}
	}
	return s[:n] // not UTF-8 anyway
}
