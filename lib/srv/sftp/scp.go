package sftp

import (
	"strings"
)

// SCP is the command line of the remote end of "scp -O": the program scp, told to
// be a source (-f) or a sink (-t) of files.
type SCP struct {
	Write bool     // it is the sink
	Path  string   // that it was told
	Argv  []string // runs it without a shell
}

// ParseSCP reads a command line as a shell would, if it is plainly the remote end
// of scp and nothing else: one simple command without expansions, of scp's own
// flags and one path. What has anything of a shell in it, or is some other
// command, is not ok.
func ParseSCP(line string) (SCP, bool) {
	words, ok := splitWords(line)
	if !ok || len(words) < 3 || words[0] != "scp" && words[0] != "/usr/bin/scp" {
		return SCP{}, false
	}
	c := SCP{Argv: words}
	modes, rest := 0, words[1:]
	for len(rest) > 0 && strings.HasPrefix(rest[0], "-") && rest[0] != "--" {
		for _, flag := range rest[0][1:] {
			switch flag {
			case 't', 'f':
				modes++
				c.Write = flag == 't'
			case 'r', 'p', 'd', 'v', 'q':
			default:
				return SCP{}, false
			}
		}
		if rest[0] == "-" {
			return SCP{}, false
		}
		rest = rest[1:]
	}
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	if modes != 1 || len(rest) != 1 || rest[0] == "" {
		return SCP{}, false
	}
	c.Path = rest[0]
	return c, true
}

// The characters that mean something to a shell outside of quotes: anywhere, and
// at the beginning of a word.
const (
	special = "|&;<>()$`*?[]{}!\r\n\x00"
	leading = "~#"
)

// splitWords splits a line into words where no shell would do more with it than
// that. Quotes and backslashes are taken, expansions and operators are not.
func splitWords(line string) (words []string, ok bool) {
	var word strings.Builder
	begun := false
	for i := 0; i < len(line); i++ {
		switch b := line[i]; {
		case b == ' ' || b == '\t':
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
			continue
		case b == '\'':
			end := strings.IndexByte(line[i+1:], '\'')
			if end < 0 {
				return nil, false
			}
			word.WriteString(line[i+1 : i+1+end])
			i += 1 + end
		case b == '"':
			end := strings.IndexByte(line[i+1:], '"')
			if end < 0 || strings.ContainsAny(line[i+1:i+1+end], "$`\\!") {
				return nil, false
			}
			word.WriteString(line[i+1 : i+1+end])
			i += 1 + end
		case b == '\\':
			if i++; i == len(line) || line[i] == '\n' {
				return nil, false
			}
			word.WriteByte(line[i])
		case strings.IndexByte(special, b) >= 0, strings.IndexByte(leading, b) >= 0 && !begun:
			return nil, false
		default:
			word.WriteByte(b)
		}
		begun = true
	}
	if begun {
		words = append(words, word.String())
	}
	return words, !strings.Contains(line, "\x00")
}
