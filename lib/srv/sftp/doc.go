// Package sftp watches the transfer of files: it stands between a client and the
// server that does the work, decides each operation and reports it.
//
// A [Filter] speaks SFTP version 3 (draft-ietf-secsh-filexfer-02) and the
// extensions of OpenSSH that [Operation] has words for. It only parses: it opens
// no file, follows no path and knows no working directory; what a path leads to
// is the server's to find out, with the rights of the account it runs as. So the
// filter may run in a trusted process, and the server never should.
//
// Each request takes a right, reading or writing, either or both, for which
// [Config].Allow is asked. What is not allowed, not known or not well formed the
// filter answers itself, and the server never sees it. All else goes to the
// server byte for byte, but for the version in INIT, which is at most 3. The
// paths of a symlink are read in OpenSSH's order, where it leads first: all
// clients tried send it to a server that identifies as OpenSSH, and all servers
// take it. From the server's VERSION the extensions that are not known are taken out, and in its
// limits those that are larger than the filter's lowered; the rest of its
// answers, too, pass as they are and in its order.
//
// What changes something, a file that is opened, a file that is closed and a
// directory that was listed are reported as an [Operation] when the server has
// answered, and before the client has the answer. Reads, writes and looks are
// not; the report of a file's end has their sums, and the SHA-256 of the content
// when it went through in order. What the client asked for and nobody answered
// is reported at the end, so no operation is without a report; only its outcome
// may be unknown.
//
// Both sides are taken for hostile. The client may guess handles, reuse request
// ids, lie about lengths and never read; the server, which a login's own files
// may have replaced, may answer what nobody asked. Neither can make the filter
// pass on an operation that it did not decide, or hold more than a megabyte and
// the handles: packets are bounded by 256 KiB, paths by PATH_MAX, open handles by
// 1024, unanswered requests by 4096, and what waits in here by 512 KiB each for
// answers and for pieces of content out of order. What a server does with an
// operation, and whether its answer is true, is not known here.
//
// An [SCPFilter] does the same for the remote end of "scp -O", which
// [ParseSCP] tells from every other command.
//
// Only lib/srv uses the package.
package sftp
