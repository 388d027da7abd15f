// Package recording writes what a session's terminal showed to disk before the
// person sees it, keeps it through crashes, hands it to the store in parts, and
// reads it again.
//
// A recording is a sequence of frames (accessdv1.Frame): one start, then prints,
// resizes and gaps, then one end. Frames are protobuf messages, each behind its
// length as a varint. A run of them of at most 5 s or 2 MiB is a part, which is
// stored as zstd(frames) or, with recipients, as age(zstd(frames)): stock
// "age -d" and "zstd -d" open it. The parts of a recording are numbered from 1
// and chained by digest; the last of the chain, its root, goes into the session's
// session.end, so that the audit log vouches for the recording:
//
//	d(0) = 32 zero bytes
//	d(n) = SHA-256(d(n-1) || SHA-256(part n as stored))
//
// A [Recorder] has a spool, a directory of its own. Print returns nil once
// write(2) took the bytes, so that killing the process loses nothing which a
// client has seen; a part that was closed survives a loss of power, too. Parts
// leave the spool when the store has confirmed them. [Open], [Reader] and [Chain]
// are the way back; they take hostile input.
//
// DESIGN.md beside this file has the format byte by byte. The recorder needs Unix.
package recording
