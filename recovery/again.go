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
	"time"

	"pitr/archive"
	"pitr/internal/postgres"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Stage is how far the server came for which a finished restore put its files into place.
type Stage int

const (
	Unknown Stage = iota // not to be told: it is no restore of ours, or was changed since
	Copied               // no server has begun on it
	Begun                // one has begun to recover, and has not ended that; it may run
	Ended                // recovery has ended, so that something may have been written since
)

// stage tells it by what the server itself does to its files: it notes in pg_control that it recovers before it takes
// backup_label away, and removes the signal file when it ends recovery, before it lets anybody write (StartupXLOG in
// src/backend/access/transam/xlog.c).
func stage(dir string, m *Marker, c wal.Control) (Stage, error) {
	promised := func(s archive.Step) bool { return s.Timeline == c.CheckpointCopy.Timeline }
	signal := recoverySignal
	if m.Standby {
		signal = standbySignal
	}
	has := func(name string) (bool, error) {
		_, err := os.Stat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
	signalled, err := has(signal)
	if err != nil {
		return Unknown, err
	}
	label, err := has("backup_label")
	switch {
	case err != nil:
		return Unknown, err
	case !signalled:
		return Ended, nil
	case c.Checkpoint == noCheckpoint && label:
		return Copied, nil
	case c.Checkpoint == noCheckpoint, !slices.ContainsFunc(m.Path, promised):
		// The latter was promoted once, and somebody has put the signal there again.
		return Unknown, nil
	case c.State == wal.StateInArchiveRecovery || c.State == wal.StateShutDownInRecovery:
		return Begun, nil
	}
	return Unknown, nil
}

// call tells apart what restores are asked for. Of what the archive holds it has the backup only: the end of the archive
// stays the same wish while that grows. Nor does it matter whether the server is to be started.
func (p *Plan) call() string {
	d := p.Destination
	text := fmt.Sprintf("%s %q %s standby=%t archive=%t scratch=%t", p.fingerprint(), p.Asked, cmp.Or(p.Target.Action, Promote), d.Standby, d.Archive, d.Scratch())
	return repo.DigestOf([]byte(text)).String()
}

// goesOn tells whether what is there is what an earlier call of the same kind has put into place, so that nothing has to be
// copied. What was opened is left to its users, and in place, where that is the server proper, a call means to replace it.
// --delta means to look at every block.
func (p *Plan) goesOn(at Place) bool {
	m, d := at.Marker, p.Destination
	switch {
	case d.Delta, m == nil, at.Stage == Unknown, m.Call != p.call(), m.Timeline != p.Timeline:
		return false
	case at.PID != 0:
		stops := m.Stop.LSN == p.Stop.LSN && m.Stop.Inclusive == p.Stop.Inclusive
		return d.Start && (at.Stage != Ended || !d.InPlace) && (stops || p.following())
	case at.Stage == Ended:
		return false
	}
	return at.Stage == Copied || p.Stop.LSN >= m.Stop.LSN // it may have replayed up to there
}

// earlier is what a call for the same target left in the directory.
type earlier struct {
	backup  string
	running *Marker // its server runs
}

// following tells whether the server is to follow on, without a record to stop at.
func (p *Plan) following() bool { return p.Destination.Standby && p.Target.Kind == End }

// begunBy notes it: by now the archive may lead to another backup or elsewhere.
func (p *Plan) begunBy(at Place) {
	switch {
	case p.Destination.InPlace && at.Stage == Ended:
	case at.Marker != nil && at.Marker.Target == p.Asked:
		p.earlier = &earlier{backup: at.Marker.Backup}
		if at.PID != 0 {
			p.earlier.running = at.Marker
		}
	case at.Journal != nil && at.Journal.Target == p.Asked:
		p.earlier = &earlier{backup: at.Journal.Backup}
	}
}

// continued gives the plan by which what an earlier call began can be completed, nil if there is none.
func (p *Plan) continued(v View) *Plan {
	e, t := p.earlier, p.Target
	if e == nil || t.Backup != "" && t.Backup != e.backup {
		return nil
	}
	t.Backup = e.backup
	if e.running != nil && t.Kind != Immediate && !p.following() {
		// It was told where to stop.
		t.Kind, t.LSN, t.Exclusive = LSN, e.running.Stop.LSN, !e.running.Stop.Inclusive
		t.Timeline = TimelineSpec{Number: e.running.Timeline}
	}
	again, err := makePlan(v, t, p.Asked, p.Destination)
	if err != nil || !again.Layout.Restored && !again.Layout.Resumes {
		return nil
	}
	if e.running != nil && p.Stop.LSN != again.Stop.LSN {
		again.obstacle(false, "", "the server that runs in %s recovers to %s, as it was told when it was started; by now the archive leads to %s",
			p.Layout.Dir, again.Stop.LSN, p.Stop.LSN)
	}
	return again
}

// again does what is left of a restore whose files are in place: the archive may have grown, and the place for the socket
// may be another.
func (r *restorer) again(ctx context.Context) error {
	old, err := ReadMarker(r.dir)
	if err != nil {
		return err
	}
	r.report.Before = &old.Created
	if r.p.Layout.PID != 0 {
		return nil
	}
	marker := r.p.marker(old.Created)
	if err := r.own.writeDocument(filepath.Join(r.dir, MarkerFile), marker); err != nil {
		return err
	}
	replaced := func(name string) bool {
		return obsolete(name, r.p.Destination.Standby) || slices.ContainsFunc(r.p.Settings, func(s postgres.Setting) bool { return s.Name == name })
	}
	if err := postgres.EditAutoConf(r.dir, replaced, r.p.Settings); err != nil {
		return err
	}
	return r.raiseParameters(ctx)
}

// marker is what tells the server's commands of the plan.
func (p *Plan) marker(created time.Time) Marker {
	return Marker{
		Format: markerFormat, SystemID: p.Backup.SystemID, Archive: p.Destination.Archive, Backup: p.Backup.ID,
		Target: p.Asked, Call: p.call(), Stop: p.Stop, Timeline: p.Timeline, SegSize: p.Backup.WALSegSize, Path: p.Path,
		Standby: p.Destination.Standby, Created: created.UTC().Truncate(time.Second),
	}
}

// follow waits for a server that an earlier call has started. It is left running, whatever comes of it.
func (v *watch) follow(ctx context.Context) error {
	p, s := v.p, v.s
	s.PID = p.Layout.PID
	ended := func() (error, bool) {
		_, running, err := postgres.Running(p.Layout.Dir)
		if err != nil || running {
			return err, err != nil
		}
		s.PID = 0
		if p.shutsDown() {
			return v.confirmShutdown(ctx), true
		}
		return errors.New("recovery failed: the server that an earlier call had started has ended"), true
	}
	err := v.await(ctx, ended)
	if _, left := errors.AsType[*leftRunning](err); err == nil || left || s.PID == 0 {
		return err
	}
	return fmt.Errorf("wait for the server that runs in %s (process %d, which is left alone): %w", p.Layout.Dir, s.PID, err)
}
