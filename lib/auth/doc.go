// Package auth is the authority of a cluster: the one part that holds the
// private keys of its certificate authorities, and the only one that signs.
//
// It answers the services of api/accessd/v1 that are not between two members:
// the administrative ones (users, roles, tokens, nodes, sessions, audit, CAs),
// [accessdv1connect.JoinServiceHandler] for whoever holds a join token,
// [accessdv1connect.MemberServiceHandler] for nodes and proxies, and
// [accessdv1connect.LoginServiceHandler] with
// [accessdv1connect.GrantServiceHandler] for proxies that sign people in, and
// [accessdv1connect.DelegationServiceHandler] for proxies that go on to a node as
// a person, [accessdv1connect.RecordingServiceHandler] for whoever records a
// session, and [accessdv1connect.ArchiveServiceHandler] for who may look at what
// was recorded. All of them are reached through [Authority.Handler], also from within the
// process; who may call what is one table (access.go), and what is not in it is
// refused.
//
// # Order of start
//
// [Init] makes or loads what the cluster is: its name, its four certificate
// authorities, this authority's audit key, the built-in roles. It may run in
// several processes at once on one store. Its [Keys] open the audit log and
// make an [Authority] with [New]; [Authority.Run] then does the work that
// nobody calls for.
//
// # What is trusted
//
// The caller of the handler says who the peer is (package rpc); it has proven
// it by signature, or by the credentials of a socket. Everything else in a
// request is a claim and is checked here: a member acts under its own id only,
// with the key on record, and writes audit events about itself only. A proxy's
// word is taken for the address of a client and for the key or the certificate a
// client proved, and for what happens on plain sshd nodes, where it runs the
// sessions.
//
// # Rules kept throughout
//
// Every change is recorded before it is made: when its event cannot be written
// the change is refused as unavailable. A change that fails after its event
// gets a second event that says so. Private keys and TOTP secrets are sealed at
// rest; invites and token secrets are stored as hashes, passwords as argon2id.
// Certificates never say more than the record they are made from, and renewing
// one never adds to it.
//
// # Recordings
//
// A recording belongs to the member that uploads its first part, and grows only:
// what is durable in the store is noted in the state, and a part that is noted is
// never replaced. The store is not trusted: a part is given out when it has the
// digest that was noted. A removal first marks the recording, so that of several
// authorities one removes it, then writes its event, then removes lines, parts and
// notes; one that was interrupted is gone on with after ten minutes. The index for
// searching holds the lines of recordings that are not sealed, some 4 MiB of each,
// and of lines that repeat the first; it is derived.
//
// # Limits
//
// Sign-ins under way, grants and the counters of failed sign-ins are in the
// memory of one authority. A sign-in cannot move to another authority midway,
// and two authorities count failures apart.
package auth
