package recovery

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"pitr/internal/wal"
	"sync"
)

// Kind says what names the moment to go back to.
type Kind int

const (
	End       Kind = iota // everything that is archived on the timeline
	Time                  // the last moment at which the clock said Time
	LSN                   // a position in the WAL
	XID                   // the end of a transaction
	Name                  // a restore point
	Immediate             // the end of the base backup: the first consistent moment
)

// String is the kind as the flag that chooses it calls it.
func (k Kind) String() string {
	return [...]string{"end", "time", "lsn", "xid", "name", "immediate"}[k]
}

// Action says what the server does when it has reached the target.
type Action string

const (
	Promote  Action = "promote"
	Pause    Action = "pause"
	Shutdown Action = "shutdown"
)

// Timelines a target may be looked for on.
const (
	// TimelineDefault is TimelineCurrent for Immediate, since the end of a backup lies on the backup's own timeline, and
	// TimelineLatest for everything else.
	TimelineDefault = ""
	TimelineLatest  = "latest"  // the highest timeline that a backup leads to
	TimelineCurrent = "current" // the one that the backup was taken on
)

// TimelineSpec chooses the timeline: a word above, or a number if the word is empty and the number is not 0.
type TimelineSpec struct {
	Word   string
	Number wal.Timeline
}

// String is what the user wrote.
func (s TimelineSpec) String() string {
	if s.Number != 0 {
		return strconv.FormatUint(uint64(s.Number), 10)
	}
	return s.Word
}

// Target is the moment to go back to, as the user asks for it. The zero value is the end of the archive on the latest
// timeline, promoted there.
type Target struct {
	Kind Kind
	Time time.Time // whole microseconds, in the zone it was given in
	LSN  wal.LSN
	XID  uint32
	Name string

	// Exclusive stops before what is named instead of after it. For Time that is before the transactions that ended in
	// exactly that microsecond.
	Exclusive bool
	Timeline  TimelineSpec
	Action    Action // empty: Promote
	Backup    string // id of the backup to start from; empty: the newest that serves
}

// Flags is a target in words. A nil pointer is a flag that was not given.
type Flags struct {
	Time, LSN, XID, Name *string
	Immediate            bool
	Exclusive            bool
	Timeline             string
	Action               string
	Backup               string
}

// ParseTarget reads a target. All its errors are mistakes in the use of the flags.
func ParseTarget(f Flags) (Target, error) {
	t := Target{Exclusive: f.Exclusive, Action: Promote, Backup: f.Backup}
	given := 0
	for _, flag := range []struct {
		kind  Kind
		value *string
		read  func(string) error
	}{
		{Time, f.Time, func(s string) (err error) { t.Time, err = ParseTime(s); return err }},
		{LSN, f.LSN, func(s string) (err error) { t.LSN, err = wal.ParseLSN(s); return err }},
		{XID, f.XID, func(s string) (err error) { t.XID, err = parseXID(s); return err }},
		{Name, f.Name, func(s string) error { t.Name = s; return checkName(s) }},
	} {
		if flag.value == nil {
			continue
		}
		given++
		t.Kind = flag.kind
		if err := flag.read(*flag.value); err != nil {
			return Target{}, fmt.Errorf("--target-%s: %w", flag.kind, err)
		}
	}
	if f.Immediate {
		given++
		t.Kind = Immediate
	}
	if given > 1 {
		return Target{}, errors.New("more than one target: give one of --target-time, --target-lsn, --target-xid, --target-name and --target-immediate")
	}
	if t.Exclusive && t.Kind != Time && t.Kind != LSN && t.Kind != XID {
		return Target{}, errors.New("--exclusive goes with --target-time, --target-lsn and --target-xid only")
	}
	var err error
	if t.Timeline, err = parseTimeline(f.Timeline); err != nil {
		return Target{}, err
	}
	switch a := Action(f.Action); a {
	case "":
	case Promote, Pause, Shutdown:
		t.Action = a
	default:
		return Target{}, fmt.Errorf("--target-action: %q is not one of promote, pause and shutdown", f.Action)
	}
	return t, nil
}

