package backend

import "context"

// Compact makes the store forget what was before a revision.
func (b *Backend) Compact(ctx context.Context, revision int64) error {
	_, err := b.client.Compact(ctx, revision)
	return err
}
