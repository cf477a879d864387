package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pitr/archive"
	"pitr/internal/agent/client"
	"pitr/internal/config"
	"pitr/internal/postgres"
	"pitr/internal/wal"
	"pitr/recovery"
)

// The exit statuses of `wal fetch`. PostgreSQL takes any from 1 to 125 for "there is no such file" and may end recovery
// there, so that only what is proven absent may end so (src/backend/access/transam/xlogarchive.c).
const (
	fetchDone   = 0
	fetchAbsent = 1
	fetchFailed = 200
)

const (
	// standbyPatience is how long a fetch that fails, or of which nothing comes, keeps a standby from streaming.
	standbyPatience = 5 * time.Second
	fetchPause      = 500 * time.Millisecond
)

func newWALFetch(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "fetch NAME PATH",
		Short: "Bring an archived file back: restore_command = 'pitr wal fetch %f %p'",
		Long: "Bring an archived file back: restore_command = 'pitr wal fetch %f %p'. The exit status is 0 if it was fetched, 1 if it is\n" +
			"proven that there is no such file, 200 otherwise, so that the server stops instead of ending recovery early.",
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := a.config()
			if err != nil {
				return &fetchError{fetchFailed, err}
			}
			return walFetch(c.Context(), cfg, args[0], args[1], a.log())
		},
	}
}

// fetchError is how a fetch ends that gave no file: its exit status, and why.
type fetchError struct {
	status int
	err    error
}

func (e *fetchError) Error() string { return e.err.Error() }
func (e *fetchError) Unwrap() error { return e.err }

// walFetch brings the archived file called name to path. Its error is a *fetchError.
func walFetch(ctx context.Context, c *config.Config, name, path string, log *slog.Logger) error {
	dir, err := recoveringDir(c)
	if err != nil {
		return &fetchError{fetchFailed, err}
	}
	f := &walFetcher{c: c, name: name, dir: dir, log: log}
	if f.path, err = filepath.Abs(path); err != nil {
		return &fetchError{fetchFailed, err}
	}
	if err := f.fetch(ctx); err != nil {
		if e, ok := errors.AsType[*fetchError](err); ok {
			return e
		}
		return &fetchError{fetchFailed, err}
	}
	return nil
}

// recoveringDir is the data directory that recovers: the server starts its commands there.
func recoveringDir(c *config.Config) (string, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	if isDataDir(cwd) {
		return cwd, nil
	}
	return c.Postgres.DataDir, nil
}

type walFetcher struct {
	c         *config.Config
	name      string
	path, dir string // absolute
	log       *slog.Logger
	standby   bool
	patient   patient
}

// fetch tries until it has an answer that the server can be given.
func (f *walFetcher) fetch(ctx context.Context) error {
	_, err := os.Stat(filepath.Join(f.dir, "standby.signal"))
	if errors.Is(err, fs.ErrNotExist) {
		return f.once(ctx, f.timeout(), f.timeout())
	}
	if err != nil {
		return err
	}
	f.standby = true
	// On a standby a failure would be the end of the server, and absence ends nothing: it asks again.
	begin := time.Now()
	patience := min(standbyPatience, f.timeout())
	err = f.once(ctx, patience, patience)
	if ended(err) || ctx.Err() != nil {
		return err
	}
	streams := f.streams(ctx)
	for tries := 1; ; tries++ {
		if streams && time.Since(begin) >= standbyPatience {
			return &fetchError{fetchAbsent, fmt.Errorf("the archive can't be read, this standby goes on by streaming alone: %w", err)}
		}
		if tries%120 == 1 {
			f.log.Error("the archive can't be read: this standby waits for it", "file", f.name, "error", err.Error())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(fetchPause):
		}
		if streams {
			err = f.once(ctx, time.Until(begin.Add(standbyPatience)), patience)
		} else {
			err = f.once(ctx, f.timeout(), f.timeout())
		}
		if ended(err) || ctx.Err() != nil {
			return err
		}
	}
}

// ended reports whether trying again is of no use: it was fetched, or is proven absent.
func ended(err error) bool {
	e, ok := errors.AsType[*fetchError](err)
	return err == nil || ok && e.status == fetchAbsent
}

func (f *walFetcher) timeout() time.Duration { return time.Duration(f.c.Archive.Timeout) }