func parseTimeline(s string) (TimelineSpec, error) {
	switch s {
	case TimelineDefault, TimelineLatest, TimelineCurrent:
		return TimelineSpec{Word: s}, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	// A number with leading zeros is most likely the hexadecimal one of a file's name.
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return TimelineSpec{}, fmt.Errorf("--target-timeline: %q is not latest, current or a decimal number from 1 on", s)
	}
	return TimelineSpec{Number: wal.Timeline(n)}, nil
}

// parseXID reads a transaction's number. pg_current_xact_id() shows 64 bits of it, of which WAL holds the lower half.
func parseXID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a transaction's number", s)
	}
	const firstNormal = 3
	if uint32(n) < firstNormal {
		return 0, fmt.Errorf("%s is not the number of any ordinary transaction", s)
	}
	return uint32(n), nil
}

// checkName refuses what pg_create_restore_point refuses too (MAXFNAMELEN in src/include/access/xlog_internal.h).
func checkName(s string) error {
	switch {
	case s == "":
		return errors.New("a restore point has a name")
	case len(s) >= 64:
		return fmt.Errorf("%q is too long: a restore point's name has at most 63 bytes", s)
	case strings.ContainsRune(s, 0) || !utf8.ValidString(s):
		return fmt.Errorf("%q can't be the name of a restore point", s)
	}
	return nil
}

var timeText = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(\d{4})-(\d\d)-(\d\d)[Tt ] *(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)? *(?:([Zz]|UTC|utc|GMT)|([+-])(\d\d)(?::?(\d\d))?(?::?(\d\d))?)?$`)
})

// ParseTime reads a moment as RFC 3339 or PostgreSQL write it. Without a zone it is UTC. It is exact: what has more
// than the six digits of fraction that PostgreSQL's clock has is refused, and so are zones that are known by a name
// only, which may mean anything.
func ParseTime(s string) (time.Time, error) {
	m := timeText().FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return time.Time{}, fmt.Errorf("%q is not a time: want 2026-11-22T14:03:05+01:00 or '2026-11-22 14:03:05.123456+01'; without a zone it is UTC", s)
	}
	num := func(i int) int {
		n, _ := strconv.Atoi(m[i]) // digits, or nothing
		return n
	}
	frac := strings.TrimRight(m[7], "0")
	if len(frac) > 6 {
		return time.Time{}, fmt.Errorf("%q has more than six digits after the second, which is all that PostgreSQL's clock has", s)
	}
	micros, _ := strconv.Atoi((frac + "000000")[:6])
	zone := time.UTC
	if m[9] != "" {
		hours, minutes, seconds := num(10), num(11), num(12)
		if hours > 15 || minutes > 59 || seconds > 59 {
			return time.Time{}, fmt.Errorf("%q: no zone is that far from UTC", s)
		}
		offset := hours*3600 + minutes*60 + seconds
		if m[9] == "-" {
			offset = -offset
		}
		if offset != 0 {
			zone = time.FixedZone("", offset)
		}
	}
	t := time.Date(num(1), time.Month(num(2)), num(3), num(4), num(5), num(6), micros*1000, zone)
	if t.Year() != num(1) || int(t.Month()) != num(2) || t.Day() != num(3) || t.Hour() != num(4) || t.Minute() != num(5) || t.Second() != num(6) {
		return time.Time{}, fmt.Errorf("%q: there is no such date or time of day", s)
	}
	return t, nil
}

// formatTime prints a moment with all of its microseconds, and the zone it came in.
func formatTime(t time.Time) string { return t.Format("2006-01-02T15:04:05.999999Z07:00") }

// String says what is asked for, for a sentence: "time 2026-11-22T14:03:05Z, exclusive".
func (t Target) String() string {
	var s string
	switch t.Kind {
	case End:
		return "the end of the archive"
	case Time:
		s = "time " + formatTime(t.Time)
	case LSN:
		s = "WAL position " + t.LSN.String()
	case XID:
		s = fmt.Sprintf("transaction %d", t.XID)
	case Name:
		return fmt.Sprintf("restore point %q", t.Name)
	case Immediate:
		return "the end of the backup"
	}
	if t.Exclusive {
		s += ", exclusive"
	}
	return s
}

// timelineWord is the choice of timeline with the default filled in.
func (t Target) timelineWord() string {
	if t.Timeline.Number == 0 && t.Timeline.Word == TimelineDefault {
		if t.Kind == Immediate {
			return TimelineCurrent
		}
		return TimelineLatest
	}
	return t.Timeline.Word
}
