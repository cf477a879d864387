package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The format is docs/format-wal-index.md; what is written here and there must
// agree.
const (
	indexMagic   = "PWIX"
	indexVersion = 1

	sectionSummary = 1
	sectionFacts   = 2
	sectionTxns    = 3
	sectionBlocks  = 4
	sectionHead    = 5
	sectionTail    = 6

	// plainTxnLen is what the record of a commit without further detail takes up
	// in its page, in bytes.
	plainTxnLen = 40
)

// Encode returns the index in its stored form (docs/format-wal-index.md).
func (ix *Index) Encode() []byte {
	out := make([]byte, 0, 512+8*len(ix.Transactions))
	out = append(out, indexMagic...)
	out = append(out, indexVersion)
	work := *ix // the codec takes addresses; the index itself is only read
	for section := uint8(sectionSummary); section <= sectionTail; section++ {
		c := codec{}
		work.section(&c, section)
		out = append(out, section)
		out = binary.AppendUvarint(out, uint64(len(c.buf)))
		out = append(out, c.buf...)
	}
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
}

// DecodeIndex reads what Encode wrote. Damaged bytes, and those of an unknown
// version, are an error.
func DecodeIndex(data []byte) (*Index, error) {
	const frame = len(indexMagic) + 1 + 4
	if len(data) < frame || string(data[:len(indexMagic)]) != indexMagic {
		return nil, errors.New("WAL index: these are not the bytes of an index")
	}
	if v := data[len(indexMagic)]; v != indexVersion {
		return nil, fmt.Errorf("WAL index: version %d, but this pitr knows only version %d", v, indexVersion)
	}
	end := len(data) - 4
	if got, want := crc32.Checksum(data[:end], castagnoli), binary.LittleEndian.Uint32(data[end:]); got != want {
		return nil, fmt.Errorf("WAL index: checksum is %08X, but the contents give %08X", want, got)
	}
	ix := &Index{}
	rest := data[len(indexMagic)+1 : end]
	for last := uint8(0); len(rest) > 0; {
		id := rest[0]
		n, w := binary.Uvarint(rest[1:])
		if w <= 0 || n > uint64(len(rest)-1-w) {
			return nil, fmt.Errorf("WAL index: section %d: %w", id, errIndexShort)
		}
		c := codec{reading: true, buf: rest[1+w : 1+w+int(n)]}
		rest = rest[1+w+int(n):]
		if id != last+1 {
			return nil, fmt.Errorf("WAL index: section %d after section %d", id, last)
		}
		last = id
		if ix.section(&c, id); c.err == nil && len(c.buf) > 0 {
			c.fail()
		}
		if c.err != nil {
			return nil, fmt.Errorf("WAL index: section %d: %w", id, c.err)
		}
		if len(rest) == 0 && last != sectionTail {
			return nil, fmt.Errorf("WAL index: it ends after section %d", last)
		}
	}
	if ix.SegSize == 0 {
		return nil, errors.New("WAL index: it is empty")
	}
	return ix, nil
}

// section writes or reads one section.
func (ix *Index) section(c *codec, id uint8) {
	switch id {
	case sectionSummary:
		ix.codeSummary(c)
	case sectionFacts:
		ix.codeFacts(c)
	case sectionTxns:
		ix.codeTxns(c)
	case sectionBlocks:
		list(c, 6, &ix.Blocks, codeRelBlocks)
	case sectionHead:
		codeFragment(c, &ix.Head)
	case sectionTail:
		codeFragment(c, &ix.Tail)
	default:
		c.err = errors.New("unknown section")
	}
}

func (ix *Index) codeSummary(c *codec) {
	unsigned(c, &ix.SystemID)
	unsigned(c, &ix.Timeline)
	unsigned(c, &ix.Start)
	unsigned(c, &ix.SegSize)
	unsigned(c, &ix.Major)
	if c.reading && c.err == nil {
		if !ValidSegSize(ix.SegSize) || uint64(ix.Start)%uint64(ix.SegSize) != 0 {
			c.err = errors.New("impossible segment size or start")
			return
		}
	}
	unsigned(c, &ix.First)
	unsigned(c, &ix.Last)
	unsigned(c, &ix.ValidEnd)
	unsigned(c, &ix.Stop.Kind)
	unsigned(c, &ix.Stop.LSN)
	unsigned(c, &ix.Stop.Later)
	c.str(&ix.Stop.Reason)
	c.flags(&ix.Complete, &ix.Switched, &ix.Brief)
	unsigned(c, &ix.Commits)
	unsigned(c, &ix.Aborts)
	delta(c, 0, &ix.MinTime)
	delta(c, ix.MinTime, &ix.MaxTime)
	unsigned(c, &ix.MinXID)
	unsigned(c, &ix.MaxXID)
	unsigned(c, &ix.Minimal)
	unsigned(c, &ix.FPWOff)
	unsigned(c, &ix.Opaque)
}

