// Package lockdir opens directories that one process has to itself: closed to
// other users, locked against a second opener, and such that no name in them leads
// out.
package lockdir
