package srv

import (
	"context"
	"io"
	"net"
	"net/netip"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
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

// Account is the account of the operating system that something is done as.
type Account struct {
	Login  names.Login
	Create *services.CreateAccount // how it is made when there is none; nil: not at all
}

// SubsystemSFTP is the one subsystem there is (draft-ietf-secsh-filexfer-02).
const SubsystemSFTP = "sftp"

// Command is what an [Executor] starts.
type Command struct {
	Account

	Session  names.SessionID
	Role     names.RoleName // that grants it
	Kind     Kind
	Line     string        // what the login's shell runs, for KindExec; the name, for KindSubsystem
	Argv     []string      // runs without a shell instead of Line, when not empty
	Env      []sshwire.Env // from the client; accepted already
	Terminal *Terminal     // nil means pipes

	// Open opens a channel to the client, for its agent and its display. What it
	// returns is bounded in number and closed with the session.
	Open  Opener
	Agent bool                // the process gets the client's agent
	X11   *sshwire.X11Request // it gets the client's display; nil: none

	// Remote and Local are the ends of the connection, for SSH_CONNECTION; the
	// zero AddrPort means unknown.
	Remote, Local netip.AddrPort
}

// Opener opens a channel to a client (RFC 4254, section 5.1). The requests on it
// are refused by who made the Opener.
type Opener func(kind string, payload []byte) (ssh.Channel, error)

// Endpoint is where a forward leads, or listens: a host and a port, or the path
// of a Unix socket.
type Endpoint struct {
	Host string // as the client wrote it; for a listener "" means every address
	Port uint16 // for a listener 0 means any
	Path string // of a Unix socket; Host and Port mean nothing then
}

// Admit is asked about every address that a destination stands for, just before
// it is dialled; the zero Addr stands for one that is not known here. An error
// forbids it.
type Admit func(addr netip.Addr) error

// Executor starts what sessions run, and connects as they would. Its methods may
// be called at the same time; the end of ctx stops a look-up or a dial, not a
// process. The public text of an error tells the person why.
type Executor interface {
	// Check reports whether a can be used here and now, or be made.
	Check(ctx context.Context, a Account) error
	// Start starts c. On an error nothing runs.
	Start(ctx context.Context, c Command) (Process, error)
	// Dial connects to e as a process of a would, to the first address that admit
	// does not forbid. The connection may have a CloseWrite.
	Dial(ctx context.Context, a Account, e Endpoint, admit Admit) (net.Conn, error)
	// Listen listens on e as a process of a would. Connections have the address
	// they come from as their RemoteAddr, and the listener its own as its Addr.
	Listen(ctx context.Context, a Account, e Endpoint) (net.Listener, error)
}

// Pipes are the standard streams of a [Process].
type Pipes struct {
	Stdin  io.WriteCloser // closing it has no effect on a terminal
	Stdout io.Reader      // without a terminal an [io.Closer], for a client that reads no more
	Stderr io.Reader      // nil with a terminal
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
