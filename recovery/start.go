package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
// consistent. A recovery that ends or pauses anywhere else is an error, and the server is stopped again.
//
// user is the role to ask as. A server that does not let it in is left running, with an error: promoted, once it has ended
// its recovery, else at once. When ctx ends before, the server is stopped. One that an earlier call has started and that
// runs (Layout.PID) is waited for, and left running in any case.
func (w *World) Start(ctx context.Context, p *Plan, user string) (*Started, error) {
	began := time.Now()
	bin, err := w.programs(ctx, p.Backup.ServerVersion/10000)
	if err != nil {
		return nil, err
	}
	s := &Started{Last: p.Last, Log: filepath.Join(p.Layout.Dir, ServerLog), BinDir: bin}
	v := &watch{w: w, p: p, user: user, s: s, began: began}
	if p.Layout.PID != 0 {
		if err := v.follow(ctx); err != nil {
			return nil, hint.Wrap(err, "%s", cmp.Or(hint.Of(err), "the whole log is "+s.Log))
		}
		s.Took = time.Since(began)
		return s, nil
	}
	options := p.ServerOptions()
	if p.shutsDown() {
		options = append(options, "-c", "lc_messages=C") // confirmShutdown reads its log
	}
	proc, err := postgres.Start(ctx, postgres.StartConfig{BinDir: bin, DataDir: p.Layout.Dir, Options: options, LogFile: s.Log})
	if exit, ok := errors.AsType[*postgres.ExitError](err); ok {
		if err := v.ended(ctx, exit); err != nil {
			return nil, err
		}
		s.Took = time.Since(began)
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s.PID = proc.PID()
	err = v.await(ctx, func() (error, bool) {
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
		return v.ended(ctx, exit), true
	})
	if _, left := errors.AsType[*leftRunning](err); left {
		return nil, err
	}
	if err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return nil, errors.Join(err, proc.Stop(stop, postgres.Fast))
	}
	s.Took = time.Since(began)
	return s, nil
}

// shutsDown tells whether the server is to end at the target.
func (p *Plan) shutsDown() bool { return p.Target.Action == Shutdown && !p.following() }

// watch is the waiting for one server.
type watch struct {
	w     *World
	p     *Plan
	user  string
	s     *Started
	began time.Time
}

// leftRunning is the error of a server that runs and can't be asked. It is not stopped: it may be just what is wanted.
type leftRunning struct{ error }

func (e *leftRunning) Unwrap() error { return e.error }

const (
	askEvery  = 50 * time.Millisecond // a server that answers
	askSeldom = time.Second           // one that does not: each attempt is a line in its log
	tellEvery = 5 * time.Second       // why it can't be asked
)

