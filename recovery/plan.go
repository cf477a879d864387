package recovery

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// Plan is a restore that has been proven possible: what is to be put where, and how far the server replays.
type Plan struct {
	Target  Target             `json:"-"`
	Asked   string             `json:"target"` // Target, for people
	Backup  *basebackup.Header `json:"backup"`
	History wal.History        `json:"-"` // of the timeline to recover along
	// Timeline is History's.
	Timeline wal.Timeline `json:"timeline"`
	// Stop is the record where recovery ends. With Immediate it is told to the server as such.
	Stop Stop   `json:"stop"`
	What string `json:"stop_record"` // the record, for people: "before the COMMIT of transaction …"
	// Last is the last transaction whose end is replayed, LastCommit the last one that was committed: nil where none ended
	// between the start of the backup and the stop.
	Last       *Moment `json:"last_transaction"`
	LastCommit *Moment `json:"last_commit"`
	// noted is the last one but that of the record to stop at: of this one, told by its position, the server does not
	// note the time (recoveryStopsAfter).
	noted *Moment
	// Replayed is how many transactions ended in the WAL to replay.
	Replayed int64     `json:"transactions"`
	InDoubt  []InDoubt `json:"in_doubt"`
	// Path is the WAL to replay, all of which is there, and Histories are the timelines it runs over.
	Path      []archive.Step `json:"path"`
	Segments  int64          `json:"segments"`
	Histories []wal.History  `json:"-"`

	Destination Destination        `json:"destination"`
	Layout      Layout             `json:"layout"`
	Settings    []postgres.Setting `json:"settings"`
	Signal      string             `json:"signal"` // the file that begins the recovery
	Fetch       int64              `json:"fetch_bytes"`
	Write       int64              `json:"write_bytes"`
	Why         []string           `json:"why"`
	Obstacles   []Obstacle         `json:"obstacles"`

	created    []NewTablespace   // by the WAL to replay
	parameters []*wal.Parameters // in the WAL to replay
	config     configPlaces
	earlier    *earlier // what another call for the target has left in the way
}

// Obstacle stands in the way, or is worth knowing before.
type Obstacle struct {
	What  string `json:"what"`
	Hint  string `json:"hint,omitempty"`
	Fatal bool   `json:"fatal"`
}

// Err is the refusal that the fatal obstacles are, nil without any.
func (p *Plan) Err() error {
	var what []string
	advice := ""
	for _, o := range p.Obstacles {
		if o.Fatal {
			what = append(what, o.What)
			if advice == "" {
				advice = o.Hint
			}
		}
	}
	if len(what) == 0 {
		return nil
	}
	err := refused("%s", strings.Join(what, "; "))
	if advice != "" {
		return hint.Wrap(err, "%s", advice)
	}
	return err
}

func (p *Plan) why(format string, args ...any) { p.Why = append(p.Why, fmt.Sprintf(format, args...)) }

func (p *Plan) obstacle(fatal bool, advice, format string, args ...any) {
	p.Obstacles = append(p.Obstacles, Obstacle{What: fmt.Sprintf(format, args...), Hint: advice, Fatal: fatal})
}

// MakePlan resolves the target, chooses the backup, and proves that everything between is there: else ErrUnreachable, or
// an error of the archive. What is wrong with the destination is listed in the plan's Obstacles; a plan with a fatal one
// is still worth showing, and Plan.Err is the error of acting on it.
//
// Where an earlier call for the same target was killed, the plan is to go on with what it left: with the same backup if
// there are newer ones by now, and with nothing to copy (Layout.Restored) if only the server had still to recover.
func MakePlan(v View, t Target, d Destination) (*Plan, error) {
	p, err := makePlan(v, t, t.String(), d)
	if err != nil {
		return nil, err
	}
	if again := p.continued(v); again != nil {
		return again, nil
	}
	return p, nil
}

