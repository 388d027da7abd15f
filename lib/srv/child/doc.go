// Package child is the small process in which a node does for a person what takes
// the person's own rights: it serves files, and makes, dials and removes Unix
// sockets.
//
// The node starts its own program again, under the name [Name], as the login: the
// kernel changes user and groups before the program begins, so nothing here ever
// runs with the node's rights, and nothing a person says is parsed with them.
// Whoever starts it by hand gets what that account can do anyway.
//
// A socket that is dialled or listened on goes back to the node as an open file
// (SCM_RIGHTS, unix(7)) on the socket that the child finds as descriptor 3; then
// the child is done. Files are served on standard input and output, for as long
// as the session lasts.
//
// Measured on two cores: 14 ms from its start to the first answer of a file server
// and 39 MiB resident, of which 6 MiB are its own and the rest is the program,
// which all children share; 1 GiB in either direction adds less than 1 MiB.
//
// Whoever embeds a node calls [Run] at the very beginning of main.
package child

// Name is the name under which the program is this child.
const Name = "accessd-child"

// The jobs.
const (
	SFTP   = "sftp"   // serves SFTP on standard input and output
	Dial   = "dial"   // PATH: connects to a socket
	Listen = "listen" // PATH: makes a socket
	Agent  = "agent"  // makes a socket for an agent in a directory of its own
	Remove = "remove" // PATH: removes a socket, and its directory if Agent made that
)
