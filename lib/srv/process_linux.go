package srv

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/sshwire"
)

// process is a process of a [Local]. It leads a session and a process group of
// its own.
type process struct {
	local   *Local
	proc    *os.Process
	pidfd   int // -1 where the kernel has none (before Linux 5.4)
	streams *streams
	exited  chan Exit
	back    *back // what listens for it on the client's behalf

	mu   sync.Mutex
	gone bool // reaped: its number may be somebody else's now
}

func (p *process) Pipes() Pipes { return p.streams.ours }

func (p *process) Exited() <-chan Exit { return p.exited }

func (p *process) Resize(w sshwire.WindowChange) {
	if err := p.streams.resize(w); err != nil && !errors.Is(err, os.ErrClosed) {
		p.local.cfg.Log.Debug("cannot set a terminal's size", zap.Error(err))
	}
}

// Signal sends to the process group, as sshd does.
func (p *process) Signal(name string) error {
	if !slices.Contains(signals(), ssh.Signal(name)) {
		return fault.New(fault.BadInput, "no signal %q", name)
	}
	return p.signal(unix.SignalNum("SIG" + name))
}

func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return os.ErrProcessDone
	}
	return unix.Kill(-p.proc.Pid, sig)
}

// hangupTime is how long a process without a terminal may still write once it was
// hung up. With nobody to read it would die of the next word, such as a shell's
// about a child that was hung up, too, and not get to what it does on a hangup.
const hangupTime = time.Second

// Close hangs up the process. With a terminal the kernel does it when the master
// closes; without one, or where that reaches nobody, the process group gets the
// signal from here. One that is stopped must go on to see it.
func (p *process) Close() {
	defer p.back.close() // after the signal, which waits for nothing
	if p.streams.master != nil {
		p.streams.closeOurs()
	}
	if p.signal(unix.SIGHUP) != nil {
		p.streams.closeOurs()
		return
	}
	_ = p.signal(unix.SIGCONT)       // fails when it has ended meanwhile
	_ = p.streams.ours.Stdin.Close() // what was written is in the pipe already
	time.AfterFunc(hangupTime, p.streams.closeOurs)
	if after := p.local.cfg.KillAfter; after > 0 {
		time.AfterFunc(after, func() { _ = p.signal(unix.SIGKILL) }) // fails when it has ended meanwhile
	}
}

// wait reaps the process. While it has not, nobody else has its number, so that
// a signal reaches the right group.
func (p *process) wait() {
	defer p.local.spawner.release()
	p.awaitExit()
	p.back.close()
	p.mu.Lock()
	state, err := p.proc.Wait()
	p.gone = true
	p.mu.Unlock()
	if err != nil {
		p.local.cfg.Log.Error("cannot wait for a process", zap.Error(err))
		p.exited <- Exit{Code: exitRefused}
		return
	}
	p.exited <- exitOf(state)
}

// awaitExit returns when the process has ended and is not reaped yet. With a
// pidfd it takes no thread.
func (p *process) awaitExit() {
	if p.pidfd >= 0 {
		err := awaitReadable(p.pidfd)
		if err == nil {
			return
		}
		p.local.cfg.Log.Debug("cannot poll a process; waiting in a thread", zap.Error(err))
	}
	for {
		err := unix.Waitid(unix.P_PID, p.proc.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// awaitReadable waits with the runtime's poller until fd is readable, and closes
// it.
func awaitReadable(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil { // tells os.NewFile to poll it
		return errors.Join(err, unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
}

func exitOf(state *os.ProcessState) Exit {
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		return Exit{Code: state.ExitCode()}
	}
	name := strings.TrimPrefix(unix.SignalName(status.Signal()), "SIG")
	return Exit{Signal: name, Core: status.CoreDump()}
}
