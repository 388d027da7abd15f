package sftp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// maxLine bounds a line of the protocol, in bytes: a name of the longest path
	// there is, and room for mode and size, or for words about it.
	maxLine = 2 * maxPath
	// maxDepth bounds directories in directories.
	maxDepth = 256
	// maxEarly bounds the answers that come before anything was asked; a sink of
	// OpenSSH's has two where another has one.
	maxEarly = 16
)

// SCPFilter stands between the two ends of "scp -O", which speak the protocol of
// rcp: the source sends lines that announce files and directories, and the
// content of files; the sink answers each line and each content with a zero
// byte, or with a line of words.
//
// All passes unchanged. What cannot be followed, a name that would leave the
// directory it belongs into, and what is not allowed end the session: here, too,
// nothing passes that was not read.
type SCPFilter struct {
	cfg    Config
	cmd    SCP
	client io.Writer
	server io.WriteCloser
	held   atomic.Int64

	writing sync.Mutex // guards writes to the client

	mu      sync.Mutex
	changed sync.Cond
	waiting bool       // the source waits for an answer
	op      *Operation // that is reported when it has come; nil: nothing
	early   []reply    // answers that came before
	current *transfer  // the file that is under way
	pumps   int        // that have not returned
	over    bool       // one of them has
}

// reply is an answer of the sink.
type reply struct{ words string } // none: success

// transfer is a file that is under way.
type transfer struct {
	op      Operation
	content content
	left    int64
}

// NewSCP returns what [New] does, for the command c instead of the SFTP
// subsystem.
func NewSCP(cfg Config, c SCP, client io.Writer, server io.WriteCloser) *SCPFilter {
	p := &SCPFilter{cfg: cfg, cmd: c, client: client, server: server, pumps: 2}
	p.changed.L = &p.mu
	return p
}

// FromClient passes on what comes from r until r ends, closes the server's input
// and returns. An error ends the session.
func (p *SCPFilter) FromClient(ctx context.Context, r io.Reader) error {
	var err error
	if p.cmd.Write {
		err = p.source(ctx, r, p.server)
	} else {
		err = p.sink(ctx, r, p.server)
	}
	p.server.Close()
	return p.end(ctx, err)
}

// FromServer passes on what comes from r until r ends, and returns. An error
// ends the session.
func (p *SCPFilter) FromServer(ctx context.Context, r io.Reader) error {
	w := writerFunc(p.writeClient)
	if p.cmd.Write {
		return p.end(ctx, p.sink(ctx, r, w))
	}
	return p.end(ctx, p.source(ctx, r, w))
}

// writerFunc is a function that is an [io.Writer].
type writerFunc func(b []byte) (int, error)

// Write implements [io.Writer].
func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func (p *SCPFilter) writeClient(b []byte) (int, error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	return p.client.Write(b)
}

// end is the last act of a pump. The last one reports a file that is under way.
func (p *SCPFilter) end(ctx context.Context, err error) error {
	p.mu.Lock()
	p.over = true
	p.pumps--
	last := p.pumps == 0
	p.changed.Broadcast()
	p.mu.Unlock()
	if !last {
		return err
	}
	op := p.op
	if p.current != nil {
		closed := p.current.closed()
		op = &closed
	}
	if op == nil {
		return err
	}
	op.Status, op.Error = statusConnectionLost, ended
	return errors.Join(err, p.cfg.Report(context.WithoutCancel(ctx), *op))
}

// sink passes on the answers that come from r.
func (p *SCPFilter) sink(ctx context.Context, r io.Reader, w io.Writer) error {
	buf := make([]byte, maxLine)
	end := 0
	for {
		n, err := r.Read(buf[end:])
		end += n
		pos := 0
		for pos < end {
			size, words := answerIn(buf[pos:end])
			if size == 0 {
				break
			}
			if err := p.answered(ctx, reply{words}); err != nil {
				return err
			}
			if _, err := w.Write(buf[pos : pos+size]); err != nil {
				return err
			}
			p.passed(reply{words})
			pos += size
		}
		end = copy(buf, buf[pos:end])
		if end == len(buf) {
			return fault.New(fault.BadInput, "scp: an answer of more than %d bytes", maxLine)
		}
		if err != nil {
			return ignoreEOF(err)
		}
	}
}

// answerIn returns how many bytes the answer has that b begins with, 0 when it
// is not whole, and the words of one that is no success.
func answerIn(b []byte) (size int, words string) {
	if b[0] == 0 {
		return 1, ""
	}
	n := bytes.IndexByte(b, '\n')
	if n < 0 {
		return 0, ""
	}
	words = strings.TrimLeft(string(b[:n]), "\x01\x02")
	if words == "" {
		words = "error"
	}
	return n + 1, words
}

// answered reports what a answers, before it is passed on.
func (p *SCPFilter) answered(ctx context.Context, a reply) error {
	p.mu.Lock()
	if len(p.early) == maxEarly {
		p.mu.Unlock()
		return fault.New(fault.BadInput, "scp: %d answers to nothing", maxEarly)
	}
	op := p.op
	if p.waiting && len(p.early) == 0 {
		p.op = nil
	} else {
		op = nil
	}
	p.mu.Unlock()
	return p.report(ctx, op, a)
}