// codeTxns codes each transaction by its differences to the one before.
func (ix *Index) codeTxns(c *codec) {
	before := Txn{Start: ix.Start, End: ix.Start + plainTxnLen, Time: ix.MinTime, XID: ix.MinXID}
	list(c, 4, &ix.Transactions, func(c *codec, t *Txn) {
		kind1, kind2, detail := t.Kind&1 != 0, t.Kind&2 != 0, t.Detail != nil
		otherLen, otherDB := t.End-t.Start != before.End-before.Start, t.DB != before.DB
		c.flags(&kind1, &kind2, &detail, &otherLen, &otherDB)
		// Records begin at multiples of eight, and so do their successors.
		start, length := t.Start/8, (t.End-t.Start)/8
		delta(c, before.Start/8, &start)
		if otherLen {
			unsigned(c, &length)
		}
		delta(c, before.XID, &t.XID)
		delta(c, before.Time, &t.Time)
		if otherDB {
			unsigned(c, &t.DB)
		}
		if c.reading {
			t.Kind = Commit
			if kind1 {
				t.Kind |= 1
			}
			if kind2 {
				t.Kind |= 2
			}
			if !otherLen {
				length = (before.End - before.Start) / 8
			}
			if !otherDB {
				t.DB = before.DB
			}
			t.Start = start * 8
			t.End = t.Start + length*8
			if detail {
				t.Detail = &TxnDetail{}
			}
		}
		if detail {
			codeDetail(c, t)
		}
		before = *t
	})
}

func codeDetail(c *codec, t *Txn) {
	d := t.Detail
	codeXIDs(c, t.XID, &d.Subxids)
	list(c, 3, &d.Dropped, (*codec).rel)
	c.str(&d.GID)
	unsigned(c, &d.OriginLSN)
	delta(c, 0, &d.OriginTime)
}

// codeXIDs codes each number by its difference to the one before, the first to
// base.
func codeXIDs(c *codec, base uint32, v *[]uint32) {
	list(c, 1, v, func(c *codec, x *uint32) {
		delta(c, base, x)
		base = *x
	})
}

// codeRelBlocks codes rising block numbers by the gaps between them.
func codeRelBlocks(c *codec, b *RelBlocks) {
	c.rel(&b.Rel)
	unsigned(c, &b.Fork)
	limit := b.Limit + 1 // so that NoLimit, by far the most frequent, is one byte
	unsigned(c, &limit)
	if c.reading {
		b.Limit = limit - 1
	}
	next := uint32(0)
	list(c, 1, &b.Blocks, func(c *codec, block *uint32) {
		gap := *block - next
		unsigned(c, &gap)
		if c.reading {
			*block = next + gap
			if *block < next || *block >= b.Limit {
				c.fail() // not rising, or not below the limit
			}
		}
		next = *block + 1
	})
}

func codeFragment(c *codec, f *Fragment) {
	unsigned(c, &f.Record)
	unsigned(c, &f.Total)
	unsigned(c, &f.Rest)
	unsigned(c, &f.End)
	unsigned(c, &f.Len)
	c.flags(&f.Omitted, &f.Abandoned, &f.Joined)
	c.bytes(&f.Data)
	if c.reading && c.err == nil && !f.Omitted && uint64(len(f.Data)) != uint64(f.Len) {
		c.fail()
	}
}

