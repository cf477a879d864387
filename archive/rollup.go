package archive

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// A roll-up holds the brief indexes of many segments in one object, so that a plan over many
// thousands of them reads a few objects. It is derived: an entry counts only for the content whose
// digest it names, where a listing shows that content; what it lacks, and all that is damaged, is
// read from the segments' own objects instead. docs/format.md describes it.
//
// Each index in it stands by itself: the record that crosses into its segment is absorbed. An entry
// for which that can't be done (the record began before the segment in front, or that one is not
// there) names its content only.

const (
	rollUpMagic = "PITRROL1"
	// rollUpMax bounds the segments of one object, rollUpBytes the indexes in it, and rollUpEntry one
	// of them: raw bytes. What is longer is left to the segment's own object.
	rollUpMax   = 1024
	rollUpBytes = 8 << 20
	rollUpEntry = 64 << 10
)

// A rollUp is what one object holds: the segments of a timeline from number first on.
type rollUp struct {
	timeline wal.Timeline
	first    uint64
	// before is the content of the segment in front of the first one; zero: there was none.
	before  repo.Digest
	entries []rollUpItem
}

// A rollUpItem is that of one segment.
type rollUpItem struct {
	digest repo.Digest // zero: there was no such segment
	index  []byte      // brief, encoded; empty: none
}

func (r *rollUp) last() uint64 { return r.first + uint64(len(r.entries)) - 1 }

// digestBefore is the content of the segment in front of number no.
func (r *rollUp) digestBefore(no uint64) repo.Digest {
	if no == r.first {
		return r.before
	}
	return r.entries[no-1-r.first].digest
}

// index returns the brief index of segment number no if it is that of the content and, where it has
// absorbed a record, that record began in the content before; otherwise nil.
func (r *rollUp) index(no uint64, content, before repo.Digest, systemID uint64, segSize int64) (*wal.Index, error) {
	if no < r.first || no > r.last() {
		return nil, nil
	}
	e := &r.entries[no-r.first]
	if e.digest != content || len(e.index) == 0 {
		return nil, nil
	}
	ix, err := wal.DecodeIndex(e.index)
	if err != nil {
		return nil, err
	}
	if !ix.Brief || !standsAlone(ix) || ix.SystemID != systemID || ix.Timeline != r.timeline || ix.SegSize != segSize || ix.Start != wal.SegmentStart(no, segSize) {
		return nil, fmt.Errorf("the index of segment number %X is not what belongs there", no)
	}
	if ix.Head.Joined && (before == repo.Digest{} || before != r.digestBefore(no)) {
		return nil, nil
	}
	return ix, nil
}

// standsAlone tells whether nothing is missing in an index of what the records tell that end in its
// segment, and whether they fill it: only such indexes are rolled up.
func standsAlone(ix *wal.Index) bool {
	h := &ix.Head
	return ix.Complete && ix.Stop.Kind == wal.StopMore && (h.Joined || h.Rest == 0 || h.Len < h.Rest)
}

// encode gives the raw content.
func (r *rollUp) encode() []byte {
	le := binary.LittleEndian
	out := append([]byte(nil), rollUpMagic...)
	out = le.AppendUint32(out, uint32(r.timeline))
	out = le.AppendUint64(out, r.first)
	out = le.AppendUint32(out, uint32(len(r.entries)))
	out = append(out, r.before[:]...)
	for i := range r.entries {
		e := &r.entries[i]
		out = append(out, e.digest[:]...)
		out = binary.AppendUvarint(out, uint64(len(e.index)))
		out = append(out, e.index...)
	}
	return out
}

var errRollUp = errors.New("it is not what a roll-up holds")

// decodeRollUp is the inverse of encode. The result points into data.
func decodeRollUp(data []byte) (*rollUp, error) {
	const head = len(rollUpMagic) + 4 + 8 + 4 + len(repo.Digest{})
	if len(data) < head || string(data[:len(rollUpMagic)]) != rollUpMagic {
		return nil, errRollUp
	}
	le := binary.LittleEndian
	data = data[len(rollUpMagic):]
	r := &rollUp{timeline: wal.Timeline(le.Uint32(data)), first: le.Uint64(data[4:])}
	n := le.Uint32(data[12:])
	copy(r.before[:], data[16:])
	data = data[head-len(rollUpMagic):]
	if n == 0 || n > rollUpMax || r.first+uint64(n)-1 < r.first {
		return nil, errRollUp
	}
	r.entries = make([]rollUpItem, n)
	for i := range r.entries {
		e := &r.entries[i]
		if len(data) < len(e.digest) {
			return nil, errRollUp
		}
		data = data[copy(e.digest[:], data):]
		size, w := binary.Uvarint(data)
		if w <= 0 || size > uint64(len(data)-w) {
			return nil, errRollUp
		}
		e.index, data = data[w:w+int(size)], data[w+int(size):]
	}
	if len(data) > 0 {
		return nil, errRollUp
	}
	return r, nil
}

// A rollUpName is what the key of a roll-up says.
type rollUpName struct {
	timeline    wal.Timeline
	first, last uint64
	digest      repo.Digest
	key         string
}

func parseRollUpName(key string) (rollUpName, bool) {
	tli, first, last, d, ok := repo.ParseRollUpKey(key)
	return rollUpName{tli, first, last, d, key}, ok
}

// listRollUps gives the roll-ups under a prefix of keys, in the order of the keys.
func (a *Archive) listRollUps(ctx context.Context, prefix string) ([]rollUpName, error) {
	var out []rollUpName
	for o, err := range a.repo.List(ctx, prefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list the rolled-up indexes: %w", err)
		}
		if n, ok := parseRollUpName(o.Key); ok {
			out = append(out, n)
		}
	}
	return out, nil
}

// readRollUp reads and verifies one: storage.ErrNotFound, repo.ErrDamaged.
func (a *Archive) readRollUp(ctx context.Context, n rollUpName) (*rollUp, error) {
	stored, err := a.repo.ReadAll(ctx, n.key, int64(repo.Bound(repo.MaxFrame)))
	if err != nil {
		return nil, err
	}
	size, err := repo.RawLen(stored)
	if err != nil {
		return nil, a.repo.Damaged(n.key, "%v", err)
	}
	k, err := a.borrow()
	if err != nil {
		return nil, err
	}
	defer a.giveBack(k)
	raw, err := k.dec.Decode(nil, stored, size)
	if err != nil {
		return nil, a.repo.Damaged(n.key, "%v", err)
	}
	if repo.DigestOf(raw) != n.digest {
		return nil, a.repo.Damaged(n.key, "its content has another digest than its name")
	}
	r, err := decodeRollUp(raw)
	if err != nil {
		return nil, a.repo.Damaged(n.key, "%v", err)
	}
	if r.timeline != n.timeline || r.first != n.first || r.last() != n.last {
		return nil, a.repo.Damaged(n.key, "it is of other segments than its name says")
	}
	return r, nil
}
