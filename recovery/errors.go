package recovery

import (
	"errors"
	"fmt"
	"strings"

	"pitr/archive"
	"pitr/internal/wal"
)

var (
	// ErrUnreachable says that the archive does not lead to the target. The error is an *Unreachable.
	ErrUnreachable = errors.New("target not reachable")
	// ErrRefused says that going on would lose data, or disturb a server that runs.
	ErrRefused = errors.New("refused")
	// ErrOutdated is the ErrRefused of a plan from before something was archived that recovery would leave out. Nothing
	// was touched, and a plan made anew has it.
	ErrOutdated = fmt.Errorf("%w: the archive has grown since the plan was made", ErrRefused)
)

// Range is what can be reached on one timeline's history.
type Range struct {
	Timeline wal.Timeline
	// First is the earliest moment: the end of a backup. Its XID is 0.
	First Moment
	// Last is the latest that something was logged at in WAL that joins a backup without a gap, and End the end of that WAL.
	Last Moment
	End  wal.LSN
	// Gap is the first segment that can't be had behind End, although the archive goes on.
	Gap string
	// Conflict: it is archived with several contents, none of them recorded as the right one. Else it is missing.
	Conflict bool
}

// String is the range for a sentence.
func (r Range) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "reachable on timeline %d: from %s (%s, the end of a backup)", r.Timeline, formatTime(r.First.Time), r.First.LSN)
	if r.Last.LSN != 0 {
		fmt.Fprintf(&b, " to %s (%s)", formatTime(r.Last.Time), r.Last.LSN)
	}
	fmt.Fprintf(&b, ", WAL up to %s", r.End)
	if r.Gap != "" {
		fmt.Fprintf(&b, ", where segment %s %s", r.Gap, gapText(r.Conflict))
	}
	return b.String()
}

// Unreachable is the ErrUnreachable.
type Unreachable struct {
	Target Target
	Why    string
	Range  *Range // nil: nothing at all can be reached
	// Conflict: a segment with several contents is the reason, so that this is an archive.ErrConflict as well.
	Conflict bool
}

func (e *Unreachable) Error() string {
	s := fmt.Sprintf("%s: %v: %s", e.Target, ErrUnreachable, e.Why)
	if e.Range != nil {
		s += "; " + e.Range.String()
	}
	return s
}

// Is makes errors.Is(err, ErrUnreachable) true.
func (e *Unreachable) Is(target error) bool {
	return target == ErrUnreachable || e.Conflict && target == archive.ErrConflict
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}
