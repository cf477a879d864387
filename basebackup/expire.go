package basebackup

import (
	"cmp"
	"fmt"
	"maps"
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

// Expire decides which backups may go, in the order they were given. It is pure: the same input gives the same verdicts.
// lines are the histories of all timelines that there is WAL of; one that is missing counts as having no ancestors.
//
// Of each timeline's history, those backups stay that finished within the window, and the newest one that finished
// before it began: the moments from the window's beginning on are reached from that. The newest k.Count backups stay,
// the newest on the newest timeline's history does, and so do those that are pinned, if for nothing else alone.
//
// A history that was left for another one before the window began has no moments in it: that is so once a backup on a
// younger timeline finished by then.
func Expire(all []*Header, pins map[string]bool, k Keep, lines []wal.History, now time.Time) []Verdict {
	newest := slices.Clone(all)
	slices.SortStableFunc(newest, func(a, b *Header) int {
		return cmp.Or(b.Finished.Compare(a.Finished), cmp.Compare(b.ID, a.ID))
	})
	reasons := make(map[string]string)
	keep := func(h *Header, format string, args ...any) {
		if reasons[h.ID] == "" {
			reasons[h.ID] = fmt.Sprintf(format, args...)
		}
	}
	for i, n := 0, max(k.Count, 1); i < min(n, len(newest)); i++ {
		keep(newest[i], "one of the newest %d", n)
	}
	begin := now.Add(-k.Window)
	since := begin.UTC().Format(time.RFC3339)
	for i, line := range allLines(all, lines) {
		for j, h := range onLine(line, newest) {
			if i == 0 && j == 0 {
				keep(h, "the newest on timeline %d, the newest", line.Timeline)
			}
			if k.Window <= 0 {
				break
			}
			if h.Finished.After(begin) {
				keep(h, "within the window, since %s", since)
				continue
			}
			if !leftBefore(line.Timeline, all, begin) {
				keep(h, "the window, since %s, begins with it", since)
			}
			break
		}
	}
	verdicts := make([]Verdict, len(all))
	for i, h := range all {
		v := Verdict{ID: h.ID, Reason: reasons[h.ID]}
		v.Keep = v.Reason != ""
		switch {
		case v.Keep && pins[h.ID]:
			v.Reason = "pinned, and " + v.Reason
		case pins[h.ID]:
			v.Keep, v.Alone, v.Reason = true, true, "pinned"
		case !v.Keep:
			v.Reason = "no moment since " + since + " needs it"
		}
		verdicts[i] = v
	}
	return verdicts
}

// allLines returns the histories, newest timeline first, with one for each timeline of a backup that has none.
func allLines(all []*Header, lines []wal.History) []wal.History {
	by := make(map[wal.Timeline]wal.History)
	for _, h := range all {
		by[h.Timeline] = wal.History{Timeline: h.Timeline}
	}
	for _, l := range lines {
		by[l.Timeline] = l
	}
	return slices.SortedFunc(maps.Values(by), func(a, b wal.History) int { return cmp.Compare(b.Timeline, a.Timeline) })
}

// onLine returns the backups all of which lies on a history, in the order given.
func onLine(line wal.History, all []*Header) []*Header {
	var on []*Header
	for _, h := range all {
		// The byte before the end is the last one that the backup needs.
		if line.Owner(h.StartLSN) == h.Timeline && line.Owner(h.StopLSN-1) == h.Timeline {
			on = append(on, h)
		}
	}
	return on
}

// leftBefore tells whether the timeline had been left for a younger one before a moment.
func leftBefore(tli wal.Timeline, all []*Header, moment time.Time) bool {
	return slices.ContainsFunc(all, func(h *Header) bool { return h.Timeline > tli && !h.Finished.After(moment) })
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

// Lines returns the histories of the timelines that a coverage has WAL of.
func Lines(c *archive.Coverage) []wal.History {
	var lines []wal.History
	for _, tli := range c.TimelinesInOrder() {
		if h, err := c.History(tli); err == nil {
			lines = append(lines, h)
		}
	}
	return lines
}
