package basebackup

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"pitr/archive"
	"pitr/internal/wal"
)

// Keep says what retention must leave.
type Keep struct {
	// Window: every moment this far back stays recoverable. 0: none need.
	Window time.Duration
	// Count: so many of the newest backups stay, however old. At least one always does.
	Count int
}

// Verdict is what retention decided about one backup.
type Verdict struct {
	ID     string
	Keep   bool
	Reason string
	// Alone: the backup stays for its own sake, with no more WAL than makes it consistent.
	Alone bool
}

// clockDoubt is by how much longer than the window there may be no backup before the clock, or the service, is doubted.
const clockDoubt = 24 * time.Hour

// Expire decides which backups may go, in the order they were given. It is pure: the same input gives the same verdicts.
// lines are those of the coverage from which it is decided which WAL goes.
//
// Of each timeline's history, those backups stay that finished within the window, and the newest one that finished
// before it began: the moments from the window's beginning on are reached from that. The newest k.Count backups stay,
// those of the newest timeline's history too, and so do those that are pinned, if for nothing else alone. A backup whose
// own WAL is not all there may stay, but never takes the place of one that can be restored.
//
// A history that was left for another one before the window began has no moments in it: that is so once a backup on a
// younger timeline finished by then, and since then no WAL of this one was stored.
//
// Clocks are not trusted. On one history, what is later in the WAL was later, whatever the clock said then. And if for
// longer than the window no backup has finished, it is counted back from the last one: then either the clock has jumped,
// or backups have ended and the old ones are the last.
func Expire(all []*Header, pins map[string]bool, k Keep, lines []Line, now time.Time) []Verdict {
	e := expiry{k: k, lines: withBackups(lines, all), now: now, reasons: make(map[string]string)}
	e.begin, e.since = window(all, k, now)
	var good []*Header
	for _, h := range all {
		if restorable(h, lines) {
			good = append(good, h)
		}
	}
	e.decide(good)
	e.decide(all)
	verdicts := make([]Verdict, len(all))
	for i, h := range all {
		v := Verdict{ID: h.ID, Reason: e.reasons[h.ID]}
		v.Keep = v.Reason != ""
		switch {
		case v.Keep && pins[h.ID]:
			v.Reason = "pinned, and " + v.Reason
		case pins[h.ID]:
			v.Keep, v.Alone, v.Reason = true, true, "pinned"
		case !v.Keep:
			v.Reason = "no moment since " + e.since + " needs it"
		}
		verdicts[i] = v
	}
	return verdicts
}

// window returns when the window begins, and that in words.
func window(all []*Header, k Keep, now time.Time) (begin time.Time, since string) {
	last := now
	if len(all) > 0 {
		newest := slices.MaxFunc(all, func(a, b *Header) int { return a.Finished.Compare(b.Finished) })
		if f := newest.Finished; now.Sub(f) > k.Window+clockDoubt {
			last = f
		}
	}
	begin = last.Add(-k.Window)
	since = begin.UTC().Format(time.RFC3339)
	if last != now {
		since += " (counted back from the last backup, since none has finished for so long)"
	}
	return begin, since
}

// expiry is the deciding.
type expiry struct {
	k       Keep
	lines   []Line // newest timeline first
	now     time.Time
	begin   time.Time
	since   string
	reasons map[string]string // of those that stay, by ID
}

func (e *expiry) keep(h *Header, format string, args ...any) {
	if e.reasons[h.ID] == "" {
		e.reasons[h.ID] = fmt.Sprintf(format, args...)
	}
}

// decide keeps what would have to stay if there were no other backups than these.
func (e *expiry) decide(all []*Header) {
	newest := slices.Clone(all)
	slices.SortStableFunc(newest, func(a, b *Header) int {
		return cmp.Or(b.Finished.Compare(a.Finished), cmp.Compare(b.ID, a.ID))
	})
	n := max(e.k.Count, 1)
	for _, h := range newest[:min(n, len(newest))] {
		e.keep(h, "one of the newest %d", n)
	}
	for i, line := range e.lines {
		on := onLine(line.History, all)
		if i == 0 {
			for _, h := range on[max(0, len(on)-n):] {
				e.keep(h, "one of the newest %d on timeline %d, the newest", n, line.Timeline)
			}
		}
		e.line(line, on, all)
	}
}

// line keeps what the moments on one timeline's history need. on are the backups on it, by position.
func (e *expiry) line(line Line, on, all []*Header) {
	if e.k.Window > 0 {
		within := slices.IndexFunc(on, e.withinOn(on))
		if within < 0 {
			within = len(on)
		}
		for _, h := range on[within:] {
			e.keep(h, "within the window, since %s", e.since)
		}
		if within == len(on) && e.left(line, all) {
			return
		}
		for i := within - 1; i >= 0; i-- {
			e.keep(on[i], "the window, since %s, begins with it", e.since)
			if !e.wrong(on[:i], on[i]) {
				return
			}
		}
	} else if len(on) > 0 {
		return
	}
	// Nothing on the line itself serves the whole of the window. Where it begins is not known: maybe on any older one.
	if line.Unknown && line.WAL {
		for _, h := range all {
			if h.Timeline < line.Timeline {
				e.keep(h, "the history of timeline %d, which may go on from it, is not archived", line.Timeline)
			}
		}
	}
}

