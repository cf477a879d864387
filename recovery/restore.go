package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pitr/basebackup"
	"pitr/internal/durable"
	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/wal"
)

// Options of a restore. The zero value works.
type Options struct {
	Workers int // frames decompressed and written at once; 0 is 1
	// Owner is whom everything is given to where this process is root; nil: the owner of the directory, or of what is
	// above it.
	Owner *postgres.Account
	// Progress is called now and then, by one goroutine at a time, and must not block.
	Progress func(Progress)
	Log      *slog.Logger     // what is worth knowing and no error; nil: nothing
	Now      func() time.Time // nil: time.Now
}

// Progress of a restore, in bytes and files of the backup.
type Progress struct {
	Files      int64
	Bytes      int64 // fetched, or found to be right already
	Total      int64
	TotalFiles int64
	Syncing    bool // all is written, and is being made durable
}

// Report is what a restore did.
type Report struct {
	Files   int64 `json:"files"`
	Fetched int64 `json:"fetched_bytes"` // raw bytes written
	Kept    int64 `json:"kept_bytes"`    // raw bytes that were right already
	Removed int64 `json:"removed_files"` // that did not belong to the backup
	// PushedWAL are segments of the replaced directory that were archived first, Aside the directory that took those that
	// could not be.
	PushedWAL []string `json:"pushed_wal,omitempty"`
	Aside     string   `json:"wal_aside,omitempty"`
	// Before is when an earlier call has put everything into place; nil: this one has.
	Before   *time.Time    `json:"restored_before,omitempty"`
	Took     time.Duration `json:"-"`
	Warnings []string      `json:"warnings,omitempty"`
}

// restorer carries out one plan.
type restorer struct {
	*World
	p      *Plan
	o      Options
	own    owner
	acct   *postgres.Account // own's, where this process is root
	dir    string
	keep   bool // look at what is there, and keep what is right
	report Report

	oddModes []oddMode    // directories that their owner can't write
	config   []configFile // from outside of the data directory
	control  []byte       // content of pg_control
	syncer   *syncer

	mu  sync.Mutex // guards report and now while workers run
	now Progress
}

type oddMode struct {
	path string
	mode fs.FileMode
}

// Restore does what the plan says. It may be called again after any failure or kill, with a plan made anew: then it goes
// on. Until it returns nil no server can start on the directory. It refuses (ErrRefused) what the plan could not know of,
// and what a plan with fatal obstacles asks for. In place, WAL that only the old directory has is archived first, if it was
// not (ArchiveLeftovers); what that changes of the plan is ErrOutdated, before anything is touched.
//
// What is damaged in the repository is an error (repo.ErrDamaged), found before a byte of it is written.
func (w *World) Restore(ctx context.Context, p *Plan, o Options) (_ *Report, err error) {
	if err := p.Err(); err != nil {
		return nil, err
	}
	o.Workers = max(o.Workers, 1)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &restorer{World: w, p: p, o: o, dir: p.Layout.Dir, keep: p.Destination.Delta || p.Layout.Resumes}
	began := o.Now()
	if err := r.restore(ctx); err != nil {
		return nil, withSpaceHint(fmt.Errorf("restore backup %s to %s: %w", p.Backup.ID, r.dir, err))
	}
	r.report.Took = o.Now().Sub(began)
	return &r.report, nil
}

func withSpaceHint(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return hint.Wrap(err, "free some space and call the same command again: it goes on where it was")
	}
	return err
}

