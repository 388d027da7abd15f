package proxy

import (
	"context"
	"io"
	"sync"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

type relayer struct{}

var relay relayer

func (relayer) Pipe(ctx context.Context, a, b io.ReadWriteCloser) (in, out int64) {
	defer context.AfterFunc(ctx, func() { a.Close(); b.Close() })()
	var wg sync.WaitGroup
	half := func(n *int64, dst, src io.ReadWriteCloser) {
		*n, _ = io.Copy(dst, src)
		if w, ok := dst.(interface{ CloseWrite() error }); ok {
			_ = w.CloseWrite()
		} else {
			_ = dst.Close()
		}
	}
	wg.Go(func() { half(&in, b, a) })
	wg.Go(func() { half(&out, a, b) })
	wg.Wait()
	return in, out
}

func memberOf(p any, id names.NodeID) (services.Member, bool) {
	m, ok := p.(interface {
		Member(names.NodeID) (services.Member, bool)
	})
	if !ok {
		return services.Member{}, false
	}
	return m.Member(id)
}
