package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/agent"
	"pitr/internal/postgres"
	"pitr/internal/repo"
)

// backup takes a backup as `pitr backup create` does, unless the server is a standby.
func (e *agentEnv) backup(ctx context.Context) error {
	env, err := openEnv(ctx, e.Config)
	if err != nil {
		return err
	}
	conn, err := postgres.Connect(ctx, e.Postgres)
	if err != nil {
		return err
	}
	defer conn.Close()
	info, err := conn.Info(ctx)
	if err != nil {
		return err
	}
	if info.InRecovery {
		return agent.ErrStandby
	}
	r, err := env.ensureRepo(ctx, e.Postgres.DataDir)
	if err != nil {
		return err
	}
	h, err := basebackup.Take(ctx, r, conn, basebackup.Options{
		DataDir:        e.Postgres.DataDir,
		Workers:        e.Backup.Workers,
		Level:          e.Backup.Level,
		Node:           e.Cluster.Node,
		ArchiveTimeout: time.Duration(e.Archive.Timeout),
		SpoolDir:       env.spoolDir(),
		Log:            e.log,
	})
	if err != nil {
		return err
	}
	e.log.Info("backup taken", "id", h.ID, "type", h.Type, "size", h.Size, "stored", h.Stored, "took", h.Finished.Sub(h.Started))
	if h.BadPages > 0 {
		e.log.Warn("pages on the server's disk have wrong checksums; the backup holds them as they are", "id", h.ID, "pages", h.BadPages)
	}
	return nil
}

// withArchive runs f on the archive, if there is one.
func (e *agentEnv) withArchive(ctx context.Context, f func(*env, *archive.Archive) error) error {
	env, err := openEnv(ctx, e.Config)
	if err != nil {
		return err
	}
	r, err := env.repo(ctx, 0)
	if errors.Is(err, repo.ErrNoRepository) {
		return nil // nor anything in it
	}
	if err != nil {
		return err
	}
	ar := env.archive(r, e.log)
	defer ar.Close()
	return f(env, ar)
}

// prune applies retention as `pitr prune --yes` does.
func (e *agentEnv) prune(ctx context.Context) error {
	return e.withArchive(ctx, func(env *env, ar *archive.Archive) error {
		p, err := env.planPrune(ctx, ar, time.Now())
		if err != nil {
			return err
		}
		for _, l := range p.lines() {
			if strings.HasPrefix(l, "delete ") {
				e.log.Info("retention: " + strings.TrimSpace(l))
			}
		}
		done, err := p.run(ctx)
		if err != nil {
			return err
		}
		e.log.Info("retention: " + done)
		return p.blocked
	})
}

// rollUp rolls up the indexes of new WAL, so that plans over much of it take seconds.
func (e *agentEnv) rollUp(ctx context.Context) error {
	return e.withArchive(ctx, func(_ *env, ar *archive.Archive) error {
		done, err := ar.RollUp(ctx, false)
		if err != nil {
			return err
		}
		if done != (archive.RolledUp{}) {
			e.log.Info("WAL indexes rolled up", "objects", done.Written, "replaced", done.Removed)
		}
		return nil
	})
}