func (r *restorer) restore(ctx context.Context) error {
	if err := r.findOwner(); err != nil {
		return err
	}
	if err := r.makeDir(r.dir, 0o700); err != nil {
		return err
	}
	unlock, err := lock(r.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.lookAgain(ctx); err != nil {
		return err
	}
	if err := r.callable(ctx); err != nil {
		return err
	}
	if r.p.Layout.Restored {
		return errors.Join(r.again(ctx), ctx.Err())
	}
	if r.p.Destination.InPlace && r.p.Layout.Replaces {
		if err := r.saveWAL(ctx); err != nil {
			return err
		}
	}
	m, err := r.open(ctx, r.p.Backup.ID)
	if err != nil {
		return err
	}
	if err := r.stopped(); err != nil { // saving WAL may have taken long
		return err
	}
	journal := Journal{Format: markerFormat, SystemID: r.p.Backup.SystemID, Backup: r.p.Backup.ID, Target: r.p.Asked, Plan: r.p.fingerprint(), Started: r.o.Now().UTC().Truncate(time.Second)}
	enter := func(phase string) error {
		journal.Phase = phase
		return r.own.writeDocument(filepath.Join(r.dir, JournalFile), journal)
	}
	if err := enter(phaseClear); err != nil {
		return err
	}
	if err := r.disable(); err != nil {
		return err
	}
	if err := r.clear(ctx, m); err != nil {
		return err
	}
	if err := enter(phaseCopy); err != nil {
		return err
	}
	if r.syncer, err = openSyncer(r.places()); err != nil {
		return err
	}
	defer r.syncer.close()
	if err := r.copy(ctx, m); err != nil {
		return err
	}
	if err := r.configure(ctx); err != nil {
		return err
	}
	if err := r.finish(ctx, enter); err != nil {
		return err
	}
	return ctx.Err()
}

// findOwner decides whom the files belong to. Only root can give files away.
func (r *restorer) findOwner() error {
	r.own = owner{-1, -1}
	if os.Geteuid() != 0 {
		return nil
	}
	r.acct = r.o.Owner
	for path := r.dir; r.acct == nil; path = filepath.Dir(path) {
		acct, err := postgres.AccountOf(path)
		if err == nil {
			r.acct = &acct
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	r.own = owner{int(r.acct.UID), int(r.acct.GID)}
	if r.own.uid == 0 {
		return hint.Wrap(errors.New("the files would belong to root, as whom PostgreSQL refuses to run"),
			"restore as the server's user, or into a directory that belongs to it")
	}
	return nil
}

// callable makes sure that the server's user may run pitr and read its configuration, as the restore_command has to: what
// root may tells nothing of that.
func (r *restorer) callable(ctx context.Context) error {
	if r.acct == nil {
		return nil
	}
	args := []string{"config", "show"}
	if d := r.p.Destination; d.Config != "" {
		args = append([]string{"--config", d.Config}, args...)
	}
	cmd := exec.CommandContext(ctx, r.p.Destination.Program, args...)
	cmd.Dir = "/" // the user may not be let into this process's
	if err := r.acct.RunAs(cmd); err != nil {
		return err
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return hint.Wrap(refused("%s, as whom the server will fetch its WAL, can't run %s with its configuration: %v: %s",
			r.acct, r.p.Destination.Program, err, strings.TrimSpace(complaint.String())),
			"let that user read the configuration, for example `chgrp GROUP FILE && chmod 640 FILE`")
	}
	return nil
}

// makeDir makes a directory, and those above it that are missing, for the owner.
func (r *restorer) makeDir(path string, mode fs.FileMode) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := r.makeDir(filepath.Dir(path), mode); err != nil {
		return err
	}
	if err := durable.MkdirAll(path, mode); err != nil {
		return err
	}
	return r.own.takePath(path)
}

// lock keeps a second restore out of the directory. The kernel gives the lock up when the process ends.
func lock(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, refused("another restore works in %s", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}

// lookAgain makes sure, under the lock, that the directory is still what the plan was made for.
func (r *restorer) lookAgain(ctx context.Context) error {
	now, err := look(ctx, r.dir)
	if err != nil {
		return err
	}
	fresh := *r.p
	fresh.Layout.Replaces, fresh.Layout.Resumes, fresh.Layout.Restored, fresh.Layout.PID = false, false, false, 0
	fresh.Obstacles, fresh.Why = nil, nil
	fresh.judgeDir(now)
	if err := fresh.Err(); err != nil {
		return err
	}
	was := &r.p.Layout
	if now.WALLink != was.walLink || !slices.Equal(now.Links, was.links) || fresh.Layout.Replaces && !r.p.Layout.Replaces || fresh.Layout.Resumes != r.p.Layout.Resumes ||
		fresh.Layout.Restored != r.p.Layout.Restored || fresh.Layout.PID != r.p.Layout.PID {
		return refused("%s has changed since the plan was made", r.dir)
	}
	if was.Restored {
		return nil // nothing is removed
	}
	for _, dir := range r.p.outside() {
		if user, err := usedBy(dir); err != nil {
			return err
		} else if user != "" {
			return refused("%s belongs to the server that runs in %s by now", dir, user)
		}
	}
	return nil
}

// stopped refuses if a server runs in the directory.
func (r *restorer) stopped() error {
	pid, running, err := postgres.Running(r.dir)
	if err == nil && running {
		err = refused("a server was started in %s (process %d) since the plan was made", r.dir, pid)
	}
	return err
}

// disable makes sure that no server can start in the directory from here on, and that none has until here: without
// pg_control none starts, and one that had read it before runs in the directory by then. That one keeps everything.
func (r *restorer) disable() error {
	control, aside := filepath.Join(r.dir, "global", "pg_control"), filepath.Join(r.dir, "global", unfinishedControl)
	moved := true
	err := durable.Rename(control, aside)
	if errors.Is(err, fs.ErrNotExist) {
		moved, err = false, nil
	}
	if err != nil {
		return err
	}
	if err := r.stopped(); err != nil {
		if moved {
			err = errors.Join(err, durable.Rename(aside, control), durable.Remove(filepath.Join(r.dir, JournalFile)))
		}
		return err
	}
	if err := durable.Remove(aside); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// versionDir is the name of this server's directory in each tablespace (TABLESPACE_VERSION_DIRECTORY in
// src/include/common/relpath.h).
func versionDir(h *basebackup.Header) string {
	return fmt.Sprintf("PG_%d_%d", h.ServerVersion/10000, h.CatalogVersion)
}

// unfinishedControl is what pg_control is called until everything else is on the disk, and what the old one is called until
// it is certain that no server runs.
const unfinishedControl = "pg_control.pitr"

// noCheckpoint is a position that no WAL holds: the first segment of a cluster is never written. With it in pg_control, a
// server can begin from backup_label only, and who takes that away does not start a broken database.
const noCheckpoint = wal.LSN(0xDEAD)

// finish makes everything durable and lets a server start.
func (r *restorer) finish(ctx context.Context, enter func(string) error) error {
	if r.control == nil {
		return errors.New("the backup holds no global/pg_control")
	}
	control, err := wal.PatchControlCheckpoint(r.control, noCheckpoint)
	if err != nil {
		return err
	}
	temp := filepath.Join(r.dir, "global", unfinishedControl)
	if err := r.own.writeFile(temp, control, 0o600); err != nil {
		return err
	}
	for _, m := range r.oddModes {
		if err := os.Chmod(m.path, m.mode); err != nil {
			return err
		}
	}
	r.progress(func(p *Progress) { p.Syncing = true })
	if err := r.syncer.sync(ctx); err != nil {
		return err
	}
	marker := r.p.marker(r.o.Now())
	if err := r.own.writeDocument(filepath.Join(r.dir, MarkerFile), marker); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := enter(phaseFinish); err != nil {
		return err
	}
	if err := durable.Rename(temp, filepath.Join(r.dir, "global", "pg_control")); err != nil {
		return err
	}
	return durable.Remove(filepath.Join(r.dir, JournalFile))
}

// where gives the path on this machine of an entry.
func (r *restorer) where(entry string) string { return filepath.Join(r.dir, filepath.FromSlash(entry)) }

// tablespaceOf gives the location of the tablespace whose link an entry path is.
func (r *restorer) tablespaceOf(entry string) (Location, bool) {
	oid, ok := strings.CutPrefix(entry, "pg_tblspc/")
	if !ok {
		return Location{}, false
	}
	for _, l := range r.p.Layout.Tablespaces {
		if fmt.Sprint(l.OID) == oid {
			return l, true
		}
	}
	return Location{}, false
}
