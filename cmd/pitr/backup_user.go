package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"pitr/internal/agent"
	"pitr/internal/config"
	"pitr/internal/postgres"
)

// userEnv is env for commands that write to the store. Where root runs them, they become the server's user first, as the
// agent does: what root stores, archive_command could not read or go on with, and a server that knows its users by peer
// lets only them in.
func (a *app) userEnv(ctx context.Context) (*env, error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	if err := becomeServerUser(c); err != nil {
		return nil, err
	}
	return openEnv(ctx, c)
}

// becomeServerUser starts this command again as the owner of the data directory, if root runs it and there is one.
func becomeServerUser(c *config.Config) error {
	if os.Geteuid() != 0 {
		return nil
	}
	owner, err := postgres.AccountOf(c.Postgres.DataDir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && owner.UID == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return agent.Become(owner, c.Service.Dir, os.Args)
}
