package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/agent/client"
	"pitr/internal/config"
	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Status is all there is to say about one host's server and its repository at a moment. What could not be found out is
// nil, with a Problem that says why.
type Status struct {
	Time     time.Time       `json:"time"`
	Cluster  string          `json:"cluster"`
	Node     string          `json:"node"`
	Server   *ServerStatus   `json:"server"`
	Archive  *ArchiveStatus  `json:"archive"`
	Backups  *BackupsStatus  `json:"backups"`
	Window   *WindowStatus   `json:"window"` // nil also where nothing can be restored
	Agent    *Running        `json:"agent"`  // nil also where none runs
	Problems []StatusProblem `json:"problems"`
}

// StatusProblem is something that is not as it should be.
type StatusProblem struct {
	What string `json:"what"`
	Hint string `json:"hint,omitempty"`
}

// ServerStatus is what the server says, and what its files do where it does not run.
type ServerStatus struct {
	Running  bool         `json:"running"`
	Version  int          `json:"version,omitempty"` // server_version_num
	SystemID uint64       `json:"system_identifier,string,omitempty"`
	Role     string       `json:"role,omitempty"` // primary or standby
	Timeline wal.Timeline `json:"timeline,omitempty"`
	LSN      wal.LSN      `json:"lsn,omitempty"` // end of what is on its disk, or was replayed
	// Ready counts the files that wait to be archived.
	Ready int `json:"ready"`
	// LastFailed is the file that the server's archiver failed with last, if that was after its last success.
	LastFailed   string    `json:"last_failed,omitempty"`
	LastFailedAt time.Time `json:"last_failed_at,omitzero"`
}

// ArchiveStatus is what the repository holds of the WAL.
type ArchiveStatus struct {
	Store     string             `json:"store"`
	Timelines []TimelineStatus   `json:"timelines"`
	Gaps      []archive.Gap      `json:"gaps"`
	Conflicts []archive.Conflict `json:"conflicts"`
	// Last is the newest segment of the newest timeline, LastAt when it was stored, by the store's clock.
	Last   string    `json:"last_segment,omitempty"`
	LastAt time.Time `json:"last_at,omitzero"`
	// LagBytes is the WAL on the server's disk that is not archived yet; nil where the server was not asked.
	LagBytes *int64 `json:"lag_bytes"`
}

// TimelineStatus is what is archived of one timeline.
type TimelineStatus struct {
	Timeline wal.Timeline `json:"timeline"`
	Segments uint64       `json:"segments"`
	First    string       `json:"first,omitempty"`
	Last     string       `json:"last,omitempty"`
	Stored   int64        `json:"stored"` // bytes
}

// BackupsStatus counts the backups.
type BackupsStatus struct {
	Count  int           `json:"count"`
	Newest *BackupStatus `json:"newest"`
	Oldest *BackupStatus `json:"oldest"`
	// Damaged are those whose manifests can't be read.
	Damaged []string `json:"damaged"`
}

// BackupStatus is one backup in short.
type BackupStatus struct {
	ID       string    `json:"id"`
	Type     string    `json:"type"`
	Finished time.Time `json:"finished"`
	Size     int64     `json:"size"` // bytes of the database
}

// WindowStatus is what can be reached on the newest timeline's history without a gap up to its end: from the end of a
// backup to the last commit that is archived.
type WindowStatus struct {
	Timeline wal.Timeline `json:"timeline"`
	Backup   string       `json:"backup"` // the oldest that serves
	From     time.Time    `json:"from"`
	FromLSN  wal.LSN      `json:"from_lsn"`
	// To is the time of the last commit or abort; zero where there is none close to the end.
	To    time.Time `json:"to,omitzero"`
	ToLSN wal.LSN   `json:"to_lsn"` // end of the WAL
	// Gap is the first missing segment, where later WAL can't be reached for it; then the window ends there.
	Gap string `json:"gap,omitempty"`
}

// Sources are where a Status comes from.
type Sources struct {
	Config *config.Config
	Store  string // for people
	// Open opens the archive, for reading.
	Open func(context.Context) (*archive.Archive, error)
	Now  func() time.Time
}

// observer gathers a Status.
type observer struct {
	Sources
	s Status
}

// Observe finds out how things are. Whatever can't be asked is a problem in what it returns, not an error.
func Observe(ctx context.Context, from Sources) *Status {
	o := &observer{Sources: from}
	o.s = Status{Time: from.Now(), Cluster: from.Config.Cluster.Name, Node: from.Config.Cluster.Node, Problems: []StatusProblem{}}
	o.agent(ctx)
	o.server(ctx)
	o.store(ctx)
	return &o.s
}

func (o *observer) problem(err error) {
	o.s.Problems = append(o.s.Problems, StatusProblem{What: err.Error(), Hint: hint.Of(err)})
}

