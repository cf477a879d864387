// Command bench measures pitr beside the reference that physics sets (reading the files and
// compressing them with zstd) and beside pgBackRest, on one real server, in interleaved rounds,
// and prints the medians, their ratios and whether each target is met. It exits with 1 if one is
// not.
//
// It needs PostgreSQL, pgbackrest and zstd from the distribution (`make deps bench`), about 15 GB
// below $TMPDIR, and an otherwise idle machine. Absolute times say little about another machine;
// the ratios are what counts.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	var o options
	flag.StringVar(&o.pitr, "pitr", "bin/pitr", "the program to measure")
	flag.IntVar(&o.megabytes, "size", 3000, "size of the cluster in MB")
	flag.IntVar(&o.rounds, "rounds", 3, "interleaved rounds; medians are reported")
	flag.IntVar(&o.segments, "segments", 64, "WAL segments to drain")
	flag.IntVar(&o.hooks, "hooks", 200, "hook calls to time")
	flag.StringVar(&o.only, "only", "", "measure only steps whose names contain this, and judge nothing")
	flag.BoolVar(&o.keep, "keep", false, "keep the scratch directory")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := bench(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	if err != nil || !ok {
		stop()
		os.Exit(1)
	}
}

type options struct {
	pitr      string
	megabytes int
	rounds    int
	segments  int
	hooks     int
	only      string
	keep      bool
}

func bench(ctx context.Context, o options) (ok bool, err error) {
	l, err := newLab(ctx, o)
	if err != nil {
		return false, err
	}
	defer func() { err = joinClose(err, l) }()
	if err := l.fill(); err != nil {
		return false, fmt.Errorf("make the cluster: %w", err)
	}
	var r results
	for round := range o.rounds {
		l.say("round %d of %d", round+1, o.rounds)
		for _, step := range l.steps() {
			if err := ctx.Err(); err != nil {
				return false, err
			}
			if !strings.Contains(step.name, o.only) {
				continue
			}
			m, err := step.run(round)
			if err != nil {
				return false, fmt.Errorf("%s: %w", step.name, err)
			}
			l.say("  %-34s %s", step.name, m)
			r.add(step.name, m)
		}
	}
	return r.report(os.Stdout, o), nil
}
