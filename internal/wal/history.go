package wal

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Switch is one line of a timeline history: Timeline was left at At for the next
// line's timeline, or, on the last line, for the one the history belongs to.
type Switch struct {
	Timeline Timeline
	At       LSN
	Reason   string // free text
}

// History lists the ancestors of one timeline, oldest first. The zero value, and
// one without switches, is that of a timeline without ancestors.
//
// Switch points need not rise: recovery of timeline 2 that stops before 2 began
// makes a timeline 3 whose history names both 1 and 2, with 2's switch point
// before 1's. The newest entry then wins, as it does in PostgreSQL
// (tliOfPointInHistory in src/backend/access/transam/timeline.c).
type History struct {
	Timeline Timeline
	Switches []Switch
}

// ParseHistory reads the contents of tli's history file with PostgreSQL's own
// tolerance (readTimeLineHistory in timeline.c): blank lines and lines that begin
// with # do not count, the rest of each line is free text, timelines must rise
// and stay below tli.
func ParseHistory(tli Timeline, data []byte) (History, error) {
	h := History{Timeline: tli}
	fail := func(line []byte, why string) (History, error) {
		const show = 80
		if len(line) > show {
			line = line[:show]
		}
		return History{}, fmt.Errorf("history of timeline %d: line %q: %s", tli, line, why)
	}
	for line := range bytes.SplitSeq(data, []byte{'\n'}) {
		s := string(bytes.TrimLeft(line, " \t\r\v\f"))
		if s == "" || s[0] == '#' {
			continue
		}
		digits := leading(s, func(c byte) bool { return c >= '0' && c <= '9' })
		id, err := strconv.ParseUint(s[:digits], 10, 32)
		if err != nil || id == 0 {
			return fail(line, "want a timeline number first")
		}
		s = strings.TrimLeft(s[digits:], " \t\r\v\f")
		end := leading(s, func(c byte) bool { return c == '/' || isHex(string(rune(c))) })
		at, err := ParseLSN(s[:end])
		if err != nil {
			return fail(line, "want the position of the switch after the timeline")
		}
		if n := len(h.Switches); n > 0 && Timeline(id) <= h.Switches[n-1].Timeline {
			return fail(line, "timelines must rise from line to line")
		}
		h.Switches = append(h.Switches, Switch{Timeline: Timeline(id), At: at, Reason: strings.TrimSpace(s[end:])})
	}
	if n := len(h.Switches); n > 0 && h.Switches[n-1].Timeline >= tli {
		return History{}, fmt.Errorf("history of timeline %d: it names timeline %d as an ancestor", tli, h.Switches[n-1].Timeline)
	}
	return h, nil
}

// leading returns how many of the first bytes of s satisfy ok.
func leading(s string, ok func(byte) bool) int {
	n := 0
	for n < len(s) && ok(s[n]) {
		n++
	}
	return n
}

// Encode returns the history as the contents of a history file, laid out as
// PostgreSQL lays it out.
func (h History) Encode() []byte {
	var b bytes.Buffer
	for i, s := range h.Switches {
		if i > 0 {
			b.WriteByte('\n')
		}
		reason := strings.Map(func(r rune) rune {
			if r == '\n' || r == '\r' {
				return ' '
			}
			return r
		}, s.Reason)
		fmt.Fprintf(&b, "%d\t%s\t%s\n", s.Timeline, s.At, reason)
	}
	return b.Bytes()
}

// Owner returns the timeline whose WAL holds the byte at lsn on this history. At
// a switch point that is the younger timeline. A position that is the end of a
// record belongs to the owner of the byte before it.
func (h History) Owner(lsn LSN) Timeline {
	owner, begin := h.Timeline, LSN(0)
	if n := len(h.Switches); n > 0 {
		begin = h.Switches[n-1].At
	}
	for i := len(h.Switches) - 1; i >= 0 && lsn < begin; i-- {
		owner, begin = h.Switches[i].Timeline, 0
		// A line whose timeline began after it was left covers nothing: go on to
		// the older one while lsn lies before this one's beginning.
		if i > 0 {
			begin = h.Switches[i-1].At
		}
	}
	return owner
}

// Contains reports whether the byte at lsn of timeline tli is part of this
// history.
func (h History) Contains(tli Timeline, lsn LSN) bool { return h.Owner(lsn) == tli }

// Ancestor reports whether tli is this history's own timeline or one of its
// ancestors.
func (h History) Ancestor(tli Timeline) bool {
	if tli == h.Timeline {
		return true
	}
	_, ok := h.SwitchPoint(tli)
	return ok
}

// SwitchPoint returns where this history left its ancestor tli. It is false for
// the history's own timeline and for any that is no ancestor.
func (h History) SwitchPoint(tli Timeline) (LSN, bool) {
	for _, s := range h.Switches {
		if s.Timeline == tli {
			return s.At, true
		}
	}
	return 0, false
}

// Parent returns the last line: the timeline this one was branched from, and
// where. It is false for a timeline without ancestors.
func (h History) Parent() (Switch, bool) {
	if len(h.Switches) == 0 {
		return Switch{}, false
	}
	return h.Switches[len(h.Switches)-1], true
}

// Agrees reports whether two histories tell the same of the same timeline. The
// free text does not count.
func (h History) Agrees(other History) bool {
	return h.Timeline == other.Timeline && len(h.Switches) == len(other.Switches) && h.extends(other.Switches)
}

// Descends reports whether this history runs through the other's timeline and
// tells the same of that timeline's own ancestors. A history descends from
// itself.
func (h History) Descends(from History) bool {
	if h.Timeline == from.Timeline {
		return h.Agrees(from)
	}
	n := len(from.Switches)
	return len(h.Switches) > n && h.Switches[n].Timeline == from.Timeline && h.extends(from.Switches)
}

// extends reports whether the history's first lines are these.
func (h History) extends(first []Switch) bool {
	if len(h.Switches) < len(first) {
		return false
	}
	for i, s := range first {
		if h.Switches[i].Timeline != s.Timeline || h.Switches[i].At != s.At {
			return false
		}
	}
	return true
}
