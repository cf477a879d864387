package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/agent"
	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/recovery"
)

// backupFlags are those of all backup commands.
type backupFlags struct {
	systemID uint64
	json     bool
}

func newBackup(a *app) *cobra.Command {
	var f backupFlags
	g := group("backup", "Take, list, verify and delete base backups",
		newBackupCreate(a, &f),
		withJSON(&f, &cobra.Command{
			Use: "list", Short: "List the backups, oldest first", Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error { return a.backupList(c.Context(), f) },
		}),
		withJSON(&f, &cobra.Command{
			Use: "show ID", Short: "Show everything that is known of a backup", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error { return a.backupShow(c.Context(), f, args[0]) },
		}),
		withJSON(&f, &cobra.Command{
			Use: "verify [ID]", Short: "Read backups back and compare everything; without an ID, all of them", Args: cobra.MaximumNArgs(1),
			RunE: func(c *cobra.Command, args []string) error { return a.backupVerify(c.Context(), f, args) },
		}),
		newBackupPin(a, &f),
		&cobra.Command{
			Use: "unpin ID", Short: "Let retention have a backup again", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error { return a.backupUnpin(c.Context(), f, args[0]) },
		},
		newBackupDelete(a, &f),
	)
	g.PersistentFlags().Uint64Var(&f.systemID, "system-id", 0, "system identifier `N` of the cluster, where there is no data directory to tell and the store holds several")
	return g
}

func withJSON(f *backupFlags, c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&f.json, "json", false, "print one JSON document")
	return c
}

func newBackupCreate(a *app, f *backupFlags) *cobra.Command {
	var label string
	var spread bool
	c := withJSON(f, &cobra.Command{
		Use:   "create",
		Short: "Take a base backup of the running server",
		Long: "Take a base backup of the running server, whose archive_command must archive into the same repository.\n" +
			"The backup exists once the command says so; one that was interrupted does not. Its ID is the last word of the last line.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.backupCreate(c.Context(), *f, label, spread) },
	})
	c.Flags().Bool("full", false, "take a full backup (they all are)")
	c.Flags().StringVar(&label, "label", "", "`TEXT` for the server's backup_label")
	c.Flags().BoolVar(&spread, "spread", false, "let the server spread its checkpoint over time")
	return c
}

func (a *app) backupCreate(ctx context.Context, f backupFlags, label string, spread bool) error {
	e, err := a.userEnv(ctx)
	if err != nil {
		return err
	}
	conn, err := postgres.Connect(ctx, e.Postgres)
	if err != nil {
		return err
	}
	defer conn.Close()
	r, err := e.ensureRepo(ctx, e.Postgres.DataDir)
	if err != nil {
		return err
	}
	m := a.newMeter()
	defer m.close()
	h, err := basebackup.Take(ctx, r, conn, basebackup.Options{
		DataDir:        e.Postgres.DataDir,
		Workers:        e.Backup.Workers,
		Level:          e.Backup.Level,
		Label:          label,
		Spread:         spread,
		Node:           e.Cluster.Node,
		ArchiveTimeout: time.Duration(e.Archive.Timeout),
		SpoolDir:       e.spoolDir(),
		Progress:       func(p basebackup.Progress) { m.set("backup "+p.ID+": "+string(p.Phase), p.Bytes, p.Total) },
		Log:            a.warnings(),
	})
	m.close()
	if err != nil {
		return err
	}
	if h.BadPages > 0 {
		complain(a.err, fmt.Sprintf("pitr: warning: %d pages on the server's disk have wrong checksums; the backup holds them as they are", h.BadPages),
			fmt.Sprintf("`pitr backup show %s` lists them; an older backup may have them right", h.ID))
	}
	if f.json {
		return a.printJSONDocument(brief(h, false))
	}
	return a.print(fmt.Sprintf("%s backup of %s, %s stored, in %s: %s\n", h.Type, size(h.Size), size(h.Stored), h.Finished.Sub(h.Started).Round(100*time.Millisecond), h.ID))
}

// spoolDir is the service directory's part for temporary files, or the system's if there is none to write to.
func (e *env) spoolDir() string {
	dir := filepath.Join(e.Service.Dir, agent.SpoolDir)
	if f, err := os.CreateTemp(dir, "probe-*"); err == nil {
		f.Close()
		os.Remove(f.Name())
		return dir
	}
	return ""
}

