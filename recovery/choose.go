package recovery

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"pitr/basebackup"
	"pitr/internal/hint"
	"pitr/internal/wal"
)

// timeline chooses the history to recover along.
func (v View) timeline(t Target) (wal.History, error) {
	fail := func(format string, args ...any) (wal.History, error) {
		return wal.History{}, &Unreachable{Target: t, Why: fmt.Sprintf(format, args...)}
	}
	if len(v.Backups) == 0 {
		if len(v.Unreadable) > 0 {
			return fail("no backup can be read: %s", strings.Join(v.Unreadable, "; "))
		}
		_, err := fail("there is no backup")
		return wal.History{}, hint.Wrap(err, "WAL alone can't be restored: take a backup with `pitr backup create`")
	}
	from := v.Backups
	if t.Backup != "" {
		i := slices.IndexFunc(from, func(b *basebackup.Header) bool { return b.ID == t.Backup })
		if i < 0 {
			return wal.History{}, hint.Wrap(fmt.Errorf("backup %s: %w", t.Backup, basebackup.ErrNoBackup), "`pitr backup list` shows those there are")
		}
		from = from[i : i+1]
	}
	if n := t.Timeline.Number; n != 0 {
		h, ok := v.Histories[n]
		if !ok {
			return fail("timeline %d is not in the archive, which has %s", n, v.known())
		}
		return h, nil
	}
	if t.timelineWord() == TimelineCurrent {
		b := from[len(from)-1]
		h, ok := v.Histories[b.Timeline]
		if !ok {
			return fail("the history of timeline %d, which backup %s was taken on, is not archived", b.Timeline, b.ID)
		}
		return h, nil
	}
	best := wal.History{}
	for _, h := range v.Histories {
		if h.Timeline > best.Timeline && slices.ContainsFunc(from, func(b *basebackup.Header) bool { return v.on(h, b) }) {
			best = h
		}
	}
	if best.Timeline == 0 {
		return fail("no timeline in the archive (%s) leads on from a backup", v.known())
	}
	return best, nil
}

