package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"pitr/internal/agent/client"
	"pitr/internal/config"
	"pitr/internal/postgres"
	"pitr/recovery"
)

func newWALPush(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "push PATH",
		Short: "Archive a file of pg_wal: archive_command = 'pitr wal push %p'",
		Long: "Archive a file of pg_wal: archive_command = 'pitr wal push %p'. The exit status is 0 only once the store has it, durable.\n" +
			"The agent does it, or this command itself where no agent runs.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			return walPush(c.Context(), cfg, args[0], a.log())
		},
	}
}

// log writes to standard error, which the server's log keeps for the hooks.
func (a *app) log() *slog.Logger {
	if a.quiet {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(a.err, nil))
}

// walPush archives the file at path: the agent does, or, where none will, this process.
func walPush(ctx context.Context, c *config.Config, path string, log *slog.Logger) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("archive %s: %w", path, err)
	}
	dir := dataDirOf(path, c)
	// Asked here, too: an agent of an older version may not know the marker.
	m, err := recovery.ReadMarker(dir)
	if err == nil && m != nil {
		err = m.MayArchive(dir)
	}
	if err != nil {
		return fmt.Errorf("archive %s: %w", filepath.Base(path), err)
	}
	err = client.Of(c.Service.Dir).Push(ctx, path)
	if !errors.Is(err, client.ErrNoAgent) {
		return err
	}
	return walPushDirect(ctx, c, dir, path, log)
}

// walPushDirect archives the file of the server in dir without an agent.
func walPushDirect(ctx context.Context, c *config.Config, dir, path string, log *slog.Logger) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(c.Archive.Timeout),
		fmt.Errorf("the store did not take it within archive.timeout (%s)", c.Archive.Timeout))
	defer cancel()
	var p patient
	err := p.within(ctx, func() error { return pushToStore(ctx, c, dir, path, log) })
	if err != nil && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		return fmt.Errorf("%w: %w", err, context.Cause(ctx))
	}
	return err
}

func pushToStore(ctx context.Context, c *config.Config, dir, path string, log *slog.Logger) error {
	e, err := openEnv(ctx, c)
	if err != nil {
		return err
	}
	control, err := postgres.ReadControl(ctx, dir)
	if err != nil {
		return err
	}
	r, err := e.ensureRepo(ctx, dir)
	if err != nil {
		return err
	}
	ar := e.archive(r, log)
	defer ar.Close()
	_, err = ar.Push(ctx, path, control.SystemID)
	return err
}

// dataDirOf finds the data directory of the server that a hook works for: the hook is started in
// it. A call by hand shows it by the path, which leads through its pg_wal, or means the configured
// one.
func dataDirOf(path string, c *config.Config) string {
	var candidates []string
	if cwd, err := os.Getwd(); err == nil {
		candidates = append(candidates, cwd)
	}
	candidates = append(candidates, filepath.Dir(filepath.Dir(path)))
	for _, dir := range candidates {
		// The file's directory must be that one's pg_wal, wherever links lead.
		if isDataDir(dir) && sameFile(filepath.Join(dir, "pg_wal"), filepath.Dir(path)) {
			return dir
		}
	}
	return c.Postgres.DataDir
}

func isDataDir(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "global", "pg_control"))
	return err == nil
}

func sameFile(x, y string) bool {
	xi, err := os.Stat(x)
	if err != nil {
		return false
	}
	yi, err := os.Stat(y)
	return err == nil && os.SameFile(xi, yi)
}