// await polls the server until it has done what it was told to, or ended tells that it is gone, and with what error.
func (v *watch) await(ctx context.Context, ended func() (error, bool)) error {
	pause, told := askEvery, time.Now()
	for {
		done, trouble := v.ask(ctx)
		if done {
			return trouble
		}
		if err, gone := ended(); gone {
			return err
		}
		if trouble == nil {
			pause = askEvery
		} else {
			pause = min(2*pause, askSeldom)
			if now := time.Now(); now.Sub(told) >= tellEvery && ctx.Err() == nil {
				told = now
				v.w.log.Warn("the server runs, and can't be asked yet how far it is", "directory", v.p.Layout.Dir, "process", v.s.PID, "error", trouble.Error())
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// ask looks once, and tells whether there is nothing more to wait for. An error otherwise says why the server did not
// answer: it may be about to.
func (v *watch) ask(ctx context.Context) (bool, error) {
	p, s := v.p, v.s
	post, err := postgres.ReadPostmaster(p.Layout.Dir)
	if err != nil || post.Port == 0 || post.SocketDir == "" && post.Listen == "" {
		return false, nil // with nothing to go by, another server would answer
	}
	s.Port, s.SocketDir = post.Port, post.SocketDir
	cfg := postgres.Config{DataDir: p.Layout.Dir, BinDir: s.BinDir, Host: cmp.Or(post.SocketDir, post.Listen), Port: post.Port, User: v.user}
	conn, err := postgres.Connect(ctx, cfg)
	if postgres.Refused(err) {
		return v.refused(err)
	}
	if err != nil {
		return false, err
	}
	defer conn.Close()
	at, err := conn.Position(ctx)
	if err != nil {
		return false, err
	}
	switch {
	case !at.InRecovery && (p.following() || p.Target.Action != Promote || at.Replayed == 0):
		// By others: it was promoted, or started anew since.
		return true, hint.Wrap(refused("the server that was restored to %s has been opened", p.Layout.Dir), "it is in use: stop it and remove the directory, or choose another one")
	case at.InRecovery && at.Paused && (p.following() || p.Target.Action != Pause || p.short(at.Replayed)):
		// As it does when it has less of something than the server had whose WAL it replays.
		return true, fmt.Errorf("recovery has paused at %s, short of the target; the server's last words:\n%s",
			at.Replayed, strings.Join(postgres.LastLogged(p.Layout.Dir, s.Log, v.began, 15), "\n"))
	case p.following():
	case p.Target.Action == Pause && !at.Paused, p.Target.Action == Promote && at.InRecovery, p.Target.Action == Shutdown:
		return false, nil
	}
	info, err := conn.Info(ctx)
	if err != nil {
		return false, err
	}
	s.Replayed, s.Timeline = at.Replayed, info.Timeline
	if p.following() {
		return true, nil
	}
	return true, confirm(p, at)
}

// refused judges a server that answers, but not us. What ends recovery by itself is waited for, since the WAL may bring
// the role, and since its files tell: it removes the signal then.
func (v *watch) refused(why error) (bool, error) {
	p, state := v.p, "it recovers"
	switch {
	case p.shutsDown():
		return false, why
	case p.following() || p.Target.Action == Pause:
	default:
		_, err := os.Lstat(filepath.Join(p.Layout.Dir, p.Signal))
		if err == nil {
			return false, why
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return true, err
		}
		state = "recovery has ended and it has been opened"
	}
	err := fmt.Errorf("the server in %s runs (process %d, left running): %s, but it can't be asked how far it came: %w", p.Layout.Dir, v.s.PID, state, why)
	return true, &leftRunning{hint.Wrap(err, "%s", cmp.Or(hint.Of(why), "change what keeps the role out, and look at pg_last_wal_replay_lsn() yourself"))}
}

// maxPageHeader is how far the start of a record may lie behind the end of the one before.
const maxPageHeader = wal.LongHeaderLen

// short tells whether a server that has replayed up to a position has the target before it.
func (p *Plan) short(replayed wal.LSN) bool {
	switch {
	case p.Target.Kind == Immediate:
		return replayed < p.Backup.StopLSN
	case !p.Stop.Inclusive:
		return replayed+maxPageHeader < p.Stop.LSN
	}
	return replayed < p.Stop.End
}

// confirm compares where the server came to with the plan. PostgreSQL stops with an error by itself where it does not
// reach its target; this is for the case that something else ended the recovery.
func confirm(p *Plan, at postgres.Position) error {
	if p.short(at.Replayed) {
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

// ended judges a server that has ended.
func (v *watch) ended(ctx context.Context, exit *postgres.ExitError) error {
	if exit.Code == 0 && v.p.shutsDown() {
		return v.confirmShutdown(ctx)
	}
	return hint.Wrap(fmt.Errorf("recovery failed: %w", exit), "the whole log is %s", v.s.Log)
}

// confirmShutdown looks at what a server left behind that was to shut down at its target: it may have been stopped before.
// The log of its last run tells (src/backend/postmaster/postmaster.c). Where that is not kept as text, pg_control does,
// which may be behind the records replayed, since it follows the pages that are written.
func (v *watch) confirmShutdown(ctx context.Context) error {
	p, s := v.p, v.s
	c, err := postgres.ReadControl(ctx, p.Layout.Dir)
	if err != nil {
		return err
	}
	if c.State != wal.StateShutDownInRecovery {
		return fmt.Errorf("the server has ended, and is %s instead of shut down in recovery", c.State)
	}
	s.Replayed, s.Timeline = c.MinRecovery, c.MinRecoveryTLI
	short := p.short(c.MinRecovery)
	const manyLines = 4 << 10 // all sessions may have logged their ends
	for _, line := range slices.Backward(postgres.LastLogged(p.Layout.Dir, s.Log, v.began, manyLines)) {
		if strings.Contains(line, "shutdown at recovery target") {
			s.Replayed = max(s.Replayed, p.Stop.LSN)
			if p.Stop.Inclusive {
				s.Replayed = max(s.Replayed, p.Stop.End)
			}
			return nil
		}
		if strings.Contains(line, "starting PostgreSQL") {
			short = true
			break
		}
	}
	if !short {
		return nil
	}
	return hint.Wrap(fmt.Errorf("recovery was stopped, not by its target: the server has shut down at %s or soon after, before %s", c.MinRecovery, p.Stop.LSN),
		"call the same command again: it goes on; the whole log is %s", s.Log)
}