// codeFacts codes everything but transactions. Each kind is a list.
func (ix *Index) codeFacts(c *codec) {
	at := func(c *codec, v *LSN) { delta(c, ix.Start, v) }
	span := func(c *codec, start, end *LSN) {
		at(c, start)
		delta(c, *start, end)
	}
	list(c, 7, &ix.Prepared, func(c *codec, p *Prepared) {
		span(c, &p.Start, &p.End)
		delta(c, 0, &p.Time)
		unsigned(c, &p.XID)
		unsigned(c, &p.DB)
		c.str(&p.GID)
		codeXIDs(c, p.XID, &p.Subxids)
	})
	list(c, 4, &ix.RestorePoints, func(c *codec, p *RestorePoint) {
		span(c, &p.Start, &p.End)
		delta(c, 0, &p.Time)
		c.str(&p.Name)
	})
	list(c, 19, &ix.Checkpoints, func(c *codec, p *CheckpointRecord) {
		span(c, &p.Start, &p.End)
		at(c, &p.Redo)
		c.flags(&p.Shutdown, &p.FullPageWrites)
		unsigned(c, &p.Checkpoint.Timeline)
		unsigned(c, &p.PrevTimeline)
		delta(c, 0, &p.WALLevel)
		unsigned(c, &p.NextXID)
		unsigned(c, &p.NextOID)
		unsigned(c, &p.NextMulti)
		unsigned(c, &p.NextMultiOff)
		unsigned(c, &p.OldestXID)
		unsigned(c, &p.OldestXIDDB)
		unsigned(c, &p.OldestMulti)
		unsigned(c, &p.OldestMultiDB)
		c.seconds(&p.Time)
		unsigned(c, &p.OldestCommitTS)
		unsigned(c, &p.NewestCommitTS)
		unsigned(c, &p.OldestActive)
	})
	list(c, 6, &ix.EndsOfRecovery, func(c *codec, p *EndOfRecovery) {
		span(c, &p.Start, &p.End)
		delta(c, 0, &p.Time)
		unsigned(c, &p.Timeline)
		unsigned(c, &p.PrevTimeline)
		delta(c, 0, &p.Level)
	})
	list(c, 9, &ix.Parameters, func(c *codec, p *Parameters) {
		span(c, &p.Start, &p.End)
		delta(c, 0, &p.MaxConnections)
		delta(c, 0, &p.MaxWorkerProcesses)
		delta(c, 0, &p.MaxWALSenders)
		delta(c, 0, &p.MaxPreparedXacts)
		delta(c, 0, &p.MaxLocksPerXact)
		delta(c, 0, &p.Level)
		c.flags(&p.WALLogHints, &p.TrackCommitTimestamp)
	})
	list(c, 3, &ix.BackupEnds, func(c *codec, p *BackupEnd) {
		span(c, &p.Start, &p.End)
		at(c, &p.BackupStart)
	})
	list(c, 4, &ix.Overwrites, func(c *codec, p *Overwrite) {
		span(c, &p.Start, &p.End)
		at(c, &p.Overwritten)
		delta(c, 0, &p.Time)
	})
	list(c, 6, &ix.Creates, func(c *codec, p *FileCreate) {
		at(c, &p.LSN)
		unsigned(c, &p.XID)
		c.rel(&p.Rel)
		unsigned(c, &p.Fork)
	})
	list(c, 7, &ix.Truncates, func(c *codec, p *FileTruncate) {
		at(c, &p.LSN)
		unsigned(c, &p.XID)
		c.rel(&p.Rel)
		unsigned(c, &p.Blocks)
		unsigned(c, &p.Flags)
	})
	list(c, 4, &ix.TableTruncates, func(c *codec, p *TableTruncate) {
		at(c, &p.LSN)
		unsigned(c, &p.XID)
		unsigned(c, &p.DB)
		list(c, 1, &p.OIDs, unsigned[uint32])
	})
	list(c, 7, &ix.DBChanges, func(c *codec, p *DBChange) {
		at(c, &p.LSN)
		unsigned(c, &p.XID)
		unsigned(c, &p.Kind)
		unsigned(c, &p.DB)
		list(c, 1, &p.Spc, unsigned[uint32])
		unsigned(c, &p.SrcDB)
		unsigned(c, &p.SrcSpc)
	})
	list(c, 5, &ix.Tablespaces, func(c *codec, p *Tablespace) {
		at(c, &p.LSN)
		unsigned(c, &p.XID)
		unsigned(c, &p.OID)
		c.flags(&p.Dropped)
		c.str(&p.Path)
	})
	list(c, 4, &ix.RelMaps, func(c *codec, p *RelMap) {
		at(c, &p.LSN)
		unsigned(c, &p.XID)
		unsigned(c, &p.DB)
		unsigned(c, &p.Spc)
	})
	unsigned(c, &ix.Running.LSN)
	unsigned(c, &ix.Running.NextXID)
	unsigned(c, &ix.Running.OldestRunning)
}
