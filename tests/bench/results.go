package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// The steps, by the names under which they are reported.
const (
	stepZstd      = "cat FILES | zstd -1 -T2"
	stepPitr1     = "pitr backup, level 1"
	stepPitr3     = "pitr backup, level 3"
	stepRest1     = "pgBackRest backup, zst 1"
	stepRest3     = "pgBackRest backup, zst 3"
	stepRestore   = "pitr restore"
	stepRestoreR  = "pgBackRest restore"
	stepDrain     = "pitr drain"
	stepDrainRest = "pgBackRest drain (async)"
	stepHook      = "pitr hook, segment pushed"
)

// measure is what one run of a step took.
type measure struct {
	wall  time.Duration
	cpu   time.Duration // of the whole machine while the step ran
	bytes int64         // stored, or written
	peak  int64         // bytes of memory: the most that pitr's processes held
}

func (m measure) String() string {
	s := fmt.Sprintf("%8.3f s wall %8.2f s cpu", m.wall.Seconds(), m.cpu.Seconds())
	if m.bytes > 0 {
		s += fmt.Sprintf(" %9.1f MB", float64(m.bytes)/1e6)
	}
	if m.peak > 0 {
		s += fmt.Sprintf(" (peak memory %d MB)", m.peak/1e6)
	}
	return s
}

// results collects the runs of each step in the order of their first run.
type results struct {
	order []string
	runs  map[string][]measure
}

func (r *results) add(name string, m measure) {
	if r.runs == nil {
		r.runs = make(map[string][]measure)
	}
	if _, ok := r.runs[name]; !ok {
		r.order = append(r.order, name)
	}
	r.runs[name] = append(r.runs[name], m)
}

// median takes each figure's own median; the peak is the greatest seen.
func (r *results) median(name string) measure {
	runs := r.runs[name]
	m := measure{
		wall:  middle(runs, func(m measure) time.Duration { return m.wall }),
		cpu:   middle(runs, func(m measure) time.Duration { return m.cpu }),
		bytes: middle(runs, func(m measure) int64 { return m.bytes }),
	}
	for _, run := range runs {
		m.peak = max(m.peak, run.peak)
	}
	return m
}

func middle[T cmp.Ordered](runs []measure, of func(measure) T) T {
	var all []T
	for _, m := range runs {
		all = append(all, of(m))
	}
	slices.Sort(all)
	if len(all) == 0 {
		var none T
		return none
	}
	return all[len(all)/2]
}

// A target compares two figures: it is met when got is at most limit.
type target struct {
	what       string
	got, limit float64
}

func (r *results) targets(o options) []target {
	wall := func(name string) float64 { return r.median(name).wall.Seconds() }
	size := func(name string) float64 { return float64(r.median(name).bytes) }
	peak := max(r.median(stepPitr1).peak, r.median(stepPitr3).peak, r.median(stepRestore).peak, r.median(stepDrain).peak)
	return []target{
		{"backup: wall against cat | zstd -1 -T2", wall(stepPitr1) / wall(stepZstd), 1.15},
		{"backup: wall against pgBackRest, level 1", wall(stepPitr1) / wall(stepRest1), 1.00},
		{"backup: bytes against pgBackRest, level 1", size(stepPitr1) / size(stepRest1), 1.00},
		{"backup: wall at level 3 against pgBackRest, level 3", wall(stepPitr3) / wall(stepRest3), 0.85},
		{"backup: bytes at level 3 against pgBackRest, level 3", size(stepPitr3) / size(stepRest3), 1.00},
		{"restore: wall against pgBackRest", wall(stepRestore) / wall(stepRestoreR), 1.00},
		{fmt.Sprintf("drain of %d segments: time against pgBackRest (1/1.5)", o.segments), wall(stepDrain) / wall(stepDrainRest), 1 / 1.5},
		{"hook call whose segment is pushed: ms", wall(stepHook) * 1000, 10},
		{"peak memory of agent and workers: MB", float64(peak) / 1e6, 300},
	}
}

// report prints the table of medians and the targets, and tells whether all are met.
func (r *results) report(w io.Writer, o options) bool {
	fmt.Fprintf(w, "\nMedians of %d interleaved rounds:\n", o.rounds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "step\twall s\tCPU s\tMB")
	for _, name := range r.order {
		m := r.median(name)
		fmt.Fprintf(t, "%s\t%.3f\t%.2f\t%.1f\n", name, m.wall.Seconds(), m.cpu.Seconds(), float64(m.bytes)/1e6)
	}
	t.Flush()
	if o.only != "" {
		return true
	}
	fmt.Fprintln(w, "\nTargets:")
	ok := true
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, g := range r.targets(o) {
		verdict := "met"
		if !(g.got <= g.limit) {
			verdict, ok = "MISSED", false
		}
		fmt.Fprintf(t, "%s\t%.3f\tat most %.3f\t%s\n", g.what, g.got, g.limit, verdict)
	}
	t.Flush()
	return ok
}
