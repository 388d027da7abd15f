package menu

import (
	"context"
	"errors"
	"time"
	"unicode"
	"unicode/utf8"
)

// key is one press of a key: a character, or one of the values below it.
type key rune

// The keys that are no characters. Of a key that has no use, noKey is left.
const (
	noKey key = -1 - iota
	keyUp
	keyDown
	keyPageUp
	keyPageDown
	keyHome
	keyEnd
	keyEnter
	keyEscape
	keyBackspace
	keyDeleteWord
	keyDeleteLine
	keyRedraw
	keyQuit
)

// escapeWait is how long the rest of a key's sequence may take after its first
// byte: long enough for one that was split on its way, short enough that the
// escape key by itself feels immediate.
const escapeWait = 150 * time.Millisecond

// maxSequence bounds one control sequence, in bytes. Keys have 8 at most; the
// rest is for a late answer to a question of whoever had the terminal before.
const maxSequence = 256

// nextKey waits for one key and takes exactly its bytes.
func (t *Terminal) nextKey(ctx context.Context) (key, error) {
	have := 0
	for {
		b, err := t.peek(ctx, have)
		if err != nil {
			return noKey, err
		}
		k, n := decode(b)
		if n == 0 {
			have = len(b)
			if k, n = t.unfinished(ctx, b); n == 0 {
				continue
			}
		}
		t.take(n)
		return k, nil
	}
}

// unfinished waits for the rest of a key that begins with b. If none comes, b
// is all there is; else, or if ctx ends, n is 0.
func (t *Terminal) unfinished(ctx context.Context, b []byte) (k key, n int) {
	wait, cancel := context.WithTimeoutCause(ctx, escapeWait, errNoRest)
	defer cancel()
	_, err := t.peek(wait, len(b))
	switch {
	case err == nil || ctx.Err() != nil:
		return noKey, 0
	case len(b) == 1 && b[0] == escape:
		return keyEscape, 1
	}
	return noKey, len(b)
}

var errNoRest = errors.New("the rest of a key did not come")

const escape = 0x1b

// decode returns the key at the beginning of b, which is not empty, and how
// many bytes it has; 0 means that some are missing.
func decode(b []byte) (k key, n int) {
	switch c := b[0]; {
	case c == escape:
		return decodeEscape(b)
	case c < ' ' || c == 0x7f:
		return control(c), 1
	case !utf8.FullRune(b):
		return noKey, 0
	}
	r, n := utf8.DecodeRune(b)
	if (r == utf8.RuneError && n == 1) || !unicode.IsPrint(r) {
		return noKey, n
	}
	return key(r), n
}

// control returns the key that sends the control character c.
func control(c byte) key {
	switch c {
	case '\r', '\n':
		return keyEnter
	case 0x08, 0x7f:
		return keyBackspace
	case ctrl('c'), ctrl('d'):
		return keyQuit
	case ctrl('n'), '\t':
		return keyDown
	case ctrl('p'):
		return keyUp
	case ctrl('f'):
		return keyPageDown
	case ctrl('b'):
		return keyPageUp
	case ctrl('a'):
		return keyHome
	case ctrl('e'):
		return keyEnd
	case ctrl('u'):
		return keyDeleteLine
	case ctrl('w'):
		return keyDeleteWord
	case ctrl('l'):
		return keyRedraw
	}
	return noKey
}

func ctrl(letter byte) byte { return letter & 0x1f }

// decodeEscape is [decode] for what begins with ESC: control sequences (ECMA-48,
// section 5.4), the keys of an application keypad, and control strings
// (section 5.6), which no key sends and which are passed over.
func decodeEscape(b []byte) (k key, n int) {
	if len(b) == 1 {
		return noKey, 0
	}
	switch b[1] {
	case escape:
		return keyEscape, 1
	case '[':
		for i := 2; i < len(b); i++ {
			switch c := b[i]; {
			case c >= 0x40 && c <= 0x7e:
				return sequence(b[2:i], c), i + 1
			case c < 0x20 || c > 0x7e || i > maxSequence:
				return noKey, i // no part of a sequence: it begins something else
			}
		}
		return noKey, 0
	case 'O':
		if len(b) == 2 {
			return noKey, 0
		}
		return sequence(nil, b[2]), 3
	case 'P', 'X', ']', '^', '_':
		for i := 2; i < len(b); i++ {
			switch {
			case b[i] == 0x07 && b[1] == ']':
				return noKey, i + 1
			case b[i] == '\\' && b[i-1] == escape:
				return noKey, i + 1
			case i > maxSequence:
				return noKey, i
			}
		}
		return noKey, 0
	}
	// A character with the Alt key, of which none has a use here.
	if !utf8.FullRune(b[1:]) {
		return noKey, 0
	}
	_, n = utf8.DecodeRune(b[1:])
	return noKey, 1 + n
}

// sequence returns the key that sends a control sequence with these parameters
// and final byte. A modifier, which is a second parameter, changes nothing.
func sequence(params []byte, final byte) key {
	switch final {
	case 'A':
		return keyUp
	case 'B':
		return keyDown
	case 'H':
		return keyHome
	case 'F':
		return keyEnd
	case 'M':
		if params == nil {
			return keyEnter // of the keypad
		}
	case '~':
		return numbered(params)
	}
	return noKey
}

// numbered returns the key that a VT220 and its kin number.
func numbered(params []byte) key {
	if len(params) == 0 || len(params) > 1 && params[1] != ';' {
		return noKey
	}
	switch params[0] {
	case '1', '7':
		return keyHome
	case '4', '8':
		return keyEnd
	case '5':
		return keyPageUp
	case '6':
		return keyPageDown
	}
	return noKey
}
