package proxy

import (
	"strings"

	"github.com/accessd/accessd/lib/fault"
)

// Bounds of a command line.
const (
	maxCommand = 16 << 10 // bytes
	maxArgs    = 256
)

// splitWords splits a command line into words as a POSIX shell does (Shell
// Command Language, section 2.2), where quoting is all there is: what a shell
// would expand or run is an error, since nothing here does.
func splitWords(line string) ([]string, error) {
	if len(line) > maxCommand {
		return nil, fault.New(fault.BadInput, "a command of %d bytes: want at most %d", len(line), maxCommand)
	}
	var words []string
	var word strings.Builder
	open := false // a word has begun, if only by a quote
	for i := 0; i < len(line); {
		switch c := line[i]; c {
		case ' ', '\t', '\n', '\r':
			if open {
				words, open = append(words, word.String()), false
				word.Reset()
			}
			i++
			continue
		case '\'', '"':
			text, n, err := quoted(line[i:])
			if err != nil {
				return nil, err
			}
			word.WriteString(text)
			i += n
		case '\\':
			if i+1 == len(line) {
				return nil, fault.New(fault.BadInput, `the command ends in a \`)
			}
			word.WriteByte(line[i+1])
			i += 2
		case '$', '`', ';', '|', '&', '<', '>', '(', ')':
			return nil, errNoShell(c)
		default:
			word.WriteByte(c)
			i++
		}
		if open = true; len(words) == maxArgs {
			return nil, fault.New(fault.BadInput, "a command of more than %d words", maxArgs)
		}
	}
	if open {
		words = append(words, word.String())
	}
	return words, nil
}

// quoted returns what is between the quotes that s begins with, and how much of s
// that takes.
func quoted(s string) (text string, n int, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == s[0]:
			return b.String(), i + 1, nil
		case s[0] == '\'':
			b.WriteByte(c)
		case c == '$' || c == '`':
			return "", 0, errNoShell(c)
		case c == '\\' && i+1 < len(s) && strings.IndexByte("$`\"\\", s[i+1]) >= 0:
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, fault.New(fault.BadInput, "a quote is not closed")
}

func errNoShell(c byte) error {
	return fault.New(fault.BadInput, "no shell reads this: put %q into single quotes to mean it", c)
}
