// Package node is the SSH server of a node. It lets people in by their
// certificates, asks the rules before everything they do, and runs what is
// allowed. In a proxy it is also the server of nodes that run plain sshd: who
// connects notices no difference, only the executor is another
// ([Server.ServeHost]).
//
// A node never listens: [Server.Serve] is handed the connections that the
// tunnel's agent gets from the proxy, one at a time. A connection is an SSH
// connection of the person's own client, encrypted from there to here, so the
// proxy between the two is not asked for anything but the address of the
// client, which it attests.
//
// # Who gets in
//
// The SSH user name is a login of this machine. The only credential is a
// certificate of the user authority with that login among its principals
// ([sshca.Trust.CheckLogin]). A person is let in once the signature is verified,
// if the rules allow anything at all as that login on this node, and the login
// can be used (see [srv.Executor]); both are asked again for everything that
// follows. Each login is one user.login event, written before it has effect.
//
// Whoever shows no good certificate reads "Permission denied" and nothing else;
// the audit log has it as auth.rejected with the refusal's code. Who holds a
// good one and is refused reads why, in a banner (RFC 4252, section 5.4). Plain
// keys that a client offers on the way to its certificate are recorded only when
// the connection ends without a login.
//
// # What they can do
//
// Shells, commands and sftp on session channels; direct-tcpip and
// direct-streamlocal channels; tcpip-forward and streamlocal-forward requests and
// their cancels; agent and X11 forwarding: all of it as lib/srv decides and
// records. Channel and request types that are not named here are refused and
// counted by lib/srv/sshserver.
//
// A person who connects as [srv.ObserverUser] comes to watch or join another's
// session, and can do nothing else.
//
// # When the authority is away
//
// Decisions come from the node's copy of the policy and events go to its spool,
// so a node serves on. When the spool cannot be written nobody logs in and no
// session begins, and people read that.
package node
