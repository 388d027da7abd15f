// Package events records what happens in a cluster, so that nobody can later
// say it did not.
//
// An [Event] is one JSON object on one line, in one canonical form: known names
// in a known order, every character outside printable ASCII escaped. [Table]
// says which events exist, what each field means and how it is coded; Emit
// refuses everything else.
//
// The way of an event:
//
//	Emitter.Emit      to the local spool, fsynced by group commit, before the effect
//	Emitter.Run       from the spool, in order and at least once, to the authority
//	Log.Append        into the transparency log, exactly once by uid
//	Log.Query, Read   out again, by a derived index that can be deleted at any time
//	Verify            from the log's files and the public key alone
//
// [OpenSessions] remembers the sessions that began and have not ended, so that
// each session.end is recorded exactly once even after a crash.
//
// The log is a C2SP tlog-tiles tree (https://c2sp.org/tlog-tiles) with
// checkpoints signed as https://c2sp.org/tlog-checkpoint and
// https://c2sp.org/signed-note say; other people's tools read and check it. The
// forms on disk and the failure cases are in DESIGN.md beside this file.
//
// Events from members are input from a peer: [ParseEvent] takes the canonical
// form or nothing. What a caller may write under which server id is the
// authority's decision, not this package's.
//
// The emitter, the log and the ledger need a Unix file system; the event type,
// the table, [Display] and [Verify] work everywhere.
package events
