package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"pitr/internal/config"
	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/recovery"
)

// The exit statuses of the command-line contract. `wal fetch` has its own.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitConfig  = 3
	exitTarget  = 4 // target not reachable
	exitDamaged = 5 // verification failed
	exitLeader  = 6 // no leader or no quorum
	exitRefused = 7 // refused, because it would lose data
)

// usageError is a command called the wrong way.
type usageError struct {
	command string
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef makes the error of a command that finds by itself that it was called the wrong way.
func usagef(c *cobra.Command, format string, args ...any) error {
	return &usageError{command: c.CommandPath(), err: fmt.Errorf(format, args...)}
}

// status maps an error to the exit status: the one place that knows both.
func status(err error) int {
	switch {
	case err == nil:
		return exitDone
	case as[*usageError](err):
		return exitUsage
	case as[*config.Error](err):
		return exitConfig
	case errors.Is(err, recovery.ErrUnreachable):
		return exitTarget
	case as[*verificationError](err), errors.Is(err, repo.ErrDamaged):
		return exitDamaged
	case errors.Is(err, recovery.ErrRefused):
		return exitRefused
	}
	return exitFailed
}

func as[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// report writes err for people, with what to do about it, and returns the exit status.
func report(ctx context.Context, w io.Writer, err error) int {
	switch {
	case err == nil:
	case as[*config.Error](err):
		e, _ := errors.AsType[*config.Error](err)
		for _, p := range e.Problems {
			complain(w, "pitr: configuration: "+e.Describe(p), p.Hint)
		}
	case as[*usageError](err):
		e, _ := errors.AsType[*usageError](err)
		complain(w, e.command+": "+e.Error(), fmt.Sprintf("`%s --help` shows how it is called", e.command))
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		complain(w, fmt.Sprintf("pitr: interrupted: %v", context.Cause(ctx)), hint.Of(err))
	default:
		complain(w, "pitr: "+err.Error(), hint.Of(err))
	}
	return status(err)
}

// complain writes one message. If standard error is gone there is nobody left to tell.
func complain(w io.Writer, what, advice string) {
	text := printable(what) + "\n"
	if advice != "" {
		text += "HINT: " + printable(advice) + "\n"
	}
	_, _ = io.WriteString(w, text)
}

// printable keeps names of databases, files and objects, which may hold anything, from steering the terminal or from
// looking like a message of their own: further lines are indented, other control characters are written out.
func printable(s string) string {
	var b strings.Builder
	for _, r := range strings.TrimRight(s, "\n") {
		switch {
		case r == '\n':
			b.WriteString("\n  ")
		case r == '\t' || unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
