package recovery

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"pitr/archive"
	"pitr/internal/wal"
)

// After a restore, a moment before it lies on two timelines: on the one that was left, with all that had happened by then,
// and on the one that was opened, which has nothing of it. A search along the latter ends where it parts from the former,
// and that is right for PostgreSQL, but it may not be what is meant.

// tellOfBranches names the other timelines that have transactions of before the target which the plan leaves out, unless
// that of the plan has some of its own.
func (p *Plan) tellOfBranches(v View) error {
	if p.Target.Kind != Time || p.Target.Timeline.Number != 0 {
		return nil
	}
	type branch struct {
		wal.History
		at wal.LSN // where it parts from the plan's
	}
	var others []branch
	for tli, h := range v.Histories {
		if at := parting(p.History, h); tli != p.Timeline && at <= p.Stop.LSN {
			others = append(others, branch{h, at})
		}
	}
	// Where something ended behind one parting, it did behind those before.
	slices.SortFunc(others, func(a, b branch) int { return cmp.Or(cmp.Compare(b.at, a.at), cmp.Compare(b.Timeline, a.Timeline)) })
	for _, o := range others {
		opened, quiet, err := p.quietFrom(v, o.at)
		if err != nil {
			return err
		}
		if !quiet {
			return nil
		}
		n, last, err := p.endsOn(v, o.History, o.at)
		if err != nil {
			// The plan stands without it.
			p.obstacle(false, "", "whether timeline %d has more transactions up to the target can't be told: %v", o.Timeline, err)
			continue
		}
		if n == 0 || !opened.IsZero() && !p.Target.past(wal.TimestampOf(opened)) && !last.After(opened) {
			continue // or they were given up before the target
		}
		began := ""
		if !opened.IsZero() {
			began = fmt.Sprintf(", went on at %s,", formatTime(opened))
		}
		p.obstacle(false, fmt.Sprintf("--target-timeline %d restores that one", o.Timeline),
			"timeline %d parted from timeline %d at %s%s and has no transaction up to the target; timeline %d has %d more, the last of %s",
			p.Timeline, o.Timeline, o.at, began, o.Timeline, n, formatTime(last))
	}
	return nil
}

// parting is where two histories become different.
func parting(a, b wal.History) wal.LSN {
	n := 0
	for n < len(a.Switches) && n < len(b.Switches) && a.Switches[n].Timeline == b.Switches[n].Timeline && a.Switches[n].At == b.Switches[n].At {
		n++
	}
	at := ^wal.LSN(0)
	next := func(h wal.History) wal.Timeline {
		for _, s := range h.Switches[n:] { // their positions need not rise
			at = min(at, s.At)
		}
		if n < len(h.Switches) {
			return h.Switches[n].Timeline
		}
		return h.Timeline
	}
	if next(a) != next(b) && n > 0 {
		at = min(at, a.Switches[n-1].At) // both left the same timeline at the same place
	}
	return at
}

// quietFrom tells whether the plan replays no end of a transaction from a position on, and when something was logged there
// first (zero: nothing). It is false where the WAL from there on is not archived any more.
func (p *Plan) quietFrom(v View, from wal.LSN) (opened time.Time, quiet bool, err error) {
	r, err := v.Reach(p.History, from)
	if err != nil || r.End < p.Stop.LSN {
		return opened, false, err
	}
	for f, err := range readable(v.Facts(r.Path, from, enoughBefore(p.Stop.LSN, v.SegSize))) {
		if err != nil {
			return opened, false, err
		}
		if _, skimmed := f.What.(*archive.Skimmed); skimmed {
			return opened, false, nil
		}
		m, _, ends, ok := moment(f)
		if ok && opened.IsZero() {
			opened = m.Time
		}
		if !p.Stop.covers(f.Start) {
			break
		}
		if ends {
			return opened, false, nil
		}
	}
	return opened, true, nil
}

// endsOn counts the transactions that recovery to the target along another history would replay from a position on, and
// gives the latest time of them.
func (p *Plan) endsOn(v View, h wal.History, from wal.LSN) (n int, last time.Time, err error) {
	r, err := v.Reach(h, from)
	if err != nil {
		return 0, last, err
	}
	latest := func(at wal.Timestamp) {
		if t := at.Time(); t.After(last) {
			last = t
		}
	}
	for f, err := range readable(v.Facts(r.Path, from, p.Target.enough)) {
		if err != nil {
			return 0, last, err
		}
		if s, skimmed := f.What.(*archive.Skimmed); skimmed {
			n += s.Commits + s.Aborts
			latest(s.MaxTime)
			continue
		}
		_, at, ends, _ := moment(f)
		switch {
		case !ends:
		case p.Target.past(at):
			return n, last, nil
		default:
			n++
			latest(at)
		}
	}
	return n, last, nil
}
