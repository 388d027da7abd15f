package sftp

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/accessd/accessd/lib/fault"
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

const (
	// maxLine bounds one message of the protocol, in bytes: a path and numbers.
	maxLine = 8 << 10
	// maxDepth bounds directories in directories.
	maxDepth = 256
)

// SCPFilter stands between the two ends of scp (RCP), which have no packets: a
// source sends lines that begin with what they are, C for a file, D for a
// directory, E for its end, T for times, and the sink answers each with a byte, 0
// when it is well. What passes is unchanged.
type SCPFilter struct {
	cfg    Config
	scp    SCP
	client io.Writer
	server io.WriteCloser

	mu   sync.Mutex
	dirs []string
	file *carried // under way; nil between files
}

// carried is a file on its way.
type carried struct {
	op   Operation
	hash hash.Hash
	left int64
}

// NewSCP returns a filter for scp between client and server. Both
// [SCPFilter.FromClient] and [SCPFilter.FromServer] must be run.
func NewSCP(cfg Config, scp SCP, client io.Writer, server io.WriteCloser) *SCPFilter {
	return &SCPFilter{cfg: cfg, scp: scp, client: client, server: server}
}

// FromClient passes on what comes from r until it ends, and closes the server's
// input. An error ends the session.
func (f *SCPFilter) FromClient(ctx context.Context, r io.Reader) error {
	defer f.server.Close()
	if f.scp.Write {
		return f.source(ctx, r, f.server)
	}
	_, err := io.Copy(f.server, r)
	return err
}

// FromServer passes on what comes from r until it ends, and reports a file that
// did not come whole.
func (f *SCPFilter) FromServer(ctx context.Context, r io.Reader) error {
	var err error
	if f.scp.Write {
		_, err = io.Copy(f.client, r)
	} else {
		err = f.source(ctx, r, f.client)
	}
	return errors.Join(err, f.leave(ctx))
}

// source passes on what the source of files sends.
func (f *SCPFilter) source(ctx context.Context, r io.Reader, w io.Writer) error {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			_, err := w.Write(line)
			return err
		}
		if err != nil {
			return fmt.Errorf("scp: a message of more than %d bytes: %w", maxLine, err)
		}
		if err := f.message(string(line[:len(line)-1])); err != nil {
			return err
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
		if err := f.content(ctx, in, w); err != nil {
			return err
		}
	}
}

// message follows one line of the source.
func (f *SCPFilter) message(line string) error {
	if line == "" {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch line[0] {
	case 'C', 'D':
		return f.entryLocked(line)
	case 'E':
		if len(f.dirs) == 0 {
			return fault.New(fault.BadInput, "scp: the end of a directory that has not begun")
		}
		f.dirs = f.dirs[:len(f.dirs)-1]
	case 'T', 0, 1, 2: // times; a sink's or a source's words about an error
	default:
		return fault.New(fault.BadInput, "scp: a message of an unknown kind %q", line[:1])
	}
	return nil
}

// entryLocked follows the beginning of a file or directory: kind and mode, size,
// name.
func (f *SCPFilter) entryLocked(line string) error {
	fields := strings.SplitN(line[1:], " ", 3)
	if len(fields) != 3 {
		return fault.New(fault.BadInput, "scp: a file without mode, size and name")
	}
	size, err := strconv.ParseInt(fields[1], 10, 64)
	if _, merr := strconv.ParseUint(fields[0], 8, 32); err != nil || merr != nil || size < 0 {
		return fault.New(fault.BadInput, "scp: a file of no mode or size")
	}
	name := fields[2]
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fault.New(fault.Denied, "scp: the name %q leads elsewhere", name)
	}
	if len(f.dirs) >= maxDepth {
		return fault.New(fault.BadInput, "scp: more than %d directories in each other", maxDepth)
	}
	if line[0] == 'D' {
		f.dirs = append(f.dirs, name)
		return nil
	}
	if err := f.cfg.Allow(f.scp.Write); err != nil {
		return err
	}
	op := Operation{Action: actClose, Path: f.scp.Path, Write: f.scp.Write, Attrs: "mode=" + fields[0]}
	if names := append(slices.Clone(f.dirs), name); f.scp.Write {
		op.Target = path.Join(names...) // under or instead of Path, as scp decides there
	} else if len(f.dirs) > 0 {
		op.Path = path.Join(append([]string{path.Dir(f.scp.Path)}, names...)...)
	}
	f.file = &carried{op: op, hash: sha256.New(), left: size}
	return nil
}

// content passes on the bytes of the file that has just begun, if one has.
func (f *SCPFilter) content(ctx context.Context, in *bufio.Reader, w io.Writer) error {
	f.mu.Lock()
	c := f.file
	f.mu.Unlock()
	if c == nil {
		return nil
	}
	n, err := io.Copy(io.MultiWriter(w, c.hash), io.LimitReader(in, c.left))
	f.mu.Lock()
	c.left -= n
	if f.scp.Write {
		c.op.BytesWritten += n
	} else {
		c.op.BytesRead += n
	}
	f.mu.Unlock()
	if err != nil || c.left > 0 {
		return err // the stream has ended in the middle, which leave reports
	}
	f.mu.Lock()
	f.file = nil
	f.mu.Unlock()
	c.op.Sequential, c.op.SHA256 = true, hex.EncodeToString(c.hash.Sum(nil))
	if err := f.cfg.Report(ctx, c.op); err != nil {
		return err
	}
	return f.verdict(ctx, in, w, c)
}

// verdict passes on the byte with which a source says whether it read the file
// well.
func (f *SCPFilter) verdict(ctx context.Context, in *bufio.Reader, w io.Writer, c *carried) error {
	b, err := in.ReadByte()
	if err != nil {
		return nil //nolint:nilerr // the next read says so, too
	}
	if b == 0 {
		_, err := w.Write([]byte{0})
		return err
	}
	op := c.op
	op.Status, op.Error = statusFailure, "the source could not read it whole"
	return errors.Join(in.UnreadByte(), f.cfg.Report(ctx, op))
}

// leave reports a file that did not come whole.
func (f *SCPFilter) leave(ctx context.Context) error {
	f.mu.Lock()
	c := f.file
	f.file = nil
	f.mu.Unlock()
	if c == nil {
		return nil
	}
	c.op.Status, c.op.Error = statusConnectionLost, ended
	return f.cfg.Report(context.WithoutCancel(ctx), c.op)
}
