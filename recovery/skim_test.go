package recovery

import (
	"math/rand/v2"
	"testing"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/wal"
)

// Plans over random WAL are the same with rolled-up indexes, whatever is asked for: plan compares them.
func TestSkimmedPlansAreTheSame(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 0))
		f := &fake{end: map[wal.Timeline]wal.LSN{1: 0xD00000}}
		var facts []archive.Fact
		xid, prepared := uint32(700), []uint32(nil)
		ms := 0
		for no := wal.LSN(1); no <= 12; no++ {
			// Few facts in a segment, so that many hold none, or none of a kind.
			for i := range wal.LSN(r.IntN(5)) {
				lsn := no*testSeg + 0x100 + i*0x1000
				ms += 1000
				at := ms - r.IntN(5)*500 // times don't rise, and are equal now and then
				switch r.IntN(10) {
				case 0, 1, 2, 3:
					facts = append(facts, commit(lsn, xid, at, xid+1))
				case 4, 5:
					facts = append(facts, txn(wal.Abort, lsn, xid, at))
				case 6:
					facts = append(facts, checkpoint(lsn, at))
				case 7:
					facts = append(facts, point(lsn, "point", at))
				case 8:
					facts = append(facts, fact(lsn, lsn+0x100, &wal.Prepared{Start: lsn, End: lsn + 0x100, Time: wal.TimestampOf(noon) + wal.Timestamp(at)*1000, XID: xid, GID: "g"}))
					prepared = append(prepared, xid)
				case 9:
					if len(prepared) > 0 {
						kind := wal.CommitPrepared + wal.TxnKind(r.IntN(2))
						facts = append(facts, txn(kind, lsn, prepared[0], at))
						prepared = prepared[1:]
					}
				}
				xid += 2
			}
		}
		if len(facts) == 0 {
			t.Fatal("no facts")
		}
		f.facts = map[wal.Timeline][]archive.Fact{1: facts}
		f.backups = []*basebackup.Header{backup(1, 1, 0x100000, 0x100080, 0), backup(2, 1, 0x480000, 0x480080, ms/3)}
		hidden := 0
		for x := range f.skimmed([]archive.Step{{Timeline: 1, First: 1, Last: 12}}, facts, 0x100000, always) {
			if _, ok := x.What.(*archive.Skimmed); ok {
				hidden++
			}
		}
		if hidden < 3 {
			t.Errorf("seed %d: %d segments are skimmed", seed, hidden)
		}
		targets := []Target{{}, {Kind: Immediate}, {Kind: Name, Name: "point"}, {Kind: XID, XID: 5}}
		for at := -1000; at < ms+2000; at += 700 {
			targets = append(targets, atTime(at), beforeTime(at))
		}
		for _, x := range facts {
			targets = append(targets, Target{Kind: LSN, LSN: x.Start, Exclusive: true}, Target{Kind: LSN, LSN: x.Start})
			if m, _, ends, ok := moment(x); ok && ends {
				targets = append(targets, Target{Kind: XID, XID: m.XID}, Target{Kind: XID, XID: m.XID + 1}, Target{Kind: Time, Time: m.Time})
			}
		}
		for _, target := range targets {
			_, _ = plan(t, f, target) // refusals are compared, too
		}
	}
}
