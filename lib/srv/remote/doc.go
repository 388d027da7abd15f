// Package remote runs sessions on a machine that has nothing but a plain sshd,
// as an SSH client of that sshd. A proxy uses it where it is itself the SSH
// server of a person's connection (lib/srv), which decides, limits and records
// as it does on a node of accessd.
//
// # Logging in
//
// Every session has a connection of its own to the sshd, opened with a
// certificate of the sshd authority that the proxy asks for there and then: it is
// for a key that never leaves memory, names one login and one session, and ends
// a few minutes after the login it is for. Nobody else has a certificate the sshd
// would take, so nobody walks around the proxy. What belongs to no session, the
// ports that a client forwards, shares one more connection.
//
// The sshd must show a host certificate of the cluster for the node's id or
// name, or a host key that is on record for the node. A node that dials home
// and has none on record gets the first one it shows there pinned: whoever
// answers there has proven the node's own key to the proxy. A node with an
// address has its key on record from its registration. Anything else is refused,
// recorded as node.hostkey, and nothing is asked of the authority.
//
// # What the sshd can do
//
// The sshd is not trusted: it may be somebody else's by now. It can lie about
// what it runs, and nothing more. What it opens is refused but for channels to
// the agent and the display of a client that was granted them for this session,
// and for connections to ports that it was asked to listen on. What it makes the
// proxy hold is bounded (lib/srv/sshserver), its malformed messages are ignored,
// and one that says nothing any more is found within 45 seconds. Nothing is left
// of it when its session ends.
package remote
