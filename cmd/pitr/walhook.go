package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"pitr/archive"
	"pitr/internal/agent/client"
)

// The server starts `wal push` and `wal fetch` for each file and waits for them, and it takes the exit status of the
// latter for what it means to the server. Both are therefore run without the machinery of the other commands: sooner,
// and with no way around the statuses of this file.

// runHook executes `wal push` and `wal fetch`. It reports false for any other command line, calls for help included.
func runHook(args []string, errOut io.Writer) (code int, ok bool) {
	h, ok := parseHook(args)
	if !ok {
		return 0, false
	}
	if h.fetch {
		// SIGTERM is to end the process as SIGTERM does; a crash by a signal, not by an exit status that means absence.
		signal.Reset(syscall.SIGTERM, syscall.SIGINT)
		debug.SetTraceback("crash")
		// An immediate shutdown sends SIGQUIT, to which Go would answer with pages in the server's log.
		quit := make(chan os.Signal, 1)
		signal.Notify(quit, syscall.SIGQUIT)
		go func() {
			<-quit
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}()
	}
	ctx, stop := context.Background(), func() {}
	if !h.fetch {
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	}
	defer stop()
	err := h.run(ctx, errOut)
	if h.fetch {
		return reportFetch(ctx, errOut, err), true
	}
	return report(ctx, errOut, err), true
}

// hook is the command line of one.
type hook struct {
	fetch      bool
	configFile string
	quiet      bool
	args       []string
	bad        error
}

// parseHook takes a command line apart if it is that of a hook.
func parseHook(args []string) (h hook, ok bool) {
	var words []string
	for i := 0; i < len(args); i++ {
		name, value, inline := strings.Cut(args[i], "=")
		switch {
		case !strings.HasPrefix(name, "-") || name == "-":
			words = append(words, args[i])
		case name == "--help" || name == "-h":
			return h, false
		case name == "--quiet" || name == "-q":
			h.quiet = true
		case name == "--config" && inline:
			h.configFile = value
		case name == "--config" && i+1 < len(args):
			i++
			h.configFile = args[i]
		case name == "--":
			words = append(words, args[i+1:]...)
			i = len(args)
		default:
			h.bad = errors.Join(h.bad, fmt.Errorf("unknown flag: %s", args[i]))
		}
	}
	if len(words) < 2 || words[0] != "wal" || words[1] != "push" && words[1] != "fetch" {
		return h, false
	}
	h.fetch, h.args = words[1] == "fetch", words[2:]
	if want := h.want(); h.bad == nil && len(h.args) != want {
		h.bad = fmt.Errorf("accepts %d arg(s), received %d", want, len(h.args))
	}
	return h, true
}

func (h *hook) want() int {
	if h.fetch {
		return 2
	}
	return 1
}

func (h *hook) run(ctx context.Context, errOut io.Writer) error {
	if h.bad != nil {
		command := "pitr wal push"
		if h.fetch {
			command = "pitr wal fetch"
		}
		return &usageError{command: command, err: h.bad}
	}
	a := &app{err: errOut, configFile: h.configFile, quiet: h.quiet}
	c, err := a.config()
	if err != nil {
		return err
	}
	if h.fetch {
		return walFetch(ctx, c, h.args[0], h.args[1], a.log())
	}
	return walPush(ctx, c, h.args[0], a.log())
}

// reportFetch is report with the statuses of `wal fetch`. That a file is not there is an answer like any other, which
// a recovery gets many times: it is not worth a line in the server's log.
func reportFetch(ctx context.Context, errOut io.Writer, err error) int {
	if err == nil {
		return fetchDone
	}
	e, ok := errors.AsType[*fetchError](err)
	if ok && e.status == fetchAbsent && (errors.Is(err, archive.ErrNotArchived) || errors.Is(err, client.ErrAbsent)) {
		return fetchAbsent
	}
	report(ctx, errOut, err)
	if ok {
		return e.status
	}
	return fetchFailed
}
