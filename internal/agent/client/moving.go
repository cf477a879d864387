package client

import (
	"context"
	"time"
)

// WhileMoving returns a context that ends, with the cause given, when nothing has moved: not for first in the beginning, or
// not for later since moved was called last. So what makes progress may take as long as it takes, and what hangs is given
// up. stop frees it.
func WhileMoving(ctx context.Context, first, later time.Duration, cause error) (_ context.Context, moved, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	t := time.AfterFunc(first, func() { cancel(cause) })
	return ctx, func() {
			if ctx.Err() == nil {
				t.Reset(later)
			}
		}, func() {
			cancel(nil)
			t.Stop()
		}
}
