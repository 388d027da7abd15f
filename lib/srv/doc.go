// Package srv runs sessions: what a person does on one SSH session channel.
//
// # Life of a session
//
// A [Manager] has the sessions of one server; a [Client] is one authenticated
// connection to it. [Client.Session] serves a session channel (RFC 4254,
// section 6) from its first request to its end. A session is
//
//   - open once the rules allowed it and its session.start is durable. Nothing
//     runs before: an event that cannot be written refuses the session;
//   - running once the [Executor] has started its process;
//   - closing from the moment its process has ended and all output is sent, or
//     its context was cancelled;
//   - ended once its session.end is durable, exactly once, and also after kill
//     -9: the next start ends what the ledger holds ([Manager.Recover]).
//
// What ends a session early is the cause of its context: the certificate's or
// the role's time is over, it was idle, somebody killed it, the policy no
// longer allows it, the server stops, or the client is gone. The cause is one
// sentence: the person reads it on stderr before the channel closes, and the
// audit log has it as the reason.
//
// # What a refusal looks like
//
// A refused shell, command or subsystem is answered with success, the reason on
// stderr and exit status 255. Tried with OpenSSH 9.2: after a failed request the
// client says only "exec request failed on channel 0", a refused channel hides
// which request was meant, and with a terminal what was sent before the answer
// is lost. A refused forward has its reason in the answer to the channel open.
// Requests that have no room for one (agent, X11, listening) fail, and are
// recorded.
//
// # Files
//
// The sftp subsystem, and a command that is plainly the remote end of "scp -O",
// carry files: they take the actions sftp:read and sftp:write instead of exec.
// What passes is read (lib/srv/sftp), so that each operation is decided on and
// recorded with its path and outcome, and each transfer with its size and
// SHA-256. Whoever may copy but not execute gets scp without a shell.
//
// # Forwards, agents, displays
//
// A forward is decided by its destination: first whether there is any that is
// allowed, then, for each address that a name stands for where it is dialled,
// that one. The decision and the opening are durable before the dial, the end
// with its byte counts afterwards. The node's own sshd knows nothing of the
// rules, so to go there takes a rule that names it. What listens for a client
// belongs to its connection, which alone can cancel it. The client's agent and
// display are there for the session they were asked for, and end with it.
//
// # Others in a session
//
// An [Observer] sees a session's output, or types into it, where the rules allow
// (the action join; to watch, reading recordings will do). Everybody in the
// session is told. Whoever cannot keep up is let go: a session waits for nobody
// but its own person.
//
// # The end of a process
//
// The order is OpenSSH's. The exit status goes out when the process ends, even
// while others that it left behind still hold its output; the channel closes
// when all output is read. A client's EOF closes the process's standard input
// and nothing else. A session that is cut gets SIGHUP for its process group, no
// exit status but an exit-signal, and is closed at once; a process that ignores
// the signal lives on, as it does under sshd.
//
// # Local processes
//
// [Local] runs processes on this machine, each as an account of the operating
// system. It is for Linux. It follows Debian's sshd without PAM: accounts come
// from /etc/passwd, /etc/group and, where /etc/nsswitch.conf names other
// sources, from getent(1), afresh for each session. An account is refused when
// it has expired (shadow(5)) and when its shell is missing or not executable.
// While /etc/nologin or /run/nologin exists everybody but root reads it instead
// of a session, which ends with 254. A locked password ("!" in shadow) does not
// refuse: it locks the password, as usermod(8) says, and most cloud images have
// no other kind of account; Debian's own sshd takes keys for them, too. A login
// shell with a terminal begins with /etc/motd unless there is a ~/.hushlogin. Not
// done: PAM sessions and limits, utmp and lastlog, cgroups, ~/.ssh/rc,
// ~/.ssh/environment. The umask is the server's own.
//
// Where the role says how ([services.CreateAccount]), a login that has no account
// gets one for its first session, from useradd(8), with a locked password and a
// home of its own, and a file in /etc/sudoers.d if the role has lines for sudo.
// What the latest session's role says is what the account has. When nothing runs
// or listens for it any more it is removed, unless it is kept: all processes of
// its number are killed, then userdel(8) takes it and its home. The list of what
// was made is on disk before anything is made, so that [Local.Recover] removes
// what a crash has left; a mark in the account's comment tells it from others of
// that name, which are used and never changed. Groups that were made stay, as do
// files outside the home; a later account may get the same number, and with it
// those files. A node that makes accounts must not share process numbers with
// another system: those with the same user number there would be killed, too.
//
// Files are served by a child of this program that runs as the login
// (lib/srv/child). It follows OpenSSH's sftp-server request by request; a test
// holds the two against each other. Unix sockets are dialled, made and removed by
// such a child, too. The end of a session waits for no answer of its client: a
// channel to its agent or display that it has not confirmed by then is closed when
// it comes.
//
// A server that does not run as root serves the account it runs as, and no
// other.
//
// The package trusts its caller for the identity of a client and for its
// address, and trusts nothing that a client sends.
package srv