// warnings prints what is logged at that level or above as messages of the command.
func (a *app) warnings() *slog.Logger {
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// backupJSON is a backup as scripts see it. Of one that is damaged only ID and status are known.
type backupJSON struct {
	ID       string       `json:"id"`
	Type     string       `json:"type,omitempty"`
	Started  *time.Time   `json:"started,omitempty"`
	Finished *time.Time   `json:"finished,omitempty"`
	StartLSN *wal.LSN     `json:"start_lsn,omitempty"`
	StopLSN  *wal.LSN     `json:"stop_lsn,omitempty"`
	Timeline wal.Timeline `json:"timeline,omitempty"`
	Size     int64        `json:"size"`
	Stored   int64        `json:"stored"`
	Parent   *string      `json:"parent"`
	Pinned   bool         `json:"pinned"`
	Status   string       `json:"status"`
}

const statusDamaged = "damaged"

func brief(h *basebackup.Header, pinned bool) backupJSON {
	b := backupJSON{
		ID: h.ID, Type: h.Type, Started: &h.Started, Finished: &h.Finished, StartLSN: &h.StartLSN, StopLSN: &h.StopLSN,
		Timeline: h.Timeline, Size: h.Size, Stored: h.Stored, Pinned: pinned, Status: h.Status(),
	}
	if h.Parent != "" {
		b.Parent = &h.Parent
	}
	return b
}

func (a *app) backupList(ctx context.Context, f backupFlags) error {
	_, r, err := a.lineage(ctx, f)
	if err != nil {
		return err
	}
	all, problems, err := basebackup.List(ctx, r)
	if err != nil {
		return err
	}
	pins, err := basebackup.Pins(ctx, r)
	if err != nil {
		return err
	}
	list := []backupJSON{}
	for _, h := range all {
		_, pinned := pins[h.ID]
		list = append(list, brief(h, pinned))
	}
	for _, p := range problems {
		complain(a.err, "pitr: warning: backup "+p.ID+": "+p.Err.Error(), hint.Of(p.Err))
		_, pinned := pins[p.ID]
		list = append(list, backupJSON{ID: p.ID, Pinned: pinned, Status: statusDamaged})
	}
	slices.SortFunc(list, func(x, y backupJSON) int { return strings.Compare(x.ID, y.ID) })
	if f.json {
		return a.printJSONDocument(list)
	}
	if len(list) == 0 {
		if a.quiet {
			return nil
		}
		return a.print("there is no backup\n")
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tTYPE\tFINISHED\tSIZE\tSTORED\tTIMELINE\tSTART\tSTOP\tSTATUS")
	for _, b := range list {
		state := b.Status
		if b.Pinned {
			state += ", pinned"
		}
		if b.Status == statusDamaged {
			fmt.Fprintf(w, "%s\t\t\t\t\t\t\t\t%s\n", b.ID, state)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", b.ID, b.Type, b.Finished.Format(time.RFC3339), size(b.Size), size(b.Stored),
			b.Timeline, b.StartLSN, b.StopLSN, state)
	}
	w.Flush()
	return a.print(text.String())
}

// backupVerify verifies one backup or all, contents and the WAL that they need.
func (a *app) backupVerify(ctx context.Context, f backupFlags, args []string) error {
	e, r, err := a.lineage(ctx, f)
	if err != nil {
		return err
	}
	ids := args
	if len(ids) == 0 {
		all, problems, err := basebackup.List(ctx, r)
		if err != nil {
			return err
		}
		for _, h := range all {
			ids = append(ids, h.ID)
		}
		for _, p := range problems {
			ids = append(ids, p.ID)
		}
		slices.Sort(ids)
	}
	type result struct {
		Status string `json:"status"`
		*basebackup.VerifyReport
	}
	ar := e.archive(r, nil)
	defer ar.Close()
	m := a.newMeter()
	defer m.close()
	results := []result{}
	bad := 0
	for _, id := range ids {
		report, err := basebackup.Verify(ctx, r, id, basebackup.VerifyOptions{
			Workers:  e.Backup.Workers,
			SpoolDir: e.spoolDir(),
			WAL:      func(ctx context.Context, h *basebackup.Header) ([]string, error) { return neededWAL(ctx, ar, h) },
			Progress: func(n, total int64) { m.set("verifying backup "+id, n, total) },
		})
		if err != nil {
			return err
		}
		res := result{VerifyReport: report, Status: "ok"}
		if len(report.Damaged) > 0 {
			res.Status = statusDamaged
			bad++
		}
		results = append(results, res)
		m.close()
		if f.json {
			continue
		}
		text := fmt.Sprintf("%s backup %s: %s in %d frames\n", res.Status, id, size(report.Bytes), report.Frames)
		for _, d := range report.Damaged {
			text += "  " + printable(d) + "\n"
		}
		if err := a.print(text); err != nil {
			return err
		}
	}
	if f.json {
		if err := a.printJSONDocument(results); err != nil {
			return err
		}
	}
	if bad > 0 {
		return hint.Wrap(&verificationError{fmt.Sprintf("verify backups: %d of %d are damaged", bad, len(ids))}, "take a new backup now: `pitr backup create`")
	}
	return nil
}

// neededWAL looks whether the WAL is archived without which a backup can't be restored at all.
func neededWAL(ctx context.Context, ar *archive.Archive, h *basebackup.Header) ([]string, error) {
	c, err := ar.Coverage(ctx)
	if errors.Is(err, repo.ErrDamaged) {
		return []string{err.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	if missing := basebackup.MissingWAL(c, h); missing != nil {
		return []string{missing.Error()}, nil
	}
	return nil, nil
}

func newBackupPin(a *app, f *backupFlags) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "pin ID", Short: "Keep a backup, and the WAL that makes it consistent, whatever retention says", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			_, r, err := a.lineage(c.Context(), *f)
			if err != nil {
				return err
			}
			if err := basebackup.SetPin(c.Context(), r, basebackup.Pin{ID: args[0], At: time.Now(), By: who(a), Reason: reason}); err != nil {
				return err
			}
			return a.say("pinned " + args[0])
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` that `backup show` repeats")
	return c
}

func (a *app) backupUnpin(ctx context.Context, f backupFlags, id string) error {
	_, r, err := a.lineage(ctx, f)
	if err != nil {
		return err
	}
	if err := basebackup.Unpin(ctx, r, id); err != nil {
		return err
	}
	return a.say("unpinned " + id)
}

func newBackupDelete(a *app, f *backupFlags) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "delete ID", Short: "Delete a backup", Args: cobra.ExactArgs(1),
		Long: "Delete a backup. Its data goes when `pitr prune` finds that nothing refers to it, at the earliest an hour later;\n" +
			"WAL stays until retention needs it no more.",
		RunE: func(c *cobra.Command, args []string) error { return a.backupDelete(c.Context(), *f, args[0], yes) },
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) backupDelete(ctx context.Context, f backupFlags, id string, yes bool) error {
	_, r, err := a.lineage(ctx, f)
	if err != nil {
		return err
	}
	all, _, err := basebackup.List(ctx, r)
	if err != nil {
		return err
	}
	others := 0
	for _, h := range all {
		if h.ID != id {
			others++
		}
	}
	if err := a.confirm(yes, fmt.Sprintf("delete backup %s? %d others are complete.", id, others)); err != nil {
		return err
	}
	if err := basebackup.Delete(ctx, r, id); err != nil {
		if errors.Is(err, basebackup.ErrPinned) {
			return fmt.Errorf("%w: %w", recovery.ErrRefused, err)
		}
		return err
	}
	return a.say("deleted " + id)
}

// lineage opens the repository for reading, and for what needs no server.
func (a *app) lineage(ctx context.Context, f backupFlags) (*env, *repo.Repo, error) {
	e, err := a.userEnv(ctx)
	if err != nil {
		return nil, nil, err
	}
	r, err := e.repo(ctx, f.systemID)
	return e, r, err
}

// say prints what was done, unless nothing but results is wanted.
func (a *app) say(text string) error {
	if a.quiet {
		return nil
	}
	return a.print(text + "\n")
}

// size prints a number of bytes for people, in the units of disks.
func size(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1000, 0
	for v >= 999.95 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	return fmt.Sprintf("%.1f %cB", v, units[i])
}