// withinOn returns what tells whether a backup finished within the window. A time yet to come is a wrong clock's: the
// backup had finished when the next one on the line had.
func (e *expiry) withinOn(on []*Header) func(h *Header) bool {
	finished := make(map[*Header]time.Time, len(on))
	next := e.now
	for _, h := range slices.Backward(on) {
		if !h.Finished.After(e.now) {
			next = h.Finished
		}
		finished[h] = next
	}
	return func(h *Header) bool { return finished[h].After(e.begin) }
}

// wrong tells whether a backup says that it finished in the future, or before one of those that it follows in the WAL:
// then it may have finished at any time.
func (e *expiry) wrong(before []*Header, h *Header) bool {
	return h.Finished.After(e.now) ||
		slices.ContainsFunc(before, func(b *Header) bool { return b.Finished.After(h.Finished) && !b.Finished.After(e.now) })
}

// left tells whether a timeline without backups in the window had been left for a younger one before it began.
func (e *expiry) left(line Line, all []*Header) bool {
	return !line.Written.After(e.begin) &&
		slices.ContainsFunc(all, func(h *Header) bool { return h.Timeline > line.Timeline && !h.Finished.After(e.begin) })
}

// onLine returns the backups all of which lies on a history, in the order of their positions.
func onLine(line wal.History, all []*Header) []*Header {
	var on []*Header
	for _, h := range all {
		// The byte before the end is the last one that the backup needs.
		if line.Owner(h.StartLSN) == h.Timeline && line.Owner(h.StopLSN-1) == h.Timeline {
			on = append(on, h)
		}
	}
	slices.SortStableFunc(on, func(a, b *Header) int {
		return cmp.Or(cmp.Compare(a.StopLSN, b.StopLSN), a.Finished.Compare(b.Finished), cmp.Compare(a.ID, b.ID))
	})
	return on
}

// Line is what is archived of a timeline, as far as retention looks at it.
type Line struct {
	wal.History
	// Unknown: the history is not archived, or nobody has chosen between several. It stands as one without ancestors.
	Unknown bool
	// WAL: there are segments of the timeline.
	WAL bool
	// Written is when the newest of them was stored, by the store's clock.
	Written time.Time

	coverage *archive.Coverage
}

// Lines returns what a coverage says of each timeline.
func Lines(c *archive.Coverage) []Line {
	var lines []Line
	for _, tli := range c.TimelinesInOrder() {
		t := c.Timelines[tli]
		l := Line{WAL: len(t.Runs) > 0 || len(t.Partials) > 0, Written: t.Written, coverage: c}
		var err error
		if l.History, err = c.History(tli); err != nil {
			l.History, l.Unknown = wal.History{Timeline: tli}, true
		}
		lines = append(lines, l)
	}
	return lines
}

// withBackups returns the lines, newest timeline first, with one for each timeline of a backup that has none.
func withBackups(lines []Line, all []*Header) []Line {
	out := slices.Clone(lines)
	for _, h := range all {
		if !slices.ContainsFunc(out, func(l Line) bool { return l.Timeline == h.Timeline }) {
			out = append(out, Line{History: wal.History{Timeline: h.Timeline}, Unknown: h.Timeline != 1})
		}
	}
	slices.SortFunc(out, func(a, b Line) int { return cmp.Compare(b.Timeline, a.Timeline) })
	return out
}

// restorable tells whether the WAL is archived that makes a backup consistent.
func restorable(h *Header, lines []Line) bool {
	for _, l := range lines {
		if l.Timeline == h.Timeline && l.coverage != nil {
			return MissingWAL(l.coverage, h) == nil
		}
	}
	return false
}

// MissingWAL returns the first segment that is not archived of those that make a backup consistent; nil if all are.
func MissingWAL(c *archive.Coverage, h *Header) *archive.Missing {
	// A backup is all on its own timeline: ancestors don't matter.
	_, missing := c.Path(wal.History{Timeline: h.Timeline}, h.StartLSN, h.StopLSN)
	return missing
}

// Needs says which WAL must stay for the backups that do: everything from each one's start on, but for those that stay
// alone only what makes them consistent. verdicts are Expire's of all.
func Needs(all []*Header, verdicts []Verdict) []archive.Need {
	var needs []archive.Need
	for i, v := range verdicts {
		if !v.Keep {
			continue
		}
		h := all[i]
		n := archive.Need{Timeline: h.Timeline, From: h.StartLSN, Why: "backup " + h.ID}
		if v.Alone {
			n.To = h.StopLSN
		}
		needs = append(needs, n)
	}
	return needs
}
