// Package fault gives every error of accessd one of a few kinds and two texts:
// one for the peer and one for the log.
//
// The kind decides the exit code, the API code and whether a caller may retry.
// The public text may be shown to anyone; the cause is for the log only.
// Errors without a kind are internal, and a peer reads "internal error".
package fault

import (
	"errors"
	"fmt"
)

// Kind classifies an error. The numbers are stable on the wire: append, never
// reorder.
type Kind uint8

// The kinds.
const (
	Internal    Kind = iota // a broken invariant or an unclassified cause
	BadInput                // what was asked is malformed
	Denied                  // the caller may not do it
	NotFound                // there is no such thing, or the caller may not know
	Conflict                // it exists already, or changed meanwhile
	Unavailable             // a needed part is away; trying again may help
)

// String returns the kind's stable name.
func (k Kind) String() string {
	switch k {
	case Internal:
		return "internal"
	case BadInput:
		return "bad input"
	case Denied:
		return "denied"
	case NotFound:
		return "not found"
	case Conflict:
		return "conflict"
	case Unavailable:
		return "unavailable"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// ExitCode returns the process exit code for an error of kind k, as docs/cli.md
// lists them. A remote command's own code passes through unchanged; 255 means a
// connection of ours failed and is not returned here.
func (k Kind) ExitCode() int {
	switch k {
	case Internal:
		return 1
	case BadInput:
		return 2
	case Denied:
		return 3
	case NotFound:
		return 4
	case Conflict:
		return 5
	case Unavailable:
		return 6
	}
	return 1
}

// Error is an error with a kind and two texts.
type Error struct {
	Kind   Kind
	Public string // shown to the peer; no addresses, no file names, no cause
	Hint   string // optional next step for a person at a terminal
	Err    error  // cause, for the log only; may be nil

	shown error // cause whose text Public already holds
}

// Error returns the whole chain, for the log.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Public
	}
	return e.Public + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error {
	if e.Err == nil {
		return e.shown
	}
	return e.Err
}

// New returns an error of kind k whose public text is format with args, as
// [fmt.Errorf] makes it. An argument behind %w becomes part of the public text
// and of the chain; use [Wrap] to keep a cause from the peer.
func New(k Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: k, Public: err.Error(), shown: errors.Unwrap(err)}
}

// Wrap returns an error of kind k that shows public to the peer and keeps cause
// for the log.
func Wrap(k Kind, cause error, public string) *Error {
	return &Error{Kind: k, Public: public, Err: cause}
}

// WithHint returns a copy of e that tells a person at a terminal what to do
// next.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// KindOf returns the kind of the outermost classified error in err's chain, or
// [Internal].
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// Public returns what a peer may read of err. Every write of an error to a peer
// goes through it.
func Public(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Public
	}
	return "internal error"
}

// Hint returns the next step err suggests to a person, or "".
func Hint(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Hint
	}
	return ""
}
