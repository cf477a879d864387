package recovery

import (
	"errors"
	"fmt"
	"slices"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/hint"
	"pitr/internal/wal"
)

// trouble says what is the matter with the segment that is called Gap, for a sentence that names it.
func (r Reach) trouble() string { return gapText(r.Conflict) }

func gapText(conflict bool) string {
	if conflict {
		return "has several contents, none of them recorded as the right one"
	}
	return "is missing"
}

// behindGap adds to a sentence what ends r too early; nothing if it goes on to the end of the archive.
func (r Reach) behindGap() string {
	if r.Gap == "" {
		return ""
	}
	return fmt.Sprintf(": segment %s %s", r.Gap, r.trouble())
}

// cutOff is unreachable where it may be that r ends too early. Of a segment with several contents people can say which one
// holds, and then more can be reached.
func (p *Plan) cutOff(v View, c []*basebackup.Header, r Reach, format string, args ...any) error {
	err := p.unreachable(v, c, format, args...)
	if e, ok := errors.AsType[*Unreachable](err); ok && r.Conflict {
		e.Conflict = true
		return hint.Wrap(err, "`pitr wal list` shows the contents, `pitr wal resolve %s DIGEST` records which one holds", r.Gap)
	}
	return err
}

// tellOfRefused names the segments of the way, and what lies behind it where the plan is for everything, under whose names
// contents were refused when they were to be archived.
func (p *Plan) tellOfRefused(v View) {
	last := p.Path[len(p.Path)-1].Last
	for _, name := range v.Refused {
		tli, no, err := wal.ParseSegmentName(name, v.SegSize)
		if err != nil {
			continue // a history, or the beginning of a segment
		}
		replayed := slices.ContainsFunc(p.Path, func(s archive.Step) bool { return s.Timeline == tli && s.First <= no && no <= s.Last })
		const list = "`pitr wal list` shows the contents, `pitr wal resolve %s DIGEST` "
		switch {
		case replayed:
			p.obstacle(false, fmt.Sprintf(list+"records another choice", name),
				"segment %s, which is replayed, was offered for archiving with another content as well, which was refused: two servers have written it", name)
		case p.Target.Kind == End && tli == p.Timeline && no > last:
			p.obstacle(false, fmt.Sprintf(list+"has it replayed, too", name),
				"segment %s, behind the end of the archived WAL, was refused: two servers have written it", name)
		}
	}
}
