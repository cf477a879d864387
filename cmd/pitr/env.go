package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"pitr/archive"
	"pitr/internal/agent"
	"pitr/internal/config"
	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/recovery"
	"pitr/storage"
)

// env is the configuration of a command and what is opened from it.
type env struct {
	*config.Config
	bucket storage.Bucket
}

// env reads the configuration and opens the store.
func (a *app) env(ctx context.Context) (*env, error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	return openEnv(ctx, c)
}

func openEnv(ctx context.Context, c *config.Config) (*env, error) {
	b, err := storage.Open(ctx, c.Storage)
	if err != nil {
		return nil, err
	}
	return &env{Config: c, bucket: storage.Retry(b, storage.Backoff{})}, nil
}

// archive opens the archive of a repository with the settings of the configuration.
func (e *env) archive(r *repo.Repo, log *slog.Logger) *archive.Archive {
	return archive.New(r, archive.Options{
		Level:   e.Backup.Level,
		Workers: e.Archive.Workers,
		Origin:  archive.Origin{Node: e.Cluster.Node},
		Log:     log,
	})
}

// control reads the server's pg_control; false where there is no data directory yet.
func (e *env) control(ctx context.Context) (wal.Control, bool, error) {
	c, err := postgres.ReadControl(ctx, e.Postgres.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return c, false, nil
	}
	return c, err == nil, err
}

// repo opens the repository of the configured server, for reading. Where its data directory is gone
// or new, the store tells which cluster is meant: the only one there, or systemID if that is not 0. An unfinished restore
// in that directory tells it, too.
func (e *env) repo(ctx context.Context, systemID uint64) (*repo.Repo, error) {
	if systemID == 0 {
		c, ok, err := e.control(ctx)
		if err != nil {
			return nil, err
		}
		if ok {
			systemID = c.SystemID
		} else if j, err := recovery.ReadJournal(e.Postgres.DataDir); err != nil {
			return nil, err
		} else if j != nil {
			systemID = j.SystemID
		}
	}
	if systemID == 0 {
		ids, err := repo.Systems(ctx, e.bucket)
		switch {
		case err != nil:
			return nil, err
		case len(ids) == 0:
			return nil, hint.Wrap(fmt.Errorf("%w: %s is empty", repo.ErrNoRepository, e.bucket), "check `storage.url`")
		case len(ids) > 1:
			return nil, hint.Wrap(fmt.Errorf("open the repository: %s holds %d clusters (system identifiers %v), and there is no data directory at %s to tell which one is meant",
				e.bucket, len(ids), ids, e.Postgres.DataDir), "name it with --system-id")
		}
		systemID = ids[0]
	}
	return repo.Open(ctx, e.bucket, systemID)
}

// ensureRepo opens the repository of the server in dataDir for writing, and begins it where it is
// the first time.
func (e *env) ensureRepo(ctx context.Context, dataDir string) (*repo.Repo, error) {
	c, err := postgres.ReadControl(ctx, dataDir)
	if err != nil {
		return nil, err
	}
	major, err := postgres.MajorOfDir(dataDir)
	if err != nil {
		return nil, err
	}
	return repo.EnsureRemembered(ctx, e.bucket, repo.Facts{
		SystemID:    c.SystemID,
		Cluster:     e.Cluster.Name,
		Major:       major,
		SegmentSize: int64(c.WALSegSize),
		BlockSize:   int(c.BlockSize),
	}, time.Now(), filepath.Join(e.Service.Dir, agent.RepositoryMemory))
}
