package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/wal"
)

// ServerLog is where a server that Start starts writes its log, in its data directory.
const ServerLog = "pitr_server.log"

// Started tells how far a restored server came.
type Started struct {
	PID       int          `json:"pid"` // 0: it has shut down at the target, as it was told to
	SocketDir string       `json:"socket_dir"`
	Port      int          `json:"port"`
	Timeline  wal.Timeline `json:"timeline"`
	Replayed  wal.LSN      `json:"replayed_lsn"`
	// Last is the last transaction whose end was replayed, as the plan says; the server has confirmed its time.
	Last   *Moment       `json:"last_transaction"`
	Took   time.Duration `json:"-"`
	Log    string        `json:"log"`
	BinDir string        `json:"bin_dir"`
}

// Start starts the server on what Restore has put into place, and waits until it has reached the target: promoted it is
// open then, paused it answers queries, and told to shut down it has ended. A standby without a target only has to become
// consistent. A recovery that ends anywhere else is an error, and the server is stopped again.
//
// user is the role to ask as. When ctx ends before, the server is stopped. One that an earlier call has started and that
// runs (Layout.PID) is waited for, and left running in any case.
func (w *World) Start(ctx context.Context, p *Plan, user string) (*Started, error) {
	began := time.Now()
	bin, err := w.programs(ctx, p.Backup.ServerVersion/10000)
	if err != nil {
		return nil, err
	}
	s := &Started{Last: p.Last, Log: filepath.Join(p.Layout.Dir, ServerLog), BinDir: bin}
	if p.Layout.PID != 0 {
		if err := w.follow(ctx, p, user, s); err != nil {
			return nil, hint.Wrap(err, "%s", cmp.Or(hint.Of(err), "the whole log is "+s.Log))
		}
		s.Took = time.Since(began)
		return s, nil
	}
	proc, err := postgres.Start(ctx, postgres.StartConfig{BinDir: bin, DataDir: p.Layout.Dir, LogFile: s.Log})
	if exit, ok := errors.AsType[*postgres.ExitError](err); ok {
		if exit.Code == 0 && p.Target.Action == Shutdown {
			return s, w.confirmShutdown(ctx, p, s)
		}
		return nil, hint.Wrap(fmt.Errorf("recovery failed: %w", err), "the whole log is %s", s.Log)
	}
	if err != nil {
		return nil, err
	}
	s.PID = proc.PID()
	err = w.await(ctx, p, user, s, func() (error, bool) {
		select {
		case <-proc.Done():
		default:
			return nil, false
		}
		exit, err := proc.Wait(ctx)
		if err != nil {
			return err, true
		}
		s.PID = 0
		if exit.Code == 0 && p.Target.Action == Shutdown {
			return w.confirmShutdown(ctx, p, s), true
		}
		return hint.Wrap(fmt.Errorf("recovery failed: %w", exit), "the whole log is %s", s.Log), true
	})
	if err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return nil, errors.Join(err, proc.Stop(stop, postgres.Fast))
	}
	s.Took = time.Since(began)
	return s, nil
}

// await polls the server until it has done what it was told to, or ended tells that it is gone, and with what error.
func (w *World) await(ctx context.Context, p *Plan, user string, s *Started, ended func() (error, bool)) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if done, err := ask(ctx, p, user, s); done {
			return err
		}
		if err, gone := ended(); gone {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// ask looks once. What it can't find out it does not count as an error: the server may be ending recovery, or itself.
func ask(ctx context.Context, p *Plan, user string, s *Started) (bool, error) {
	post, err := postgres.ReadPostmaster(p.Layout.Dir)
	if err != nil || post.Port == 0 || post.SocketDir == "" && post.Listen == "" {
		return false, nil // with nothing to go by, another server would answer
	}
	s.Port, s.SocketDir = post.Port, post.SocketDir
	cfg := postgres.Config{DataDir: p.Layout.Dir, BinDir: s.BinDir, Host: cmp.Or(post.SocketDir, post.Listen), Port: post.Port, User: user}
	conn, err := postgres.Connect(ctx, cfg)
	if err != nil {
		return false, nil
	}
	defer conn.Close()
	at, err := conn.Position(ctx)
	if err != nil {
		return false, nil
	}
	switch {
	case !at.InRecovery && (p.following() || p.Target.Action != Promote || at.Replayed == 0):
		// By others: it was promoted, or started anew since.
		return true, hint.Wrap(refused("the server that was restored to %s has been opened", p.Layout.Dir), "it is in use: stop it and remove the directory, or choose another one")
	case p.following():
	case p.Target.Action == Pause && !at.Paused, p.Target.Action == Promote && at.InRecovery, p.Target.Action == Shutdown:
		return false, nil
	}
	info, err := conn.Info(ctx)
	if err != nil {
		return false, nil
	}
	s.Replayed, s.Timeline = at.Replayed, info.Timeline
	if p.following() {
		return true, nil
	}
	return true, confirm(p, at)
}

// maxPageHeader is how far the start of a record may lie behind the end of the one before.
const maxPageHeader = wal.LongHeaderLen

// confirm compares where the server came to with the plan. PostgreSQL stops with an error by itself where it does not
// reach its target; this is for the case that something else ended the recovery.
func confirm(p *Plan, at postgres.Position) error {
	short := at.Replayed < p.Stop.End
	if !p.Stop.Inclusive {
		short = at.Replayed+maxPageHeader < p.Stop.LSN
	}
	if p.Target.Kind == Immediate {
		short = at.Replayed < p.Backup.StopLSN
	}
	if short {
		return fmt.Errorf("recovery ended short of the target: the server has replayed up to %s, and the plan says %s", at.Replayed, p.Stop.LSN)
	}
	switch {
	case p.noted == nil && at.ReplayedTo.IsZero(), p.noted != nil && at.ReplayedTo.Equal(p.noted.Time):
		return nil
	case p.noted == nil:
		return fmt.Errorf("recovery ended elsewhere: a transaction that ended at %s was replayed, and the plan has none", formatTime(at.ReplayedTo.UTC()))
	case at.ReplayedTo.IsZero():
		return fmt.Errorf("recovery ended short of the target: the server has replayed no transaction's end, and the plan says that of %d", p.noted.XID)
	}
	return fmt.Errorf("recovery ended elsewhere: the last transaction replayed ended at %s, and the plan says %s", formatTime(at.ReplayedTo.UTC()), p.noted)
}

// confirmShutdown looks at what a server left behind that has shut down at its target.
func (w *World) confirmShutdown(ctx context.Context, p *Plan, s *Started) error {
	c, err := postgres.ReadControl(ctx, p.Layout.Dir)
	if err != nil {
		return err
	}
	if c.State != wal.StateShutDownInRecovery {
		return fmt.Errorf("the server has ended, and is %s instead of shut down in recovery", c.State)
	}
	s.Replayed, s.Timeline = c.MinRecovery, c.MinRecoveryTLI
	return nil
}
