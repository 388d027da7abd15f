package srv

import (
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/events"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/sshwire"
)

const (
	// bufferSize is the unit of copying. It makes one packet of x/crypto, which
	// splits writes of more than 32 KiB (RFC 4253, section 6.1), and with what SSH
	// puts around it two records of TLS, of 16 KiB each, and no rest.
	bufferSize = 32<<10 - 64
	// farewellTime is how long a client that does not read may keep the last
	// sentence from being sent.
	farewellTime = time.Second
	// statusTime is how long the end of all output waits for the exit status of
	// the process, since some clients stop reading at EOF. Few processes close
	// their output long before they end.
	statusTime = 100 * time.Millisecond
)

// run sees s through from its first byte to its session.end.
func (h *channel) run(s *session, p Process) {
	var o outcome
	defer func() { s.end(h.ctx, o) }()
	defer s.retire() // in case of a panic below
	defer s.stage.close()
	drained := h.pump(s, p.Pipes())
	o.exit = h.follow(p.Exited(), drained)
	if cause := context.Cause(h.ctx); cause != nil {
		o.reason, o.lock = reason(cause), services.LockOf(cause)
	}
	p.Close()
	s.retire()
	if o.reason != "" {
		h.farewell(o.reason)
	} else {
		_ = h.ch.CloseWrite() // these fail when the client is gone
	}
	_ = h.ch.Close()
}

// reason returns what the log and the person read of what ended a session.
func reason(cause error) string {
	if text := fault.Public(cause); fault.KindOf(cause) != fault.Internal {
		return text
	}
	return events.Display(cause.Error())
}

// spawn runs f in a goroutine that Session waits for. A panic ends the session,
// not the process.
func (h *channel) spawn(f func()) {
	h.wg.Go(func() {
		defer func() {
			if r := recover(); r != nil {
				h.client.m.cfg.Log.Error("panic in a session", zap.Any("panic", r), zap.Stack("stack"))
				h.cancel(fault.New(fault.Internal, "internal error"))
			}
		}()
		f()
	})
}

// pump carries between the channel and the streams of a process. The channel it
// returns is closed when all output is sent.
func (h *channel) pump(s *session, streams Pipes) <-chan struct{} {
	s.open(streams.Stdin, h.notice)
	in, out := h.files(s, streams)
	if in == nil {
		in, out = h.plain(s, streams)
	}
	h.spawn(func() {
		in()
		_ = streams.Stdin.Close() // a process that has ended needs no end of input
	})
	drained := make(chan struct{})
	var left atomic.Int32 // outputs that have not ended
	output := func(f func()) {
		left.Add(1)
		h.spawn(func() {
			defer func() {
				if left.Add(-1) == 0 {
					close(drained)
				}
			}()
			f()
		})
	}
	left.Add(1) // until all are started
	output(out)
	if streams.Stderr != nil {
		output(func() { _ = h.copy(s, h.ch.Stderr(), streams.Stderr, accessdv1.Stream_STREAM_STDERR) }) // fails when the client is gone
	}
	if left.Add(-1) == 0 {
		close(drained)
	}
	return drained
}

// plain returns what copies standard input and output as they are.
func (h *channel) plain(s *session, streams Pipes) (in, out func()) {
	in = func() {
		if h.copy(s, &s.stdin, h.ch, accessdv1.Stream_STREAM_STDIN) != nil {
			// Tell the client to send no more (OpenSSH PROTOCOL, section 2.1).
			h.send(sshwire.RequestEOW, nil)
		}
	}
	return in, func() { _ = h.copy(s, h.ch, streams.Stdout, accessdv1.Stream_STREAM_STDOUT) } // fails when the client is gone
}

// open lets others type into s and lets them be announced.
func (s *session) open(stdin io.Writer, notice func(line string)) {
	s.stdin.mu.Lock()
	s.stdin.to = stdin
	s.stdin.mu.Unlock()
	s.mu.Lock()
	s.notice = notice
	s.mu.Unlock()
}

// notice shows the person one line of words, when the client reads it. The
// session has not ended.
func (h *channel) notice(line string) {
	h.spawn(func() { _, _ = io.WriteString(h.ch.Stderr(), line) }) // fails when the client is gone
}

// shared is a writer for several; before it is opened it takes nothing.
type shared struct {
	mu sync.Mutex
	to io.Writer
}

