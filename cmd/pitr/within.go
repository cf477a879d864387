package main

import (
	"context"
	"fmt"
	"time"
)

// hangGrace is how long what ends with its context may take to do so.
const hangGrace = time.Second

// A patient runs, one at a time, calls that may hang: a system call into a file system whose server is gone ends with no
// context, but a server waits for its hook. It is for the hooks alone, whose processes end soon, and with them whatever
// still hangs.
type patient struct {
	hanging chan error // of a call that was given up; nil: none
}

// within returns f's error, or, where f goes on after ctx has ended, one that wraps why that was. A call that was given up
// before is waited for first, so that never more than one hangs.
func (p *patient) within(ctx context.Context, f func() error) error {
	if p.hanging != nil {
		if _, ended := await(ctx, p.hanging); !ended {
			return hung(ctx)
		}
		p.hanging = nil
	}
	done := make(chan error, 1)
	go func() { done <- f() }()
	err, ended := await(ctx, done)
	if !ended {
		p.hanging = done
		return hung(ctx)
	}
	return err
}

// await waits for done, and for a little after ctx has ended.
func await(ctx context.Context, done <-chan error) (err error, ended bool) {
	select {
	case err := <-done:
		return err, true
	case <-ctx.Done():
	}
	grace := time.NewTimer(hangGrace)
	defer grace.Stop()
	select {
	case err := <-done:
		return err, true
	case <-grace.C:
		return nil, false
	}
}

func hung(ctx context.Context) error {
	return fmt.Errorf("a file system does not answer: %w", context.Cause(ctx))
}
