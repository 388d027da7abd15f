package srv

import (
	"context"
	"io"
	"net/netip"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshwire"
)

// Kind is what a session runs.
type Kind string

// The kinds; the words are those of audit events.
const (
	KindShell     Kind = "shell"
	KindExec      Kind = "exec"
	KindSubsystem Kind = "subsystem"
)

// Terminal is the terminal a client asked for.
type Terminal struct {
	Term   string // value of TERM; the client's own words
	Window sshwire.WindowChange
	Modes  []sshwire.Mode
}

// Command is what an [Executor] starts.
type Command struct {
	Login    names.Login
	Kind     Kind
	Line     string        // what the login's shell runs, for KindExec
	Env      []sshwire.Env // from the client; accepted already
	Terminal *Terminal     // nil means pipes

	// Remote and Local are the ends of the connection, for SSH_CONNECTION; the
	// zero AddrPort means unknown.
	Remote, Local netip.AddrPort
}

// Executor starts what sessions run. Its methods may be called at the same
// time; the end of ctx stops a look-up, not a process.
type Executor interface {
	// Check reports whether login can be used here and now. The public text of
	// the error tells the person why not.
	Check(ctx context.Context, login names.Login) error
	// Start starts c. On an error nothing runs; its public text is for the
	// person.
	Start(ctx context.Context, c Command) (Process, error)
}

// Pipes are the standard streams of a [Process].
type Pipes struct {
	Stdin  io.WriteCloser // closing it has no effect on a terminal
	Stdout io.Reader
	Stderr io.Reader // nil with a terminal
}

// Process is something that an [Executor] started. One goroutine may use each
// of its streams, and all methods may be called at the same time.
type Process interface {
	Pipes() Pipes
	// Resize tells the terminal's new size; without a terminal it does nothing.
	Resize(w sshwire.WindowChange)
	// Signal sends the signal of that name (RFC 4254, section 6.9) to the
	// process group. An error says that the name is unknown or the process is
	// gone.
	Signal(name string) error
	// Exited yields once, when the process has ended; others that it left
	// behind may still hold its streams.
	Exited() <-chan Exit
	// Close closes the streams, and hangs up a process that has not ended. It
	// does not wait for it.
	Close()
}

// Exit is how a process ended.
type Exit struct {
	Code   int    // exit status, when Signal is ""
	Signal string // name without SIG of what killed it
	Core   bool   // it left a core dump
}