// passed tells the pump of the source that a has gone to it.
func (p *SCPFilter) passed(a reply) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.early = append(p.early, a)
	p.changed.Broadcast()
}

// report reports op, which a answers.
func (p *SCPFilter) report(ctx context.Context, op *Operation, a reply) error {
	if op == nil {
		return nil
	}
	if a.words != "" {
		op.Status, op.Error = statusFailure, bounded(a.words)
	}
	return p.cfg.Report(ctx, *op)
}

// errOver ends a pump that waits for what cannot come.
var errOver = errors.New("scp: the other side has ended")

// answer waits for the next answer of the sink. ask, which sends what it
// answers, is called when it is known here what it is for.
func (p *SCPFilter) answer(ctx context.Context, op *Operation, ask func() error) (reply, error) {
	p.mu.Lock()
	p.waiting, p.op = true, op
	p.mu.Unlock()
	if err := ask(); err != nil {
		return reply{}, err
	}
	p.mu.Lock()
	for len(p.early) == 0 && !p.over {
		p.changed.Wait()
	}
	if len(p.early) == 0 {
		p.mu.Unlock()
		return reply{}, errOver
	}
	a, op := p.early[0], p.op // an answer that came before was of nothing yet
	p.early, p.waiting, p.op = p.early[1:], false, nil
	p.mu.Unlock()
	return a, p.report(ctx, op, a)
}

// refuse ends the session because of what the source has sent, and says so to
// the client.
func (p *SCPFilter) refuse(ctx context.Context, op Operation, err error) error {
	op.Status, op.Error = statusDenied, bounded(err.Error())
	if failed := p.cfg.Report(ctx, op); failed != nil {
		return failed
	}
	_, _ = p.writeClient([]byte("\x02scp: " + oneLine(strings.TrimPrefix(fault.Public(err), "scp: ")) + "\n")) // the session ends anyway
	return err
}

func oneLine(s string) string { return strings.ReplaceAll(bounded(s), "\n", " ") }

// closed returns the operation that says what went through.
func (t *transfer) closed() Operation {
	op := t.op
	n := int64(t.content.next)
	if op.Write {
		op.BytesWritten = n
	} else {
		op.BytesRead = n
	}
	op.Sequential = t.left == 0
	if op.Sequential {
		op.SHA256, _ = t.content.sha256(n)
	}
	return op
}

// source reads what the source sends.
type source struct {
	*SCPFilter
	r    io.Reader
	w    io.Writer
	buf  []byte
	sent int // buf[sent:pos] is to be passed on
	pos  int
	end  int
	dirs []string // that have begun
}

// source passes on what comes from r.
func (p *SCPFilter) source(ctx context.Context, r io.Reader, w io.Writer) error {
	s := &source{SCPFilter: p, r: r, w: w, buf: make([]byte, bufferSize)}
	err := s.run(ctx)
	if errors.Is(err, errOver) {
		return nil
	}
	return ignoreEOF(err)
}

func (s *source) run(ctx context.Context) error {
	if _, err := s.answer(ctx, nil, func() error { return nil }); err != nil {
		return err // the sink speaks first
	}
	for {
		line, err := s.line()
		if err != nil {
			return err
		}
		if err := s.message(ctx, line); err != nil {
			return err
		}
	}
}

// fill passes on what was read and reads on.
func (s *source) fill() error {
	if err := s.flush(); err != nil {
		return err
	}
	s.end = copy(s.buf, s.buf[s.pos:s.end])
	s.sent, s.pos = 0, 0
	n, err := s.r.Read(s.buf[s.end:])
	s.end += n
	if n > 0 {
		return nil
	}
	return err
}

func (s *source) flush() error {
	if s.sent == s.pos {
		return nil
	}
	_, err := s.w.Write(s.buf[s.sent:s.pos])
	s.sent = s.pos
	return err
}

// line waits for a whole line and returns it without its end. It is not passed
// on before pos has moved behind it.
func (s *source) line() (string, error) {
	for {
		b := s.buf[s.pos:s.end]
		if n := bytes.IndexByte(b, '\n'); n >= 0 && n < maxLine {
			return string(b[:n]), nil
		}
		if len(b) >= maxLine {
			return "", fault.New(fault.BadInput, "scp: a line of more than %d bytes", maxLine)
		}
		if err := s.fill(); err != nil {
			if errors.Is(err, io.EOF) && len(b) > 0 {
				return "", fault.New(fault.BadInput, "scp: the stream ends inside a line")
			}
			return "", err
		}
	}
}

// message deals with a line.
func (s *source) message(ctx context.Context, line string) error {
	kind := byte(0)
	if line != "" {
		kind = line[0]
	}
	s.pos += len(line) + 1
	switch {
	case kind == 1 || kind == 2: // words for a person; nobody answers them
		return nil
	case kind == 'T':
		return s.ask(ctx, nil)
	case kind == 'E' && len(s.dirs) > 0:
		s.dirs = s.dirs[:len(s.dirs)-1]
		return s.ask(ctx, nil)
	case kind == 'C':
		return s.file(ctx, line)
	case kind == 'D':
		return s.directory(ctx, line)
	case kind == 'E':
		return fault.New(fault.BadInput, "scp: the end of a directory that has not begun")
	}
	return fault.New(fault.BadInput, "scp: a message of an unknown kind %q", kind)
}