// askAgent asks the agent of a service directory. The error is client.ErrNoAgent where there is none.
func askAgent(ctx context.Context, dir string) (*Running, error) {
	raw, err := client.Of(dir).Status(ctx)
	if err != nil {
		return nil, err
	}
	r := new(Running)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	return r, nil
}

func (o *observer) agent(ctx context.Context) {
	r, err := askAgent(ctx, o.Config.Service.Dir)
	if errors.Is(err, client.ErrNoAgent) {
		o.problem(hint.Wrap(errors.New("no agent runs"), "nothing is done by schedule, and the server's hooks archive by themselves, one file at a time: start `pitr agent`"))
		return
	}
	if err != nil {
		o.problem(err)
		return
	}
	o.s.Agent = r
	if f := r.Push.Failure; r.Push.Failing && f != nil {
		o.problem(hint.Wrap(fmt.Errorf("archiving fails: %s", f.Text), "%s", f.Hint))
	}
	for _, j := range r.Jobs {
		if j.Failure != nil {
			o.problem(hint.Wrap(fmt.Errorf("the last scheduled %s failed: %s", j.Name, j.Failure.Text), "%s", j.Failure.Hint))
		}
	}
}

func (o *observer) server(ctx context.Context) {
	c := o.Config.Postgres
	s := &ServerStatus{}
	o.s.Server = s
	if r, err := readReady(filepath.Join(c.DataDir, "pg_wal"), 0, nil, func(string) bool { return false }); err != nil {
		o.problem(err)
	} else {
		s.Ready = r.total
	}
	if control, err := postgres.ReadControl(ctx, c.DataDir); err == nil {
		s.SystemID, s.Timeline = control.SystemID, control.CheckpointCopy.Timeline
	}
	conn, err := postgres.Connect(ctx, c)
	if err != nil {
		o.problem(err)
		return
	}
	defer conn.Close()
	s.Running = true
	if err := o.ask(ctx, conn, s); err != nil {
		o.problem(err)
	}
}

func (o *observer) ask(ctx context.Context, conn *postgres.Conn, s *ServerStatus) error {
	info, err := conn.Info(ctx)
	if err != nil {
		return err
	}
	s.Version, s.SystemID, s.Timeline, s.Role = info.Version, info.SystemID, info.Timeline, "primary"
	if info.InRecovery {
		s.Role = "standby"
	}
	if s.LSN, err = conn.CurrentLSN(ctx); err != nil {
		return err
	}
	stats, err := conn.ArchiverStats(ctx)
	if err != nil {
		return err
	}
	if stats.Failing() {
		s.LastFailed, s.LastFailedAt = stats.LastFailed, stats.FailedAt
		if o.s.Agent == nil || !o.s.Agent.Push.Failing {
			o.problem(hint.Wrap(fmt.Errorf("the server's archiver fails: the last file that it failed with is %s, at %s", stats.LastFailed, stats.FailedAt.UTC().Format(time.RFC3339)),
				"the server's log says why"))
		}
	}
	if info.ArchiveMode == "off" {
		o.problem(hint.Wrap(errors.New("the server archives nothing: archive_mode is off"), "`pitr check` says what the server needs"))
	}
	return nil
}

func (o *observer) store(ctx context.Context) {
	a, err := o.Open(ctx)
	if errors.Is(err, repo.ErrNoRepository) {
		o.problem(err)
		return
	}
	if err != nil {
		o.problem(fmt.Errorf("open the repository: %w", err))
		return
	}
	defer a.Close()
	backups, err := o.backups(ctx, a.Repo())
	if err != nil {
		o.problem(err)
	}
	c, err := a.Coverage(ctx)
	if err != nil {
		o.problem(err)
		return
	}
	o.coverage(ctx, a.Repo(), c)
	if len(backups) == 0 {
		return
	}
	if o.s.Window, err = window(ctx, a, c, backups); err != nil {
		o.problem(err)
	}
}

func (o *observer) backups(ctx context.Context, r *repo.Repo) ([]*basebackup.Header, error) {
	all, damaged, err := basebackup.List(ctx, r)
	if err != nil {
		return nil, err
	}
	b := &BackupsStatus{Count: len(all), Damaged: []string{}}
	o.s.Backups = b
	for _, d := range damaged {
		b.Damaged = append(b.Damaged, d.ID)
		o.problem(fmt.Errorf("backup %s can't be read: %w", d.ID, d.Err))
	}
	if len(all) == 0 {
		o.problem(hint.Wrap(errors.New("there is no backup, so nothing can be restored"), "`pitr backup create` takes one"))
		return nil, nil
	}
	b.Oldest, b.Newest = brief(all[0]), brief(all[len(all)-1])
	return all, nil
}

func brief(h *basebackup.Header) *BackupStatus {
	return &BackupStatus{ID: h.ID, Type: h.Type, Finished: h.Finished, Size: h.Size}
}

