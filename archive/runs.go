package archive

import "sort"

// Run is a stretch of segment numbers, both ends included.
type Run struct{ First, Last uint64 }

// Runs is a set of segment numbers: runs that rise and neither touch nor overlap.
type Runs []Run

// Has reports whether no is in the set.
func (s Runs) Has(no uint64) bool {
	i := s.from(no)
	return i < len(s) && s[i].First <= no
}

// from returns the first run that ends at no or later.
func (s Runs) from(no uint64) int {
	return sort.Search(len(s), func(i int) bool { return s[i].Last >= no })
}

// add takes in a number, in constant time where numbers rise.
func (s *Runs) add(no uint64) {
	if n := len(*s); n > 0 {
		switch last := &(*s)[n-1]; {
		case last.First <= no && no <= last.Last:
			return
		case no == last.Last+1:
			last.Last = no
			return
		case no < last.First:
			*s = s.with(Run{no, no})
			return
		}
	}
	*s = append(*s, Run{no, no})
}

// with returns the set and r.
func (s Runs) with(r Run) Runs {
	out := make(Runs, 0, len(s)+1)
	for _, x := range s {
		switch {
		case x.Last < r.First && x.Last+1 < r.First:
			out = append(out, x)
		case r.Last < x.First && r.Last+1 < x.First:
			out = append(out, r)
			r = x
		default:
			r = Run{min(x.First, r.First), max(x.Last, r.Last)}
		}
	}
	return append(out, r)
}

// missing returns the numbers of r that are not in the set.
func (s Runs) missing(r Run) Runs {
	var out Runs
	for i := s.from(r.First); i < len(s) && s[i].First <= r.Last; i++ {
		if r.First < s[i].First {
			out = append(out, Run{r.First, s[i].First - 1})
		}
		if s[i].Last >= r.Last {
			return out
		}
		r.First = s[i].Last + 1
	}
	return append(out, r)
}
