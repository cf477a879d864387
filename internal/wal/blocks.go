package wal

import (
	"cmp"
	"math"
	"slices"
)

// NoLimit is the Limit of a fork that was neither made nor cut.
const NoLimit = math.MaxUint32

// RelBlocks tells which pages of one fork a stretch of WAL changed.
//
// Pages from Limit on count as changed, all of them: the fork was created anew
// (0), removed (0) or cut down to Limit pages. Blocks holds the others that
// changed, rising, each once. Of visibility and free-space maps nothing is told,
// because the log does not name all their pages. A Rel.Rel of zero with Limit 0
// means that every file of that database in that tablespace may be new.
// (BlockRefTable in src/common/blkreftab.c and walsummarizer.c.)
type RelBlocks struct {
	Rel    RelFile
	Fork   uint8
	Limit  uint32
	Blocks []uint32
}

type relFork struct {
	rel  RelFile
	fork uint8
}

// blockSet gathers changed pages. It is made for a few hundred thousand calls per
// segment, most of which name a page that is in it already.
type blockSet struct {
	forks  []relFork
	limits []uint32
	index  map[relFork]uint32
	cache  [32]struct { // of index, by the relation's low bits
		key relFork
		num uint32 // number in forks plus one
	}
	table []uint64 // open addressing; fork number plus one, then block; 0: free
	used  int
}

// number returns the number of a fork, giving it one if it is new.
func (s *blockSet) number(rel RelFile, fork uint8) uint32 {
	key := relFork{rel, fork}
	slot := &s.cache[(rel.Rel^uint32(fork))%uint32(len(s.cache))]
	if slot.num != 0 && slot.key == key {
		return slot.num - 1
	}
	n, ok := s.index[key]
	if !ok {
		if s.index == nil {
			s.index = make(map[relFork]uint32)
		}
		n = uint32(len(s.forks))
		s.index[key] = n
		s.forks = append(s.forks, key)
		s.limits = append(s.limits, NoLimit)
	}
	slot.key, slot.num = key, n+1
	return n
}

// add says that a page changed.
func (s *blockSet) add(rel RelFile, fork uint8, block uint32) {
	if fork == ForkFSM || fork == ForkVM {
		return
	}
	key := uint64(s.number(rel, fork)+1)<<32 | uint64(block)
	if 2*s.used >= len(s.table) {
		s.grow()
	}
	if s.insert(key) {
		s.used++
	}
}

// insert puts key into the table and reports whether it was not there yet.
func (s *blockSet) insert(key uint64) bool {
	mask := uint64(len(s.table) - 1)
	// Fibonacci hashing: neighbouring blocks land far apart, so that runs of them
	// don't pile up.
	for i := (key * 0x9E3779B97F4A7C15) >> 32 & mask; ; i = (i + 1) & mask {
		switch s.table[i] {
		case key:
			return false
		case 0:
			s.table[i] = key
			return true
		}
	}
}

func (s *blockSet) grow() {
	old := s.table
	s.table = make([]uint64, max(1024, 2*len(old)))
	for _, key := range old {
		if key != 0 {
			s.insert(key)
		}
	}
}

// limit says that the pages of a fork from block on are new, or gone.
func (s *blockSet) limit(rel RelFile, fork uint8, block uint32) {
	n := s.number(rel, fork)
	s.limits[n] = min(s.limits[n], block)
}

// record takes in what a record and the facts it brought tell of pages.
func (s *blockSet) record(r *Record) {
	for i := range r.Blocks {
		b := &r.Blocks[i]
		s.add(b.Rel, b.Fork, b.Block)
	}
}

// facts takes in the files that came, went or were cut.
func (s *blockSet) facts(f *Facts) {
	for _, t := range f.Transactions {
		if t.Detail != nil {
			for _, rel := range t.Detail.Dropped {
				s.limit(rel, ForkMain, 0)
				s.limit(rel, ForkInit, 0)
			}
		}
	}
	for _, c := range f.Creates {
		if c.Fork == ForkMain || c.Fork == ForkInit {
			s.limit(c.Rel, c.Fork, 0)
		}
	}
	for _, t := range f.Truncates {
		if t.Flags&TruncateMain != 0 {
			s.limit(t.Rel, ForkMain, t.Blocks)
		}
	}
	for _, d := range f.DBChanges {
		for _, spc := range d.Spc {
			s.limit(RelFile{Spc: spc, DB: d.DB}, ForkMain, 0)
		}
	}
}

// list returns everything gathered, in order of relation and fork.
func (s *blockSet) list() []RelBlocks {
	if len(s.forks) == 0 {
		return nil
	}
	keys := make([]uint64, 0, s.used)
	for _, key := range s.table {
		if key != 0 && uint32(key) < s.limits[key>>32-1] {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	blocks := make([]uint32, len(keys))
	out := make([]RelBlocks, len(s.forks))
	for i, f := range s.forks {
		out[i] = RelBlocks{Rel: f.rel, Fork: f.fork, Limit: s.limits[i]}
	}
	for i := 0; i < len(keys); {
		first, num := i, keys[i]>>32
		for ; i < len(keys) && keys[i]>>32 == num; i++ {
			blocks[i] = uint32(keys[i])
		}
		out[num-1].Blocks = blocks[first:i:i]
	}
	slices.SortFunc(out, func(a, b RelBlocks) int { return compareForks(a.Rel, a.Fork, b.Rel, b.Fork) })
	return out
}

func compareForks(a RelFile, af uint8, b RelFile, bf uint8) int {
	return cmp.Or(cmp.Compare(a.Spc, b.Spc), cmp.Compare(a.DB, b.DB), cmp.Compare(a.Rel, b.Rel), cmp.Compare(af, bf))
}

// MergeBlocks returns what two stretches of WAL changed together. Both lists are
// in order, as an Index has them; the result may share memory with them.
func MergeBlocks(a, b []RelBlocks) []RelBlocks {
	out := make([]RelBlocks, 0, max(len(a), len(b)))
	for len(a) > 0 && len(b) > 0 {
		switch c := compareForks(a[0].Rel, a[0].Fork, b[0].Rel, b[0].Fork); {
		case c < 0:
			out, a = append(out, a[0]), a[1:]
		case c > 0:
			out, b = append(out, b[0]), b[1:]
		default:
			out = append(out, mergeFork(a[0], b[0]))
			a, b = a[1:], b[1:]
		}
	}
	out = append(out, a...)
	return append(out, b...)
}

// mergeFork joins the changes of one fork.
func mergeFork(a, b RelBlocks) RelBlocks {
	m := RelBlocks{Rel: a.Rel, Fork: a.Fork, Limit: min(a.Limit, b.Limit)}
	m.Blocks = make([]uint32, 0, len(a.Blocks)+len(b.Blocks))
	x, y := a.Blocks, b.Blocks
	for len(x) > 0 || len(y) > 0 {
		var next uint32
		switch {
		case len(y) == 0 || len(x) > 0 && x[0] < y[0]:
			next, x = x[0], x[1:]
		case len(x) == 0 || y[0] < x[0]:
			next, y = y[0], y[1:]
		default:
			next, x, y = x[0], x[1:], y[1:]
		}
		if next >= m.Limit {
			break
		}
		m.Blocks = append(m.Blocks, next)
	}
	return m
}