func (o *observer) coverage(ctx context.Context, r *repo.Repo, c *archive.Coverage) {
	s := &ArchiveStatus{Store: o.Store, Timelines: []TimelineStatus{}, Gaps: c.Gaps(), Conflicts: c.Conflicts}
	o.s.Archive = s
	for _, tli := range c.TimelinesInOrder() {
		t := c.Timelines[tli]
		ts := TimelineStatus{Timeline: tli, Stored: t.Stored}
		for _, run := range t.Runs {
			ts.Segments += run.Last - run.First + 1
		}
		if n := len(t.Runs); n > 0 {
			ts.First, ts.Last = wal.SegmentName(tli, t.Runs[0].First, c.SegSize), wal.SegmentName(tli, t.Runs[n-1].Last, c.SegSize)
			s.Last = ts.Last
		}
		s.Timelines = append(s.Timelines, ts)
	}
	if s.Gaps == nil {
		s.Gaps = []archive.Gap{}
	}
	if s.Conflicts == nil {
		s.Conflicts = []archive.Conflict{}
	}
	if s.Last != "" {
		for obj, err := range r.List(ctx, repo.SegmentPrefix(s.Last)+"-", "") {
			if err != nil {
				o.problem(err)
				break
			}
			s.LastAt = obj.Modified
		}
	}
	for _, g := range s.Gaps {
		o.problem(hint.Wrap(fmt.Errorf("WAL is missing on timeline %d: %s to %s", g.Timeline, g.First, g.Last),
			"moments after the gap need a backup that was taken behind it: `pitr backup create`"))
	}
	for _, x := range s.Conflicts {
		o.problem(hint.Wrap(fmt.Errorf("%s has several contents", x.Name), "`pitr wal list` shows them, `pitr wal resolve` settles it"))
	}
	o.lag(c)
}

// lag is what the server has written behind the end of its timeline's archive.
func (o *observer) lag(c *archive.Coverage) {
	srv := o.s.Server
	if !srv.Running || srv.LSN == 0 {
		return
	}
	h, err := c.History(srv.Timeline)
	if err != nil {
		h = wal.History{Timeline: srv.Timeline}
	}
	lag := max(int64(srv.LSN)-int64(c.End(h)), 0)
	o.s.Archive.LagBytes = &lag
}

// window finds what can be restored on the newest timeline that has a backup on its history.
func window(ctx context.Context, a *archive.Archive, c *archive.Coverage, backups []*basebackup.Header) (*WindowStatus, error) {
	timelines := c.TimelinesInOrder()
	for i := len(timelines) - 1; i >= 0; i-- {
		h, err := c.History(timelines[i])
		if err != nil {
			continue // reported as a conflict or as a gap
		}
		end := c.End(h)
		var best *WindowStatus
		var path []archive.Step
		for _, b := range backups {
			if h.Owner(b.StartLSN) != b.Timeline || h.Owner(b.StopLSN-1) != b.Timeline || b.StopLSN > end {
				continue
			}
			w := &WindowStatus{Timeline: h.Timeline, Backup: b.ID, From: b.Finished, FromLSN: b.StopLSN, ToLSN: end}
			steps, missing := c.Path(h, b.StartLSN, end)
			if missing != nil {
				if missing.Reachable < b.StopLSN {
					continue // not even consistent
				}
				w.ToLSN, w.Gap = missing.Reachable, missing.Segment
			}
			// The oldest of those that reach farthest.
			if best == nil || w.ToLSN > best.ToLSN {
				best, path = w, steps
			}
		}
		if best != nil {
			best.To, err = lastCommit(ctx, a, path)
			return best, err
		}
	}
	return nil, nil
}

// lastCommitWithin is how many segments at the end of a path are looked through for a commit.
const lastCommitWithin = 1024

// lastCommit is the time of the last commit or abort on a path; zero where none is near its end.
func lastCommit(ctx context.Context, a *archive.Archive, path []archive.Step) (time.Time, error) {
	for n := uint64(2); n <= lastCommitWithin; n *= 8 {
		part, all := tail(path, n)
		var last time.Time
		for f, err := range a.Facts(ctx, part, 0) {
			if err != nil {
				return time.Time{}, err
			}
			if txn, ok := f.What.(*wal.Txn); ok {
				last = txn.Time.Time()
			}
		}
		if !last.IsZero() || all {
			return last, nil
		}
	}
	return time.Time{}, nil
}

// tail is the last n segments of a path, and whether that is all of it.
func tail(path []archive.Step, n uint64) ([]archive.Step, bool) {
	for i := len(path) - 1; i >= 0; i-- {
		s := path[i]
		if have := s.Last - s.First + 1; have > n {
			s.First = s.Last - n + 1
			return append([]archive.Step{s}, path[i+1:]...), false
		} else if n -= have; n == 0 {
			return path[i:], i == 0
		}
	}
	return path, true
}