// ask waits for the answer to what ends at pos.
func (s *source) ask(ctx context.Context, op *Operation) error {
	_, err := s.answer(ctx, op, s.flush)
	return err
}

// directory deals with the announcement of a directory.
func (s *source) directory(ctx context.Context, line string) error {
	op, _, name, err := s.announced(ctx, line)
	if err != nil {
		return err
	}
	if len(s.dirs) >= maxDepth {
		return fault.New(fault.BadInput, "scp: more than %d directories in each other", maxDepth)
	}
	var made *Operation // what is only read is known by its files
	if op.Action = actMkdir; s.cmd.Write {
		made = &op
	}
	a, err := s.answer(ctx, made, s.flush)
	if err == nil && a.words == "" {
		s.dirs = append(s.dirs, name)
	}
	return err
}

// file deals with the announcement of a file, and with its content.
func (s *source) file(ctx context.Context, line string) error {
	op, size, _, err := s.announced(ctx, line)
	if err != nil {
		return err
	}
	op.Action = actClose
	t := &transfer{op: op, left: size, content: content{held: &s.held}}
	s.mu.Lock()
	s.current = t
	s.mu.Unlock()
	a, err := s.answer(ctx, nil, s.flush)
	if err != nil {
		return err
	}
	if a.words != "" {
		s.arrived()
		op.Action = actOpen
		return s.report(ctx, &op, a)
	}
	for t.left > 0 {
		if s.pos == s.end {
			if err := s.fill(); err != nil {
				return err
			}
		}
		n := int(min(t.left, int64(s.end-s.pos)))
		t.content.add(t.content.next, s.buf[s.pos:s.pos+n])
		s.pos += n
		t.left -= int64(n)
	}
	return s.verdict(ctx, t)
}

// verdict reads what the source says of the content that it has sent, and waits
// for the sink's answer.
func (s *source) verdict(ctx context.Context, t *transfer) error {
	for s.pos == s.end {
		if err := s.fill(); err != nil {
			return err
		}
	}
	closed := t.closed()
	if s.buf[s.pos] == 0 {
		s.pos++
	} else {
		line, err := s.line()
		if err != nil {
			return err
		}
		s.pos += len(line) + 1
		_, words := answerIn([]byte(line + "\n"))
		closed.Status, closed.Error = statusFailure, bounded(words)
		closed.SHA256, closed.Sequential = "", false // what it could not read, it made up
	}
	s.arrived()
	return s.ask(ctx, &closed)
}

// arrived notes that no file is under way.
func (s *source) arrived() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = nil
}

// announced reads the announcement of a file or a directory, "C0644 5 name", and
// decides it.
func (s *source) announced(ctx context.Context, line string) (op Operation, size int64, name string, err error) {
	f := strings.SplitN(line[1:], " ", 3)
	if len(f) != 3 {
		return op, 0, "", fault.New(fault.BadInput, "scp: a file without mode, size and name")
	}
	mode, badMode := strconv.ParseUint(f[0], 8, 16)
	size, badSize := strconv.ParseInt(f[1], 10, 64)
	if badMode != nil || badSize != nil || size < 0 || len(f[0]) != 4 {
		return op, 0, "", fault.New(fault.BadInput, "scp: a file of no mode or size")
	}
	name = f[2]
	op = Operation{Action: actOpen, Write: s.cmd.Write, Attrs: attributes{flags: attrMode, mode: uint32(mode)}.String()}
	op.Path, op.Target = s.place(name)
	switch {
	case name == "", name == ".", name == "..", strings.ContainsAny(name, "/\x00"):
		op.Path, op.Target = s.cmd.Path, name
		return op, 0, "", s.refuse(ctx, op, fault.New(fault.Denied, "scp: the name %q leads elsewhere", name))
	case len(op.Path) > maxPath || len(op.Target) > maxPath:
		op.Path, op.Target = s.cmd.Path, ""
		return op, 0, "", s.refuse(ctx, op, fault.New(fault.BadInput, "a path of more than %d bytes", maxPath))
	}
	if err := s.cfg.Allow(s.cmd.Write); err != nil {
		return op, 0, "", s.refuse(ctx, op, err)
	}
	return op, size, name, nil
}

// place returns where name is, which is announced next. The sink alone knows
// whether the path it was told is a directory, so target is under or instead of
// path there.
func (s *source) place(name string) (at, target string) {
	names := append(slices.Clone(s.dirs), name)
	switch {
	case s.cmd.Write:
		return s.cmd.Path, path.Join(names...)
	case len(s.dirs) > 0:
		return path.Join(append([]string{path.Dir(s.cmd.Path)}, names...)...), ""
	}
	return s.cmd.Path, ""
}
