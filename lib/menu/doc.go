// Package menu is what a person at a terminal gets from "ssh PERSON@PROXY": a
// list of nodes to narrow by typing and pick from, then the logins there.
//
// It speaks to the raw channel of an SSH session, not to a device: nothing here
// opens, queries or configures a terminal of this machine, handles a signal, or
// asks the person's terminal a question whose answer would come back as typing.
// A [Terminal] owns the channel's input for as long as the channel lives and
// hands every byte to exactly one reader: to a menu, key by key, or to whoever
// has the screen between two menus. What is typed ahead is never lost.
//
// Names, labels and notices come from peers and are not trusted: what has no
// glyph is shown as an escape. Sizes come from the client and are bounded.
//
// The full-screen form uses bubbletea to draw: cursor movement, attributes and
// the alternate screen, no colour. The plain form, for screen readers and
// terminals that cannot move a cursor, is lines and questions.
package menu
