// Package proxy is the SSH server behind the listener: it finds out who
// connects and connects them to what they may reach.
//
// # Who connects
//
// The SSH user name and the key say what a peer is. Nothing counts until its
// signature is verified.
//
//   - A person: a user's name and a certificate of the user authority; or, to
//     get one, the name and a plain key, followed by a sign-in
//     (keyboard-interactive, RFC 4256) that the authority conducts and this
//     package only carries. A connection that was signed in this way can run
//     "login" and nothing else.
//   - A visitor: a person whose user name is LOGIN@NODE (or with : or +). A
//     certificate with that login says who it is; or a key that is enrolled for
//     somebody, if the authority lets it do; or a sign-in that begins with the
//     question who it is, for clients that have no key, too.
//   - A member: a node's or proxy's name and a certificate of the node
//     authority, whose record still exists with that key. A node that has no
//     software of ours gets its certificate here, by a sign-in with a join token.
//   - A joiner: the name "+join" and any key. It reaches the authority's join
//     service and nothing else.
//
// Whoever the name belongs to, or nobody, a plain key is taken and the same
// questions follow, so that a stranger learns no name. Every refusal is one
// auth.rejected event; the peer reads "Permission denied". Only a holder of a
// certificate that was good once reads when it expired.
//
// Stock ssh proves its plain key before it offers the certificate beside it, so
// a proven plain key leaves both ways open: certificates are still taken, and
// only when none is good do the questions begin.
//
// # What they reach
//
// Channel and request types are an allow list, by kind of peer; everything else
// is refused and counted by lib/srv/sshserver.
//
//   - People open direct-tcpip ("ssh -J", "ssh -W") to registered nodes, and
//     sessions: a verb of the command line, with no more rights than their own,
//     or on a terminal a menu of nodes. There is no shell, no subsystem, no
//     environment and no forwarding of any other kind on the proxy itself.
//   - Visitors open what they would open on their node.
//   - Members open accessd-api and accessd-authority, and nodes ask for
//     tcpip-forward. A node without software of ours asks for that, and runs
//     "join" to renew its certificate; no service answers it.
//   - Joiners open accessd-authority.
//
// A destination is a node's name, its id, localhost with its gateway port, or
// labels that only one node has of those the person may reach. Names are looked
// up among the registered nodes and nowhere else: no DNS, no addresses, no Unix
// paths. The rules decide first and the decision is written to the audit log
// before the node hears of it. A node that is unknown and one that the person may
// not reach give the same answer, except to those who may list nodes anyway.
//
// # The way to a node
//
// What passes on a direct-tcpip channel to one of our nodes are raw bytes of an
// SSH connection that ends there. Of a node that runs plain sshd the proxy is the
// SSH server: the bytes end in [Forwarder].
//
// A visitor, and who picks a node from the menu, gets a passage: an SSH connection
// from here to that node's server, wherever it is, on which the person's channels
// and requests go on one by one and both ways. It is authenticated by a
// certificate that the authority issues for a key of this process, this person
// and this login, worth no more than what the person has shown. So the server of
// the node, and nothing here, decides and records what is done there. A node gets
// no channel through that the client has not asked for.
//
// When the policy changes, live connections are judged again: those of users
// and members that are gone end, and so do connections to nodes that are no
// longer allowed, a moment later: the node has the same news, and tells why.
//
// # Bounds
//
// Beside those of lib/srv/sshserver: connections, bridges and verbs of one user,
// the rate at which a user opens channels, joiners in all and from one source, key
// exchanges with the authority that a node or a joiner may start. A connection
// that was signed in lasts two minutes, a joiner's one; a joiner that does not
// join is an offence of its source.
//
// # The authority
//
// An accessd-authority channel holds one more SSH connection, which ends at the
// authority, so that a proxy between the two can neither read nor change it. In
// a process with the authority this package serves that connection too; in any
// other it passes the bytes on over the process's own link. The address a
// nested connection comes from is what the outer peer says when that is a
// proxy, and the outer connection's own address otherwise. Behind a proxy there
// are people, too: verbs run as who runs them, by a certificate of the person's
// for a key of the proxy's, so the authority need not take a proxy's word for it.
package proxy