// once asks once. What is coming may take as long as it takes; it gives up when nothing comes, not for first in the
// beginning or for later afterwards.
func (f *walFetcher) once(ctx context.Context, first, later time.Duration) error {
	stuck := fmt.Errorf("nothing came from the store for %s", later)
	if later == f.timeout() {
		stuck = fmt.Errorf("nothing came from the store within archive.timeout (%s)", later)
	}
	watched, moved, stop := client.WhileMoving(ctx, first, later, stuck)
	defer stop()
	err := f.patient.within(watched, func() error { return f.ask(watched, moved) })
	switch {
	case err == nil || ended(err) || ctx.Err() != nil || watched.Err() == nil || errors.Is(err, stuck):
		return err
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("fetch %s: %w", f.name, stuck)
	}
	return fmt.Errorf("fetch %s: %w: %w", f.name, stuck, err)
}

// ask asks the agent, or the store where there is no agent.
func (f *walFetcher) ask(ctx context.Context, moved func()) error {
	promise, err := f.promise()
	if err != nil {
		return err
	}
	if promise == recovery.Beyond {
		return &fetchError{fetchAbsent, fmt.Errorf("fetch %s: this restored copy needs no WAL beyond its proven path", f.name)}
	}
	control, err := postgres.ReadControl(ctx, f.dir)
	if err != nil {
		return err
	}
	partial := promise == recovery.PromisedPartial
	err = f.fromAgent(ctx, control.SystemID, partial, moved)
	if errors.Is(err, client.ErrNoAgent) {
		err = f.direct(ctx, control.SystemID, partial, moved)
	}
	if errors.Is(err, archive.ErrNotArchived) || errors.Is(err, client.ErrAbsent) {
		if promise != recovery.Ordinary {
			return fmt.Errorf("fetch %s: it was archived when this restore began, and is not any more: %w", f.name, err)
		}
		return &fetchError{fetchAbsent, err}
	}
	return err
}

// promise is what the restore that made the directory says of the file. Once a standby was made of what was restored as
// none, that recovery is over, and says nothing.
func (f *walFetcher) promise() (recovery.Promise, error) {
	marker, err := recovery.ReadMarker(f.dir)
	if err != nil || marker == nil || f.standby {
		return recovery.Ordinary, err
	}
	return marker.Of(f.name), nil
}

// fromAgent has the agent bring the file to a name of its own beside the path: an agent that was frozen, and comes to only
// after the server has gone on, must not put this file where the server looks for the next one.
func (f *walFetcher) fromAgent(ctx context.Context, systemID uint64, partial bool, moved func()) error {
	if wal.Classify(f.name) == wal.Other {
		return client.ErrNoAgent // no name to make one of
	}
	dest := f.path + "." + f.name
	err := client.Of(f.c.Service.Dir).Fetch(ctx, client.Wanted{
		Name: f.name, Dest: dest, Dir: f.dir, System: systemID, Partial: partial, Moved: moved,
	})
	if err == nil {
		return os.Rename(dest, f.path)
	}
	if rerr := os.Remove(dest); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		return errors.Join(err, rerr)
	}
	return err
}

// direct reads the store.
func (f *walFetcher) direct(ctx context.Context, systemID uint64, partial bool, moved func()) error {
	e, err := openEnv(ctx, f.c)
	if err != nil {
		return err
	}
	r, err := e.repo(ctx, systemID)
	if err != nil {
		return err
	}
	ar := e.archive(r, f.log)
	defer ar.Close()
	return ar.Fetch(ctx, f.name, f.path, archive.FetchOptions{Partial: partial, Moved: moved})
}

// streams reports whether the standby has a primary to stream from. Where that can't be found out, it counts as one:
// it then only asks more often.
func (f *walFetcher) streams(ctx context.Context) bool {
	opts, err := os.ReadFile(filepath.Join(f.dir, "postmaster.opts"))
	if err != nil {
		return true
	}
	argv := parseOpts(string(opts))
	if len(argv) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, standbyPatience)
	defer cancel()
	// The server's own program with its own arguments knows, wherever its settings stand.
	cmd := exec.CommandContext(ctx, argv[0], append(argv[1:], "-C", "primary_conninfo")...)
	cmd.Dir = f.dir
	out, err := cmd.Output()
	return err != nil || strings.TrimSpace(string(out)) != ""
}

// parseOpts takes a postmaster.opts apart: the program, then each argument in double quotes (CreateOptsFile in
// src/backend/postmaster/postmaster.c, which escapes nothing).
func parseOpts(text string) []string {
	program, rest, _ := strings.Cut(strings.TrimRight(text, "\n"), ` "`)
	if program == "" {
		return nil
	}
	argv := []string{program}
	if rest = strings.TrimSuffix(rest, `"`); rest != "" {
		argv = append(argv, strings.Split(rest, `" "`)...)
	}
	return argv
}
