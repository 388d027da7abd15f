package auth

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/services"
)

// tokenBeat is how often a stream that was opened with a token asks whether that
// is good still, though nobody says otherwise: time ends tokens, too.
const tokenBeat = 2 * time.Second

// tokenStreams are the streams that were opened with API tokens: which they wait for
// to go.
type tokenStreams struct {
	mu      sync.Mutex
	waiting map[string]*tokenWait // by the token's id
}

// tokenWait is what the streams of one token share.
type tokenWait struct {
	gone    chan struct{}
	streams int
}

func newTokenStreams() *tokenStreams { return &tokenStreams{waiting: map[string]*tokenWait{}} }

// follow returns what is closed when the token may have gone, and what is called when
// nobody waits for that any more.
func (t *tokenStreams) follow(id string) (gone <-chan struct{}, leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.waiting[id]
	if w == nil {
		w = &tokenWait{gone: make(chan struct{})}
		t.waiting[id] = w
	}
	w.streams++
	return w.gone, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if w.streams--; w.streams == 0 && t.waiting[id] == w {
			delete(t.waiting, id)
		}
	}
}

// end tells the streams of a token that it has gone.
func (t *tokenStreams) end(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w := t.waiting[id]; w != nil {
		close(w.gone)
		delete(t.waiting, id)
	}
}

// endAll has every stream ask about its token.
func (t *tokenStreams) endAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, w := range t.waiting {
		close(w.gone)
		delete(t.waiting, id)
	}
}

// followTokens tells streams when their tokens go, until ctx ends.
func (a *Authority) followTokens(ctx context.Context) error {
	for {
		err := a.cfg.Store.WatchAPITokens(ctx, a.tokens.endAll, a.tokens.end)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(tokenBeat):
			a.cfg.Log.Warn("API tokens are watched again", zap.Error(err))
		}
	}
}

// whileGood runs a stream, and ends it when the caller's token is not good any
// more or does not open it any more. A connection of SSH ends instead.
func (g gatekeeper) whileGood(ctx context.Context, conn connect.StreamingHandlerConn, next connect.StreamingHandlerFunc) error {
	t, held := tokenOf(ctx)
	if !held {
		return next(ctx, conn)
	}
	ctx, end := context.WithCancelCause(ctx)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		end(g.outlive(ctx, t, conn.Spec().Procedure))
	}()
	err := next(ctx, conn)
	end(nil)
	<-watching
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return err
}

// outlive returns why t does not open the stream any more, or nil when ctx ends.
// While the store is away nobody can have removed t; the rest is asked all the same.
func (g gatekeeper) outlive(ctx context.Context, t services.APIToken, procedure string) error {
	b, _ := rpc.BearerFrom(ctx)
	peer, _ := rpc.PeerFrom(ctx)
	beat := time.NewTicker(g.tokenBeat)
	defer beat.Stop()
	for ctx.Err() == nil {
		changed := g.cfg.Cache.Changed() // these are taken first, so that nothing is missed
		gone, leave := g.tokens.follow(t.ID)
		_, id, err := g.holder(ctx, b)
		if fault.Is(err, fault.Unavailable) && g.cfg.Now().Before(t.Expires) {
			id, err = peer.Identity, nil
		}
		if err == nil {
			if d, _ := g.ask(id, g.access[procedure]); !d.Allow {
				err = g.refuse(ctx, peer, procedure, d.Reason)
			}
		}
		if err != nil {
			leave()
			if ctx.Err() != nil {
				break
			}
			return err
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-gone:
		case <-beat.C:
		}
		leave()
	}
	return nil
}
