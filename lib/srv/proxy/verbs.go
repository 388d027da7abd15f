package proxy

import (
	"context"
	"io"
	"net/http"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// VerbCall is one line of the command line that a person runs at the proxy, with
// all that it may use. Nothing of the proxy's machine is among it.
type VerbCall struct {
	Args []string // without a program's name

	In       io.Reader
	Out, Err io.Writer // which give lines the ends that the person's terminal wants
	Terminal bool      // whether there is one

	User  names.UserName
	API   *http.Client       // calls the authority as the person
	Nodes func() []Reachable // the nodes that the person may reach, in the order of their names

	// Attach shows the person the session sid, whose output goes to the
	// terminal; with join, the person's input goes to the session. It returns
	// when either has ended.
	Attach func(ctx context.Context, sid names.SessionID, join bool) error
}

// Reachable is a node that a person may reach.
type Reachable struct {
	services.Node
	Online bool
	Logins []names.Login // that the person may use there
}
