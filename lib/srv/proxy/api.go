package proxy

import (
	"context"
	"errors"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/relay"
	"github.com/accessd/accessd/lib/srv/sshserver"
)

// errNoVisitors refuses the services to people who are here for a node, and to
// those who have signed in only to get a certificate.
var errNoVisitors = errors.New("the services are for people with a certificate, by their own names")

// servePersonAPI serves an accessd-api channel of a person's connection: the
// authority's services, which ask the person's roles about every call. It counts
// as a verb of the command line.
func (s *Server) servePersonAPI(c *sshserver.Conn, nc ssh.NewChannel, who *person) {
	if who.visitor != nil || who.cert == "" {
		refuse(nc, errNoVisitors)
		return
	}
	if !s.cfg.Now().Before(c.Identity.ValidBefore) {
		refuse(nc, fault.New(fault.Denied, "your certificate expired at %s", moment(c.Identity.ValidBefore)))
		return
	}
	if err := s.live.begin(who); err != nil {
		refuse(nc, err)
		return
	}
	defer s.live.finish(who)
	if s.cfg.Authority != nil {
		s.serveAPI(c, nc, s.cfg.Authority)
		return
	}
	s.relayAPI(c, nc, who)
}

// relayAPI carries calls to an authority elsewhere, over a connection that is the
// person's.
func (s *Server) relayAPI(c *sshserver.Conn, nc ssh.NewChannel, who *person) {
	ctx, stop := context.WithCancel(c.Context())
	defer stop()
	far, err := s.dialAuthority(ctx, c, who, factor{})
	if err != nil {
		refuse(nc, err)
		return
	}
	defer far.Close()
	ch, done, err := accept(nc)
	if err != nil {
		return
	}
	defer done()
	defer context.AfterFunc(s.live.quiet, func() { far.Close() })()
	relay.Pipe(ctx, ch, far)
}