// known lists the timelines for a sentence.
func (v View) known() string {
	var s []string
	for tli := range v.Histories {
		s = append(s, strconv.FormatUint(uint64(tli), 10))
	}
	slices.SortFunc(s, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return "timelines " + strings.Join(s, ", ")
}

// on tells whether all of a backup lies on a history.
func (v View) on(h wal.History, b *basebackup.Header) bool {
	if own, ok := v.Histories[b.Timeline]; ok && !h.Descends(own) {
		return false
	}
	return h.Owner(b.StartLSN) == b.Timeline && h.Owner(b.StopLSN-1) == b.Timeline
}

// candidates are the backups on a history, or the one asked for, in the order of their ends.
func (v View) candidates(h wal.History, id string) []*basebackup.Header {
	var c []*basebackup.Header
	for _, b := range v.Backups {
		if v.on(h, b) && (id == "" || b.ID == id) {
			c = append(c, b)
		}
	}
	slices.SortStableFunc(c, func(a, b *basebackup.Header) int {
		switch {
		case a.StopLSN < b.StopLSN:
			return -1
		case a.StopLSN > b.StopLSN:
			return 1
		}
		return 0
	})
	return c
}

// newest is the last of the candidates that is consistent where recovery stops.
func newest(c []*basebackup.Header, at wal.LSN) *basebackup.Header {
	for _, b := range slices.Backward(c) {
		if b.StopLSN <= at {
			return b
		}
	}
	return nil
}

// resolve finds the stop and the backup.
func (p *Plan) resolve(v View, c []*basebackup.Header) error {
	if len(c) == 0 {
		why := fmt.Sprintf("no backup lies on the history of timeline %d", p.Timeline)
		if p.Target.Backup != "" {
			why = fmt.Sprintf("backup %s does not lie on the history of timeline %d", p.Target.Backup, p.Timeline)
		}
		return &Unreachable{Target: p.Target, Why: why}
	}
	if word := p.Target.timelineWord(); p.Target.Timeline.Number == 0 && len(v.Histories) > 1 {
		p.why("timeline %d: the %s one", p.Timeline, word)
	}
	var err error
	switch p.Target.Kind {
	case End:
		err = p.resolveEnd(v, c)
	case Immediate:
		err = p.resolveImmediate(v, c)
	case LSN:
		err = p.resolveLSN(v, c)
	default:
		err = p.resolveSearch(v, c)
	}
	if err != nil {
		return err
	}
	word := "the newest on the history that is complete before the stop"
	if p.Target.Backup != "" {
		word = "the one asked for"
	}
	p.why("backup %s: %s; it began at %s and ended at %s (%s)", p.Backup.ID, word, p.Backup.StartLSN, p.Backup.StopLSN, formatTime(p.Backup.Finished))
	return nil
}

func (p *Plan) resolveEnd(v View, c []*basebackup.Header) error {
	b := c[len(c)-1]
	r, err := v.Reach(p.History, b.StartLSN)
	if err != nil {
		return err
	}
	if r.Gap != "" {
		later := ", and later WAL is archived"
		if r.Conflict {
			later = ""
		}
		return p.cutOff(v, c, r, "segment %s %s%s: the end of the archive can't be reached from backup %s", r.Gap, r.trouble(), later, b.ID)
	}
	return p.stopAtEnd(v, c, b, r)
}

// stopAtEnd makes the last record of what is reached from b the stop. That the server is told, so that it fails where it
// can't come that far.
func (p *Plan) stopAtEnd(v View, c []*basebackup.Header, b *basebackup.Header, r Reach) error {
	if r.End < b.StopLSN {
		return p.unreachable(v, c, "the WAL up to %s, the end of backup %s, is not archived", b.StopLSN, b.ID)
	}
	last, ok, err := v.LastRecord(r.Path)
	if err != nil {
		return err
	}
	if !ok || last.End < b.StopLSN {
		return p.unreachable(v, c, "the archived WAL ends before %s, the end of backup %s", b.StopLSN, b.ID)
	}
	last.Inclusive = true
	p.Backup, p.Stop = b, last
	if p.What == "" {
		p.What = fmt.Sprintf("after the last archived record, at %s", last.LSN)
	}
	return nil
}

func (p *Plan) resolveImmediate(v View, c []*basebackup.Header) error {
	b := c[len(c)-1]
	r, err := v.Reach(p.History, b.StartLSN)
	if err != nil {
		return err
	}
	// The server notices that it is consistent when it looks at the next record.
	next, ok, err := v.recordAt(r, b.StopLSN)
	if err != nil {
		return err
	}
	if !ok {
		return p.cutOff(v, c, r, "the WAL behind %s, the end of backup %s, is not archived%s", b.StopLSN, b.ID, r.behindGap())
	}
	p.Backup, p.Stop = b, next
	p.What = fmt.Sprintf("at the end of backup %s, %s", b.ID, b.StopLSN)
	return nil
}

// recordAt is RecordAt for positions that may lie outside of what is reached.
func (v View) recordAt(r Reach, at wal.LSN) (Stop, bool, error) {
	if at >= r.End {
		return Stop{}, false, nil
	}
	return v.RecordAt(r.Path, at)
}

func (p *Plan) resolveLSN(v View, c []*basebackup.Header) error {
	at := p.Target.LSN
	// The record may start behind the position, and then a backup that ends between the two would do; but it need not be
	// looked for: the older one leads to the same record.
	b := newest(c, at)
	if b == nil {
		return p.unreachable(v, c, "it lies before the end of the first backup, %s", c[0].StopLSN)
	}
	r, err := v.Reach(p.History, b.StartLSN)
	if err != nil {
		return err
	}
	if at > r.End {
		if r.Gap != "" {
			return p.cutOff(v, c, r, "segment %s, which lies before it, %s", r.Gap, r.trouble())
		}
		return p.unreachable(v, c, "it lies behind the end of the archived WAL, %s", r.End)
	}
	rec, ok, err := v.recordAt(r, at)
	if err != nil {
		return err
	}
	if !ok {
		if r.Gap != "" {
			return p.cutOff(v, c, r, "the record there begins in segment %s, which %s", r.Gap, r.trouble())
		}
		last, some, err := v.LastRecord(r.Path)
		if err != nil {
			return err
		}
		if !some || at > last.End {
			return p.unreachable(v, c, "it lies behind the end of the last archived record, %s", last.End)
		}
		p.why("no archived record starts at %s or later: everything before it is replayed", at)
		return p.stopAtEnd(v, c, b, r)
	}
	if fork, ok := p.forkBefore(at); ok && p.Target.Timeline.Number == 0 {
		p.why("timeline %d left timeline %d at %s, before the position: --target-timeline %d would take the other branch", p.Timeline, fork.Timeline, fork.At, fork.Timeline)
	}
	rec.Inclusive = !p.Target.Exclusive
	p.Backup, p.Stop = b, rec
	p.What = fmt.Sprintf("%sthe record at %s, the first that starts at %s or later", sideOf(rec), rec.LSN, at)
	return nil
}

// forkBefore gives the last switch of timelines at or before a position.
func (p *Plan) forkBefore(at wal.LSN) (wal.Switch, bool) {
	for _, s := range slices.Backward(p.History.Switches) {
		if s.At <= at {
			return s, true
		}
	}
	return wal.Switch{}, false
}

// resolveSearch looks through the WAL for the target, from backup after backup.
func (p *Plan) resolveSearch(v View, c []*basebackup.Header) error {
	var f finding
	var err error
	if p.Target.Kind == Time {
		f, err = p.searchTime(v, c)
	} else {
		f, err = p.searchBackwards(v, c)
	}
	if err != nil {
		return err
	}
	p.What = f.what
	if f.atEnd {
		return nil // searchTime has set the rest
	}
	if p.Backup = newest(c, f.stop.LSN); p.Backup == nil {
		return p.unreachable(v, c, "recovery would stop %s, and that is not later than the end of the first backup, %s", f.what, c[0].StopLSN)
	}
	p.Stop = f.stop
	if n := len(f.also); n > 0 {
		p.why("%d more of the kind, the first of them %s: the first one holds, as it would for PostgreSQL", n, f.also[0])
	}
	return nil
}

// searchTime begins with the newest backup that was over by the clock before the target. That is a guess and decides
// nothing: if the stop turns out to be earlier than the backup's end, an older one is tried, and if newer ones end
// before the stop, the newest of them is taken.
func (p *Plan) searchTime(v View, c []*basebackup.Header) (finding, error) {
	guess := 0
	for i, b := range c {
		if b.Finished.Before(p.Target.Time) {
			guess = i
		}
	}
	for i := guess; ; i-- {
		b := c[i]
		r, err := v.Reach(p.History, b.StartLSN)
		if err != nil {
			return finding{}, err
		}
		f, err := search(p.Target, v.Facts(r.Path, b.StartLSN, p.Target.enough))
		switch {
		case err != nil:
			return f, err
		case f.found && i == 0 && !f.reached && p.Target.Time.Before(b.Started):
			// Whether transactions ended between the target and the backup, nothing archived tells.
			return f, p.unreachable(v, c, "it lies before the start of backup %s, %s", b.ID, formatTime(b.Started))
		case f.found && f.atEnd:
			if r.Gap != "" {
				// Transactions of earlier times may follow behind the gap.
				return f, p.cutOff(v, c, r, "segment %s %s, and it can't be told which transactions behind it ended before the target", r.Gap, r.trouble())
			}
			p.What = f.what
			return f, p.stopAtEnd(v, c, b, r)
		case f.found && f.stop.LSN >= b.StopLSN || f.found && i == 0:
			return f, nil
		case f.found:
			continue // older
		case r.Gap != "":
			return f, p.cutOff(v, c, r, "no transaction ended after it before segment %s, which %s", r.Gap, r.trouble())
		}
		err = p.unreachable(v, c, "no transaction ended after it, and nothing of a later time is archived")
		return f, hint.Wrap(err, "without a target everything archived is restored; if the server still runs, `SELECT pg_switch_wal()` there has its newest WAL archived")
	}
}

// searchBackwards looks from the newest backup on, then from the one before up to there, and so on: what is found is then
// also what the server would find from the backup chosen. Of restore points the first counts, so that the search does
// not end with the first success.
func (p *Plan) searchBackwards(v View, c []*basebackup.Header) (finding, error) {
	var best finding
	var cut Reach // of the newest backup that does not lead to the end
	until := wal.LSN(0)
	for _, b := range slices.Backward(c) {
		r, err := v.Reach(p.History, b.StartLSN)
		if err != nil {
			return finding{}, err
		}
		if r.Gap != "" && cut.Gap == "" {
			cut = r
		}
		facts := v.Facts(r.Path, b.StartLSN, p.Target.enough)
		if until != 0 {
			facts = before(until, facts)
		}
		f, err := search(p.Target, facts)
		if err != nil {
			return f, err
		}
		if f.subOf != nil && best.subOf == nil {
			best.subOf = f.subOf
		}
		if f.found {
			if best.found {
				f.also = append(append(f.also, Moment{LSN: best.stop.LSN}), best.also...)
			}
			f.subOf = best.subOf
			best = f
			if p.Target.Kind == XID && f.stop.LSN >= b.StopLSN {
				return best, nil
			}
		}
		until = b.StartLSN
	}
	if best.found {
		return best, nil
	}
	switch {
	case best.subOf != nil:
		err := p.unreachable(v, c, "it was a subtransaction of %d", best.subOf.XID)
		return best, hint.Wrap(err, "PostgreSQL knows top-level transactions only: --target-xid %d, whose %s is at %s (%s)",
			best.subOf.XID, best.subOf.Kind, best.subOf.LSN, formatTime(best.subOf.Time))
	case cut.Gap != "":
		return best, p.cutOff(v, c, cut, "it is not in the archived WAL that joins a backup, and segment %s %s", cut.Gap, cut.trouble())
	case p.Target.Kind == XID:
		return best, p.unreachable(v, c, "no commit or abort of that number is archived")
	}
	return best, p.unreachable(v, c, "no restore point of that name is archived")
}

// elsewhere says on which other timelines the target could be reached.
func (v View) elsewhere(t Target, not wal.History) string {
	var found []string
	for tli, h := range v.Histories {
		if tli == not.Timeline {
			continue
		}
		other := &Plan{Target: t, History: h, Timeline: tli}
		if other.resolve(v, v.candidates(h, t.Backup)) == nil {
			found = append(found, fmt.Sprintf("--target-timeline %d", tli))
		}
	}
	if len(found) == 0 {
		return ""
	}
	slices.Sort(found)
	return "it can be reached on another timeline: " + strings.Join(found, " or ")
}

// unreachable is the error with the range that can be reached instead.
func (p *Plan) unreachable(v View, c []*basebackup.Header, format string, args ...any) error {
	e := &Unreachable{Target: p.Target, Why: fmt.Sprintf(format, args...)}
	r, err := v.reachable(p.History, c)
	if err != nil {
		return errors.Join(e, fmt.Errorf("find out what is reachable: %w", err))
	}
	e.Range = r
	// Before the range, the nearest moment is where it begins.
	before := p.Target.Kind == LSN && p.Target.LSN < r.First.LSN || p.Target.Kind == Time && !p.Target.Time.After(r.First.Time)
	if before {
		return hint.Wrap(e, "the earliest that can be had is the end of the first backup: --target-immediate --backup %s", c[0].ID)
	}
	return e
}

// reachable is the range on a history: from the first backup's end as far as the newest backup leads.
func (v View) reachable(h wal.History, c []*basebackup.Header) (*Range, error) {
	first, last := c[0], c[len(c)-1]
	r := &Range{Timeline: h.Timeline, First: Moment{LSN: first.StopLSN, Time: first.Finished, Kind: "BACKUP"}}
	reach, err := v.Reach(h, last.StartLSN)
	if err != nil {
		return nil, err
	}
	r.End, r.Gap, r.Conflict = reach.End, reach.Gap, reach.Conflict
	r.Last, err = v.latest(reach.Path, last.StartLSN)
	return r, err
}
