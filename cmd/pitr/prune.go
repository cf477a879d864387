package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/hint"
	"pitr/internal/wal"
	"pitr/recovery"
	"pitr/storage"
)

// tempLife is how long hidden files of interrupted writes stay in a store: longer than any write takes.
const tempLife = 24 * time.Hour

func newPrune(a *app) *cobra.Command {
	var dryRun, yes bool
	var systemID uint64
	c := &cobra.Command{
		Use:   "prune",
		Short: "Apply retention to backups and WAL, and remove what interrupted work left behind",
		Long: "Apply retention (backup.retention) to backups and WAL, and remove what interrupted backups left behind.\n" +
			"One line is printed for each thing kept or deleted, with the reason. Data that nothing refers to any more is\n" +
			"marked first and deleted by a later run, at the earliest an hour later.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.prune(c.Context(), systemID, dryRun, yes) },
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be done")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.Flags().Uint64Var(&systemID, "system-id", 0, "system identifier `N` of the cluster, where there is no data directory to tell and the store holds several")
	return c
}

func (a *app) prune(ctx context.Context, systemID uint64, dryRun, yes bool) error {
	e, err := a.userEnv(ctx)
	if err != nil {
		return err
	}
	r, err := e.repo(ctx, systemID)
	if err != nil {
		return err
	}
	ar := e.archive(r, a.warnings())
	defer ar.Close()
	p, err := e.planPrune(ctx, ar, time.Now())
	if err != nil {
		return err
	}
	if !a.quiet || dryRun {
		if err := a.print(strings.Join(p.lines(), "")); err != nil {
			return err
		}
	}
	if dryRun {
		return p.blocked
	}
	if n := p.deletions(); n > 0 {
		if err := a.confirm(yes, fmt.Sprintf("delete these %d?", n)); err != nil {
			return err
		}
	}
	done, err := e.pruneShown(ctx, p, time.Now())
	if err != nil {
		return err
	}
	if err := a.say(done); err != nil {
		return err
	}
	return p.blocked
}

// prunePlan is what retention would do, and why.
type prunePlan struct {
	bucket   storage.Bucket
	archive  *archive.Archive
	now      time.Time
	backups  []basebackup.Verdict
	problems []basebackup.Problem
	wal      []archive.PruneItem
	left     []basebackup.Leftover
	// blocked says why not everything could be decided on.
	blocked error
}

// planPrune decides. It changes nothing.
func (e *env) planPrune(ctx context.Context, ar *archive.Archive, now time.Time) (*prunePlan, error) {
	r := ar.Repo()
	p := &prunePlan{bucket: e.bucket, archive: ar, now: now}
	// In this order: what WAL there is, what runs, what is complete. So of a backup that begins meanwhile no WAL is
	// decided on, and one that becomes complete meanwhile is seen as running, or as complete, or as both.
	c, err := ar.Coverage(ctx)
	if err != nil {
		return nil, err
	}
	running, err := basebackup.Running(ctx, r, now)
	if err != nil {
		return nil, err
	}
	all, problems, err := basebackup.List(ctx, r)
	if err != nil {
		return nil, err
	}
	pins, err := basebackup.Pins(ctx, r)
	if err != nil {
		return nil, err
	}
	pinned := make(map[string]bool)
	for id := range pins {
		pinned[id] = true
	}
	keep := basebackup.Keep{Window: time.Duration(e.Backup.Retention.Window), Count: e.Backup.Retention.Keep}
	p.backups = basebackup.Expire(all, pinned, keep, basebackup.Lines(c), now)
	if len(problems) > 0 {
		// What such a backup needs is not known, so that nothing it may need is deleted.
		p.problems = problems
		p.blocked = hint.Wrap(fmt.Errorf("apply retention: the manifest of backup %s can't be read: %w", problems[0].ID, problems[0].Err),
			"WAL and packs stay as they are until it can; if the backup is lost, `pitr backup delete %s`", problems[0].ID)
		return p, nil
	}
	needs := basebackup.Needs(all, p.backups)
	if len(needs) > 0 { // else all WAL stays, and one that is being taken may fail
		needs = append(needs, running...)
	}
	p.wal = archive.PlanPrune(c, needs)
	p.left, err = basebackup.Leftovers(ctx, r, now)
	return p, err
}

// lines describes the plan: one line for each thing.
func (p *prunePlan) lines() []string {
	var lines []string
	line := func(del bool, format string, args ...any) {
		verb := "keep "
		if del {
			verb = "delete "
		}
		lines = append(lines, printable(verb+fmt.Sprintf(format, args...))+"\n")
	}
	for _, v := range p.backups {
		line(!v.Keep, "backup %s: %s", v.ID, v.Reason)
	}
	for _, b := range p.problems {
		line(false, "backup %s: %v", b.ID, b.Err)
	}
	for _, w := range p.wal {
		line(w.Delete, "wal %s..%s (timeline %d): %s", w.From, w.To, w.Timeline, w.Why)
	}
	for _, l := range p.left {
		line(l.Delete, "leftovers %s (%d packs, %s): %s", l.ID, l.Packs, size(l.Stored), l.Reason)
	}
	return lines
}

// deletions counts what is to be deleted.
func (p *prunePlan) deletions() int {
	n := 0
	for _, l := range p.lines() {
		if strings.HasPrefix(l, "delete ") {
			n++
		}
	}
	return n
}

// pruneShown deletes what the plan shows that somebody has seen and agreed to. He may have taken his time: everything is
// looked at anew, and if now something else is to go, or less, nothing goes.
func (e *env) pruneShown(ctx context.Context, shown *prunePlan, now time.Time) (string, error) {
	p, err := e.planPrune(ctx, shown.archive, now)
	if err != nil {
		return "", err
	}
	for _, c := range []struct {
		a, b *prunePlan
		what string
	}{{shown, p, "stay"}, {p, shown, "be deleted"}} {
		if d := c.a.without(c.b); d != "" {
			return "", hint.Wrap(fmt.Errorf("%w: things have changed since this was shown: %s would %s now; nothing was deleted", recovery.ErrRefused, d, c.what),
				"run `pitr prune` again")
		}
	}
	return p.run(ctx)
}

// without names the first thing that this plan deletes and the other does not; empty: there is none.
func (p *prunePlan) without(other *prunePlan) string {
	for _, v := range p.backups {
		if !v.Keep && !slices.ContainsFunc(other.backups, func(o basebackup.Verdict) bool { return o.ID == v.ID && !o.Keep }) {
			return "backup " + v.ID
		}
	}
	for _, w := range p.wal {
		if !w.Delete {
			continue
		}
		// Both plans are in order, and may cut the same WAL into different stretches.
		next := w.First
		for _, o := range other.wal {
			if o.Delete && o.Timeline == w.Timeline && o.First <= next && o.Last >= next {
				next = o.Last + 1
			}
		}
		if next <= w.Last {
			return fmt.Sprintf("wal %s..%s", wal.SegmentName(w.Timeline, next, p.archive.Repo().Facts().SegmentSize), w.To)
		}
	}
	for _, l := range p.left {
		if l.Delete && !slices.ContainsFunc(other.left, func(o basebackup.Leftover) bool { return o.ID == l.ID && o.Delete }) {
			return "leftovers " + l.ID
		}
	}
	return ""
}

// run does what the plan says: first backups cease to exist, then what only they needed goes. It says what was done.
// Whatever ends it, what is left is whole, and the next run goes on.
func (p *prunePlan) run(ctx context.Context) (string, error) {
	r := p.archive.Repo()
	backups := 0
	for _, v := range p.backups {
		if v.Keep {
			continue
		}
		if err := basebackup.Delete(ctx, r, v.ID); err != nil && !errors.Is(err, basebackup.ErrNoBackup) {
			return "", err // pinned since: what WAL may go must be decided anew
		}
		backups++
	}
	objects, bytes, err := p.archive.Prune(ctx, p.wal)
	if err != nil {
		return "", err
	}
	// What was deleted just now is looked at too, so that its time begins to run.
	left := p.left
	if backups > 0 && p.blocked == nil {
		if left, err = basebackup.Leftovers(ctx, r, p.now); err != nil {
			return "", err
		}
	}
	packs, err := basebackup.Sweep(ctx, r, left, p.now)
	if err != nil {
		return "", err
	}
	if _, err := storage.Sweep(ctx, p.bucket, tempLife); err != nil {
		return "", err
	}
	// What is left is rolled up, where no agent does it, and what was rolled up is verified.
	if _, err := p.archive.RollUp(ctx, true); err != nil {
		return "", err
	}
	return fmt.Sprintf("deleted %d backups, %d WAL objects of %s, %s of packs", backups, objects, size(bytes), size(packs)), nil
}

// confirm returns nil if the user wants what the question says: by --yes, or by an answer on the terminal.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !isTerminal(a.in) {
		return hint.Wrap(fmt.Errorf("%w: there is no terminal to ask on", recovery.ErrRefused), "nothing was deleted; --yes says that it is meant")
	}
	fmt.Fprintf(a.err, "%s [y/N] ", printable(question))
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer == "y" || answer == "yes" {
		return nil
	}
	if err != nil {
		fmt.Fprintln(a.err)
	}
	return fmt.Errorf("%w: not confirmed", recovery.ErrRefused)
}
