package recovery

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/wal"
)

// A time before the first backup is not reachable only because no transaction ended between that and the backup's end, of
// which the archive knows nothing; a time while it was taken is.
func TestTimeBeforeFirstBackup(t *testing.T) {
	f := line()
	f.backups[0].Started = at(700).Time()
	f.facts[1] = append(f.facts[1][:0:0], checkpoint(0x100040, 0), commit(0x110000, 701, 10000), commit(0x110100, 702, 10100))
	f.backups = f.backups[:1]
	for ms, want := range map[int]string{
		-60000: "it lies before the start of backup",
		-1:     "it lies before the start of backup",
		500:    "it lies before the start of backup", // the checkpoint's time may be cut from 999 ms
		700:    "",
		5000:   "",
	} {
		p, err := MakePlan(f.view(), atTime(ms), Destination{Dir: "/to", Program: "/pitr"})
		switch {
		case want == "" && (err != nil || p.Stop != Stop{LSN: 0x110000, End: 0x110030}):
			t.Errorf("%d ms: %+v, %v", ms, p, err)
		case want != "" && (!errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), want)):
			t.Errorf("%d ms: %v, want %s", ms, err, want)
		}
	}
	// A backup taken while the clock was ahead begins later, by it, than what followed; the WAL knows better.
	f.backups[0].Started, f.backups[0].Finished = at(0).Time().Add(24*time.Hour), at(0).Time().Add(25*time.Hour)
	if p, err := MakePlan(f.view(), atTime(10050), Destination{Dir: "/to", Program: "/pitr"}); err != nil || p.Stop.LSN != 0x110100 {
		t.Errorf("%+v, %v", p, err)
	}
	// Nor does a checkpoint alone, which comes later, prove that the time was not before everything.
	f = &fake{backups: []*basebackup.Header{f.backups[0]}, end: f.end, facts: map[wal.Timeline][]archive.Fact{1: {checkpoint(0x100040, 0), checkpoint(0x120000, 20000)}}}
	f.backups[0].Started, f.backups[0].Finished = at(700).Time(), at(1000).Time()
	if _, err := MakePlan(f.view(), atTime(-5000), Destination{Dir: "/to", Program: "/pitr"}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("idle server: %v", err)
	}
	if p, err := MakePlan(f.view(), atTime(5000), Destination{Dir: "/to", Program: "/pitr"}); err != nil || p.Stop.LSN != 0x120000 {
		t.Errorf("idle server: %+v, %v", p, err)
	}
}