// makePlan plans for a target that was asked for in other words.
func makePlan(v View, t Target, asked string, d Destination) (*Plan, error) {
	h, err := v.timeline(t)
	if err != nil {
		return nil, err
	}
	p := &Plan{Target: t, Asked: asked, History: h, Timeline: h.Timeline, Destination: d}
	if err := p.resolve(v, v.candidates(h, t.Backup)); err != nil {
		if errors.Is(err, ErrUnreachable) {
			if elsewhere := v.elsewhere(t, h); elsewhere != "" && errors.Is(err, archive.ErrConflict) {
				err = hint.Wrap(err, "%s; %s", hint.Of(err), elsewhere)
			} else if elsewhere != "" {
				err = hint.Wrap(err, "%s", elsewhere)
			}
		}
		return nil, err
	}
	if err := p.prove(v); err != nil {
		return nil, err
	}
	if err := p.place(v); err != nil {
		return nil, err
	}
	p.judgeParameters()
	p.Settings, p.Signal, err = settings(p)
	return p, err
}

// prove takes the WAL from the backup's start to the stop, and the backup, and makes sure of all of it.
func (p *Plan) prove(v View) error {
	b := p.Backup
	r, err := v.Reach(p.History, b.StartLSN)
	if err != nil {
		return err
	}
	if p.Stop.End > r.End {
		return p.cutOff(v, v.candidates(p.History, p.Target.Backup), r, "the record at %s, where recovery has to stop, is not archived to its end%s", p.Stop.LSN, r.behindGap())
	}
	p.Path = cut(r.Path, wal.SegmentOf(p.Stop.End-1, v.SegSize))
	for _, s := range p.Path {
		p.Segments += int64(s.Last - s.First + 1)
		if h, ok := v.Histories[s.Timeline]; ok && !slices.ContainsFunc(p.Histories, func(k wal.History) bool { return k.Timeline == s.Timeline }) {
			p.Histories = append(p.Histories, h)
		}
	}
	content, err := v.Contents(b)
	if err != nil {
		return err
	}
	if n := len(content.Missing); n > 0 {
		return hint.Wrap(fmt.Errorf("backup %s: %w: %d of its packs are missing or cut short, the first is %s", b.ID, repo.ErrDamaged, n, content.Missing[0]),
			"--backup chooses another one; `pitr backup verify %s` tells what is damaged", b.ID)
	}
	p.Fetch, p.Write = content.Fetch, content.Write
	s, err := surveyUntil(p.Stop, content.Prepared, v.Facts(p.Path, b.StartLSN, enoughBefore(p.Stop.LSN, v.SegSize)))
	if err != nil {
		return err
	}
	if s.broken != nil {
		return p.unreachable(v, v.candidates(p.History, p.Target.Backup), "the records end at %s, before the one to stop at (%s)", s.broken.LSN, s.broken.Reason)
	}
	if s.minimal != 0 {
		e := p.unreachable(v, v.candidates(p.History, p.Target.Backup), "at %s the server ran with wal_level = minimal, over which no recovery goes", s.minimal)
		return hint.Wrap(e, "restore to a moment before that, or from a backup taken after it")
	}
	if err := s.fill(v, b.StartLSN); err != nil {
		return err
	}
	p.Last, p.LastCommit, p.noted, p.Replayed, p.InDoubt = s.last, s.lastCommit, s.noted, s.ended, s.inDoubt
	p.created, p.parameters, p.config = s.tablespaces, s.parameters, content.Config
	p.tellOfRefused(v)
	if err := p.tellOfBranches(v); err != nil {
		return err
	}
	if b.BadPages > 0 {
		p.obstacle(false, "`pitr backup show "+b.ID+"` lists them", "%d pages of the backup had wrong checksums on the server already", b.BadPages)
	}
	for _, d := range p.InDoubt {
		name := "prepared before the backup"
		if d.GID != "" {
			name = fmt.Sprintf("prepared as %q", d.GID)
		}
		p.obstacle(false, "after the restore, `SELECT * FROM pg_prepared_xacts`, then COMMIT PREPARED or ROLLBACK PREPARED",
			"transaction %d (%s) is neither committed nor rolled back at the target", d.XID, name)
	}
	return nil
}

// cut ends a path with the segment of number last.
func cut(path []archive.Step, last uint64) []archive.Step {
	var out []archive.Step
	for _, s := range path {
		if s.First > last {
			break
		}
		if s.Last > last {
			s.Last, s.Partial = last, false
		}
		out = append(out, s)
	}
	return out
}
