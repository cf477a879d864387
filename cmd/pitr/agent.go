package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/agent"
	"pitr/internal/config"
	"pitr/internal/postgres"
	"pitr/internal/repo"
)

func newAgent(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "agent",
		Short: "Run the long-running service: archiving ahead, backups and retention by schedule",
		Long: "Run the long-running service of a database host. It archives ahead of the server's archive_command, fetches ahead\n" +
			"of a recovery's restore_command, and takes backups and applies retention by schedule. It runs as the server's user;\n" +
			"root becomes that user first. It stays in the foreground, logs to standard error, and ends cleanly on SIGTERM.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.agent(c.Context()) },
	}
}

func (a *app) agent(ctx context.Context) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	if err := asServerUser(c); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(a.err, nil))
	e := &agentEnv{Config: c, log: log}
	o := agent.Options{
		Dir:      c.Service.Dir,
		DataDir:  c.Postgres.DataDir,
		Workers:  c.Archive.Workers,
		Timeout:  time.Duration(c.Archive.Timeout),
		Schedule: c.Backup.Schedule,
		Version:  version,
	}
	return agent.Run(ctx, o, agent.Deps{
		Archive: e.openArchive,
		Read:    e.readArchive,
		Backup:  e.backup,
		Prune:   e.prune,
		RollUp:  e.rollUp,
		Newest:  e.newest,
		Log:     log,
		Now:     time.Now,
	}, nil)
}

// asServerUser makes root the user that the data directory belongs to, by starting this command again: what the agent and
// the hooks need has to be that user's, and only what that user may do is proven to work. For others it does nothing.
func asServerUser(c *config.Config) error {
	if os.Geteuid() != 0 {
		return nil
	}
	owner, err := postgres.AccountOf(c.Postgres.DataDir)
	if err != nil {
		return err
	}
	return agent.Become(owner, c.Service.Dir, os.Args)
}

// agentEnv opens what the agent sets to work, each time anew: the store may be away when the agent starts.
type agentEnv struct {
	*config.Config
	log *slog.Logger
}

func (e *agentEnv) openArchive(ctx context.Context) (*archive.Archive, error) {
	env, err := openEnv(ctx, e.Config)
	if err != nil {
		return nil, err
	}
	r, err := env.ensureRepo(ctx, e.Postgres.DataDir)
	if err != nil {
		return nil, err
	}
	return env.archive(r, e.log), nil
}

func (e *agentEnv) readArchive(ctx context.Context, system uint64) (*archive.Archive, error) {
	env, err := openEnv(ctx, e.Config)
	if err != nil {
		return nil, err
	}
	r, err := repo.Open(ctx, env.bucket, system)
	if err != nil {
		return nil, err
	}
	return env.archive(r, e.log), nil
}

func (e *agentEnv) newest(ctx context.Context) (backup, began time.Time, err error) {
	env, err := openEnv(ctx, e.Config)
	if err != nil {
		return backup, began, err
	}
	r, err := env.repo(ctx, 0)
	if errors.Is(err, repo.ErrNoRepository) {
		return backup, began, nil
	}
	if err != nil {
		return backup, began, err
	}
	all, _, err := basebackup.List(ctx, r)
	if err != nil {
		return backup, began, err
	}
	if len(all) > 0 {
		backup = all[len(all)-1].Started
	}
	return backup, r.Facts().Created, nil
}