// Write implements [io.Writer].
func (w *shared) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.to == nil {
		return 0, io.ErrClosedPipe
	}
	return w.to.Write(p)
}

// copy copies src to dst until src ends and returns an error when dst does not
// take it. A dst that does not read stops src: there is one buffer between them.
func (h *channel) copy(s *session, dst io.Writer, src io.Reader, stream accessdv1.Stream) error {
	buffer, ok := h.client.m.buffers.Get().(*[bufferSize]byte)
	if !ok {
		buffer = new([bufferSize]byte)
	}
	defer h.client.m.buffers.Put(buffer)
	for {
		n, err := src.Read(buffer[:])
		if n > 0 {
			if err := s.see(h.ctx, stream, buffer[:n]); err != nil {
				return err
			}
			if _, err := dst.Write(buffer[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return nil // EOF, or EIO from a terminal that nobody holds any more
		}
	}
}

// see counts, records and shows to others what is about to flow in a stream.
func (s *session) see(ctx context.Context, stream accessdv1.Stream, p []byte) error {
	if stream == accessdv1.Stream_STREAM_STDIN {
		s.count(&s.in, len(p))
		return s.input(ctx, p)
	}
	s.count(&s.out, len(p))
	if err := s.print(ctx, stream, p); err != nil {
		return err
	}
	s.stage.show(p, s.request.kind == KindShell)
	return nil
}

// follow waits until the process has ended and its output is sent, or the
// session is cut, and tells the client how the process ended.
func (h *channel) follow(exited <-chan Exit, drained <-chan struct{}) *Exit {
	var exit *Exit
	var eof <-chan time.Time
	for exited != nil || drained != nil {
		select {
		case <-h.ctx.Done():
			return exit
		case e := <-exited:
			exit, exited, eof = &e, nil, nil
			h.report(e)
		case <-drained:
			drained = nil
			if exited != nil {
				eof = time.After(statusTime)
			}
		case <-eof:
			eof = nil
			_ = h.ch.CloseWrite()
		}
	}
	return exit
}

// report sends how the process ended (RFC 4254, section 6.10).
func (h *channel) report(e Exit) {
	if e.Signal != "" {
		name := e.Signal
		if !slices.Contains(signals(), ssh.Signal(name)) {
			name = "SIG@openssh.com" // as sshd says for all of these
		}
		h.send(sshwire.RequestExitSignal, sshwire.ExitSignal{Name: name, CoreDumped: e.Core}.Marshal())
		return
	}
	h.send(sshwire.RequestExitStatus, sshwire.ExitStatus{Code: uint32(e.Code)}.Marshal())
}

func (h *channel) send(name string, payload []byte) {
	_, _ = h.ch.SendRequest(name, false, payload) // fails when the client is gone
}

// prefix begins what is ours to say, in the midst of what others print.
const prefix = "accessd: "

// farewell tells the person why the session ends early.
func (h *channel) farewell(reason string) {
	h.say(prefix + "session ended: " + reason)
	h.send(sshwire.RequestExitSignal, sshwire.ExitSignal{Name: string(ssh.SIGHUP), Message: reason}.Marshal())
}

// dismiss ends a channel whose request was refused, with words.
func (h *channel) dismiss(words string, code uint32) {
	h.say(words)
	h.send(sshwire.RequestExitStatus, sshwire.ExitStatus{Code: code}.Marshal())
	_ = h.ch.CloseWrite()
	_ = h.ch.Close()
}

// say writes one line to the person's stderr, unless the client does not read.
func (h *channel) say(text string) {
	end := "\n"
	if h.request.terminal != nil {
		end = "\r\n" // ssh has made the person's terminal raw
	}
	said := make(chan struct{})
	h.spawn(func() {
		defer close(said)
		_, _ = io.WriteString(h.ch.Stderr(), text+end)
	})
	t := time.NewTimer(farewellTime)
	defer t.Stop()
	select {
	case <-said:
	case <-t.C:
	}
}

// signals returns the names of RFC 4254, section 6.10.
func signals() []ssh.Signal {
	return []ssh.Signal{
		ssh.SIGABRT, ssh.SIGALRM, ssh.SIGFPE, ssh.SIGHUP, ssh.SIGILL, ssh.SIGINT, ssh.SIGKILL,
		ssh.SIGPIPE, ssh.SIGQUIT, ssh.SIGSEGV, ssh.SIGTERM, ssh.SIGUSR1, ssh.SIGUSR2,
	}
}
