package proxy

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/sshca"
)

// silentSignOn is an authority that stands still: it takes questions and answers
// none.
type silentSignOn struct {
	accessdv1connect.SignOnServiceClient
	asked chan string // for whom
}

func (s silentSignOn) Resume(ctx context.Context, req *connect.Request[accessdv1.ResumeRequest]) (*connect.Response[accessdv1.ResumeResponse], error) {
	s.asked <- req.Msg.GetUser()
	<-ctx.Done()
	return nil, connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
}

// TestSilentAuthorityKeepsNobodyOut: a client that shows its key before its
// certificate, as OpenSSH's does, gets in while the authority stands still.
func TestSilentAuthorityKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	silent := silentSignOn{asked: make(chan string, 1)}
	w := newWorld(t, func(w *world) { w.cfg.People.SignOn = silent })
	_, plain := sshca.Generate()
	began := time.Now()
	w.must("alice", ssh.PublicKeys(plain, w.person("alice")))
	if who := <-silent.asked; who != "alice" {
		t.Errorf("the authority was asked about %q", who)
	}
	if took := time.Since(began); took < resumeTime {
		t.Errorf("signed in after %v, want it to wait for an answer for %v", took, resumeTime)
	}
}
