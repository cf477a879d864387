package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pitr/archive"
	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/recovery"
)

// restoreFlags are what `restore` is called with.
type restoreFlags struct {
	target      recovery.Flags
	to          string
	delta       bool
	plan        bool
	standby     bool
	tablespaces []string
	workers     int
	archive     string
	start       bool
	yes         bool
	asJSON      bool
	systemID    uint64
}

func newRestore(a *app) *cobra.Command {
	var f restoreFlags
	var at, lsn, xid, name string
	c := &cobra.Command{
		Use:   "restore [--to DIR] [TARGET]",
		Short: "Bring a server back to a moment",
		Long: "Bring a server back to a moment: put a base backup into place, and have the server replay the archived WAL up to the\n" +
			"target. Without a target that is the end of the archive. Before anything is touched it is proven that all that is needed\n" +
			"is there; the exit status is 4 if it is not, and 7 if data could be lost.\n\n" +
			"With --to the restored server is a copy beside the running one. It touches nothing of that: it has a socket of its own in\n" +
			"DIR, no TCP and no TLS, and lets in its own user only; settings at the end of postgresql.auto.conf say so. With --archive on\n" +
			"or --standby, but without --start, it keeps the network settings of its parent instead. Without --to, postgres.data_dir is\n" +
			"replaced.\n\n" +
			"Called again after it was interrupted, the same command goes on. What is copied is not copied again until the server has\n" +
			"been opened (in place, --delta compares it once more), and with --start a server that recovers already is waited for.",
		Example: "  pitr restore --to /var/lib/postgresql/copy --target-time '2026-11-22 14:03:05+01' --start\n" +
			"  pitr restore --target-name before_migration --plan",
		Args: cobra.NoArgs,
	}
	fl := c.Flags()
	fl.StringVar(&at, "target-time", "", "stop behind the last transaction that ended by `TIME`; without a zone it is UTC")
	fl.StringVar(&lsn, "target-lsn", "", "stop at the WAL `POSITION`, such as 16/B374D848")
	fl.StringVar(&xid, "target-xid", "", "stop behind the end of the transaction with this `NUMBER`")
	fl.StringVar(&name, "target-name", "", "stop at the restore point called `NAME`")
	fl.BoolVar(&f.target.Immediate, "target-immediate", false, "stop at the end of the backup")
	fl.BoolVar(&f.target.Exclusive, "exclusive", false, "stop before what the target names (time, lsn, xid) instead of behind it")
	fl.StringVar(&f.target.Timeline, "target-timeline", "", "`latest`, current or the number of a timeline (default latest; current with --target-immediate)")
	fl.StringVar(&f.target.Action, "target-action", string(recovery.Promote), "what the server does there: `promote`, pause or shutdown")
	fl.StringVar(&f.target.Backup, "backup", "", "start from the backup with this `ID` (default: the newest that serves)")
	fl.StringVar(&f.to, "to", "", "restore beside the running server, into the empty or new directory `DIR`")
	fl.BoolVar(&f.delta, "delta", false, "in place: keep every block that is already right")
	fl.BoolVar(&f.plan, "plan", false, "print what would be done, and change nothing")
	fl.BoolVar(&f.plan, "dry-run", false, "the same as --plan")
	fl.BoolVar(&f.standby, "standby", false, "make a standby")
	fl.StringArrayVar(&f.tablespaces, "tablespace", nil, "put a tablespace elsewhere: `OLD=NEW`, OLD being its name, number or directory (repeatable)")
	fl.IntVar(&f.workers, "workers", 0, "`N` workers (default: backup.workers)")
	fl.StringVar(&f.archive, "archive", "off", "`on`: what is restored archives under its parent's name")
	fl.BoolVar(&f.start, "start", false, "start the server and wait until it has reached the target")
	fl.BoolVar(&f.yes, "yes", false, "replace what is there without asking")
	fl.BoolVar(&f.asJSON, "json", false, "print the plan, or what was done, as one JSON document")
	fl.Uint64Var(&f.systemID, "system-id", 0, "system `IDENTIFIER` of the cluster (default: that of postgres.data_dir, or the only one in the store)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		for flag, value := range map[string]*string{"target-time": &at, "target-lsn": &lsn, "target-xid": &xid, "target-name": &name} {
			if given(c.Flags(), flag) {
				*map[string]**string{"target-time": &f.target.Time, "target-lsn": &f.target.LSN, "target-xid": &f.target.XID, "target-name": &f.target.Name}[flag] = value
			}
		}
		return a.restore(c, f)
	}
	return c
}

func given(f *pflag.FlagSet, name string) bool { return f.Changed(name) }

// restore is the command.
func (a *app) restore(c *cobra.Command, f restoreFlags) (err error) {
	target, err := recovery.ParseTarget(f.target)
	if err != nil {
		return usagef(c, "%w", err)
	}
	d := recovery.Destination{Delta: f.delta, Standby: f.standby, Start: f.start, Archive: f.archive == "on"}
	switch {
	case f.archive != "on" && f.archive != "off":
		return usagef(c, "--archive: %q is neither on nor off", f.archive)
	case f.delta && f.to != "":
		return usagef(c, "--delta is for restoring in place, without --to")
	case f.workers < 0:
		return usagef(c, "--workers: %d is less than 1", f.workers)
	case given(c.Flags(), "to") && f.to == "":
		return usagef(c, "--to: the directory has no name")
	}
	for _, s := range f.tablespaces {
		m, err := recovery.ParseMapping(s)
		if err != nil {
			return usagef(c, "%w", err)
		}
		d.Tablespaces = append(d.Tablespaces, m)
	}
	ctx := c.Context()
	e, err := a.env(ctx)
	if err != nil {
		return err
	}
	if err := e.destination(&d, f.to); err != nil {
		return err
	}
	if _, err := os.Stat(d.Dir); d.InPlace && err == nil {
		// What is archived of the old directory has to be the server's, who fetches it again.
		if err := asServerUser(e.Config); err != nil {
			return err
		}
	}
	// A directory that is to be replaced may be damaged; the store or --system-id then tells which cluster is meant.
	r, err := e.repo(ctx, f.systemID)
	if err != nil {
		return hint.Wrap(err, "%s", firstHint(err, "if the data directory is damaged, --system-id says which cluster is meant"))
	}
	ar := e.archive(r, a.log())
	defer ar.Close()
	if d.InPlace && !f.plan {
		if err := a.archiveLeftovers(ctx, e, ar, d.Dir); err != nil {
			return err
		}
	}
	err = a.planAndAct(ctx, e, ar, target, d, f)
	if errors.Is(err, recovery.ErrOutdated) {
		a.log().Info("the plan is made anew", "because", err.Error())
		f.yes = true // that was answered
		err = a.planAndAct(ctx, e, ar, target, d, f)
	}
	return err
}

// planAndAct makes the plan from what the archive holds now, and carries it out or shows it.
func (a *app) planAndAct(ctx context.Context, e *env, ar *archive.Archive, target recovery.Target, d recovery.Destination, f restoreFlags) (err error) {
	w, err := recovery.Observe(ctx, ar, recovery.Surroundings{BinDir: e.Postgres.BinDir, Log: a.log()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	inUse := false
	if d.Scratch() {
		remove, err := scratchPlace(&d)
		if err != nil {
			return err
		}
		defer func() {
			if !inUse {
				remove()
			}
		}()
	}
	p, err := recovery.MakePlan(w.View, target, d)
	if err != nil {
		return err
	}
	if f.plan {
		if f.asJSON {
			err = a.printJSONDocument(p)
		} else {
			err = a.print(planText(p))
		}
		return errors.Join(err, p.Err())
	}
	if err := p.Err(); err != nil {
		return err
	}
	if err := a.confirmReplace(p, f.yes); err != nil {
		return err
	}
	began := time.Now()
	report, err := a.copy(ctx, e, w, p, f)
	if err != nil {
		return err
	}
	inUse = p.Layout.PID == 0 // its settings name it
	res := restoreResult{Plan: p, Report: report}
	if f.start {
		if p.Layout.PID != 0 {
			a.log().Info("an earlier call has started the server, which is waited for", "directory", p.Layout.Dir, "process", p.Layout.PID)
		}
		if res.Started, err = w.Start(ctx, p, e.Postgres.User); err != nil {
			return err
		}
	}
	res.Seconds = time.Since(began).Seconds()
	if f.asJSON {
		return a.printJSONDocument(res)
	}
	return a.print(resultText(&res, e.Postgres.User))
}

func firstHint(err error, otherwise string) string {
	if h := hint.Of(err); h != "" {
		return h
	}
	return otherwise
}

// destination fills in where the restore goes and how the server will call pitr.
func (e *env) destination(d *recovery.Destination, to string) (err error) {
	d.InPlace, d.Dir = to == "", e.Postgres.DataDir
	if !d.InPlace {
		d.Dir = to
	}
	if d.Dir, err = filepath.Abs(d.Dir); err != nil {
		return err
	}
	if d.Program, err = os.Executable(); err != nil {
		return fmt.Errorf("find out where this program is: %w", err)
	}
	d.Config = e.File
	return nil
}

// scratchPlace gives a scratch copy a free port and a directory for its socket: its own, unless that makes too long a path.
// The function returned removes the directory again, for when nothing came of it.
func scratchPlace(d *recovery.Destination) (remove func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("find a free port: %w", err)
	}
	d.Port = l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return nil, fmt.Errorf("find a free port: %w", err)
	}
	if d.SocketDir = d.Dir; recovery.SocketFits(d.SocketDir, d.Port) {
		return func() {}, nil
	}
	if d.SocketDir, err = os.MkdirTemp("", "pitr-socket-"); err != nil {
		return nil, fmt.Errorf("make a directory for the socket: %w", err)
	}
	dir := d.SocketDir
	return func() { _ = os.Remove(dir) }, nil // empty; what stays does no harm
}

// archiveLeftovers archives what the old directory's pg_wal still has, so that it can be restored as well. What can't be
// archived is told; the restore itself then keeps it, or refuses.
func (a *app) archiveLeftovers(ctx context.Context, e *env, ar *archive.Archive, dir string) error {
	w, err := recovery.Observe(ctx, ar, recovery.Surroundings{BinDir: e.Postgres.BinDir})
	if err != nil {
		return err
	}
	defer w.Close()
	names, err := w.ArchiveLeftovers(ctx, dir)
	if err != nil {
		a.log().Warn("WAL of the old directory could not be archived", "error", err.Error())
	}
	if len(names) > 0 {
		a.log().Info("archived WAL that was left in the old directory", "files", len(names), "first", names[0], "last", names[len(names)-1])
	}
	return ctx.Err()
}

// confirmReplace asks before a directory's content is replaced; without a terminal it wants --yes.
func (a *app) confirmReplace(p *recovery.Plan, yes bool) error {
	if !p.Layout.Replaces || yes {
		return nil
	}
	if !isTerminal(a.in) {
		return hint.Wrap(fmt.Errorf("%w: everything in %s would be replaced", recovery.ErrRefused, p.Layout.Dir), "--yes says that this is meant; --plan shows what would be done")
	}
	fmt.Fprintf(a.err, "%sReplace everything in %s? [y/N] ", planText(p), printable(p.Layout.Dir))
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil || !slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(line))) {
		return fmt.Errorf("%w: not confirmed", recovery.ErrRefused)
	}
	return nil
}

// restoreResult is the JSON of a restore.
type restoreResult struct {
	Plan    *recovery.Plan    `json:"plan"`
	Report  *recovery.Report  `json:"report"`
	Started *recovery.Started `json:"started,omitempty"`
	Seconds float64           `json:"seconds"`
}

// copy puts everything into place.
func (a *app) copy(ctx context.Context, e *env, w *recovery.World, p *recovery.Plan, f restoreFlags) (*recovery.Report, error) {
	o := recovery.Options{Workers: e.Backup.Workers, Log: a.log()}
	if f.workers > 0 {
		o.Workers = f.workers
	}
	// A copy belongs to whom the server belongs, wherever it is.
	if os.Geteuid() == 0 {
		if acct, err := postgres.AccountOf(e.Postgres.DataDir); err == nil && acct.UID != 0 {
			o.Owner = &acct
		}
	}
	if p.Destination.SocketDir != "" && p.Destination.SocketDir != p.Layout.Dir && o.Owner != nil {
		if err := os.Chown(p.Destination.SocketDir, int(o.Owner.UID), int(o.Owner.GID)); err != nil {
			return nil, err
		}
	}
	m := a.newMeter()
	defer m.close()
	o.Progress = func(at recovery.Progress) {
		if at.Syncing {
			m.set("making everything durable", 0, 0)
			return
		}
		m.set("restoring", at.Bytes, at.Total)
	}
	return w.Restore(ctx, p, o)
}

// planText is a plan for people.
func planText(p *recovery.Plan) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	line("target", "%s", p.Asked)
	line("stop", "%s", p.What)
	line("last commit", "%s", momentText(p.LastCommit))
	line("timeline", "%d", p.Timeline)
	line("backup", "%s, %s, finished %s", p.Backup.ID, p.Backup.Type, p.Backup.Finished.UTC().Format(time.RFC3339))
	if !p.Layout.Restored {
		line("fetch", "%s, to write %s in %d files", size(p.Fetch), size(p.Write), p.Backup.Files)
	}
	line("WAL", "%d segments (%s), %s; %d transactions", p.Segments, size(p.Segments*p.Backup.WALSegSize), p.SegmentRange(), p.Replayed)
	where := "new"
	switch {
	case p.Layout.PID != 0:
		where = "restored already, the server runs"
	case p.Layout.Restored:
		where = "restored already"
	case p.Layout.Resumes:
		where = "to be completed"
	case p.Layout.Replaces && p.Destination.Delta:
		where = "in place, what is right is kept"
	case p.Layout.Replaces:
		where = "in place, its content is replaced"
	}
	line("directory", "%s (%s)", p.Layout.Dir, where)
	if p.Layout.WALDir != "" {
		line("pg_wal", "%s", p.Layout.WALDir)
	}
	for _, l := range p.Layout.Tablespaces {
		if l.Path != "" {
			line("tablespace", "%q (%d): %s", l.Name, l.OID, l.Path)
		}
	}
	for _, s := range p.Why {
		line("because", "%s", s)
	}
	for _, o := range p.Obstacles {
		kind := "note"
		if o.Fatal {
			kind = "obstacle"
		}
		line(kind, "%s", o.What)
		if o.Hint != "" {
			line("", "HINT: %s", o.Hint)
		}
	}
	return b.String()
}

func momentText(m *recovery.Moment) string {
	if m == nil {
		return "none between the start of the backup and the stop"
	}
	return m.String()
}

// shellWord quotes a word for a command line that people copy.
func shellWord(s string) string {
	return strings.ReplaceAll(postgres.ShellQuote(s), "%%", "%") // which are doubled for the server's commands
}

// optionsOf are the words that make pg_ctl pass on what the server has to be told, which it does by way of another shell.
func optionsOf(p *recovery.Plan) string {
	var words []string
	for _, o := range p.ServerOptions() {
		words = append(words, shellWord(o))
	}
	if len(words) == 0 {
		return ""
	}
	return " -o " + shellWord(strings.Join(words, " "))
}

// resultText is what was done, for people.
func resultText(r *restoreResult, user string) string {
	var b strings.Builder
	line := func(format string, args ...any) { b.WriteString(printable(fmt.Sprintf(format, args...)) + "\n") }
	p, rep, d := r.Plan, r.Report, r.Plan.Destination
	kept := ""
	if rep.Kept > 0 {
		kept = fmt.Sprintf(" (%s were right already)", size(rep.Kept))
	}
	if rep.Before != nil {
		line("an earlier call, on %s, has restored backup %s to %s", rep.Before.UTC().Format(time.RFC3339), p.Backup.ID, p.Layout.Dir)
		if d.InPlace {
			line("with --delta every block is compared with the backup once more")
		}
	} else {
		line("restored backup %s to %s: %d files, %s written%s in %s", p.Backup.ID, p.Layout.Dir, rep.Files, size(rep.Fetched), kept, rep.Took.Round(time.Millisecond))
	}
	for _, s := range rep.Warnings {
		line("note: %s", s)
	}
	if rep.Aside != "" {
		line("WAL that could not be archived is in %s", rep.Aside)
	}
	line("target: %s; stop %s", p.Asked, p.What)
	line("last commit: %s", momentText(p.LastCommit))
	for _, o := range p.Obstacles {
		line("note: %s", o.What)
	}
	s := r.Started
	connect := func(host string, port int) {
		line("connect with: psql -h %s -p %s -U %s", shellWord(host), strconv.Itoa(port), shellWord(user))
	}
	switch {
	case s == nil && d.Scratch():
		line("start it with: pg_ctl -D %s -l %s start", shellWord(p.Layout.Dir), shellWord(filepath.Join(p.Layout.Dir, recovery.ServerLog)))
		connect(d.SocketDir, d.Port)
	case s == nil:
		line("start it with: pg_ctl -D %s%s start", shellWord(p.Layout.Dir), optionsOf(p))
		if !d.InPlace {
			line("port, addresses and files outside of the directory are as the configuration that was backed up names them: beside its parent, change them first")
		}
	case s.PID == 0:
		line("the server has reached the target at %s and shut down", s.Replayed)
	default:
		line("the server has reached the target at %s in %s, timeline %d", s.Replayed, s.Took.Round(time.Millisecond), s.Timeline)
		host := s.SocketDir
		if host == "" {
			host = "localhost"
		}
		connect(host, s.Port)
		line("stop it with: %s -D %s stop", shellWord(filepath.Join(s.BinDir, "pg_ctl")), shellWord(p.Layout.Dir))
	}
	if d.Scratch() {
		line("it is a copy apart: a socket of its own and no TCP, by settings at the end of %s", shellWord(filepath.Join(p.Layout.Dir, postgres.AutoConf)))
	}
	if !d.Archive {
		line("it archives nothing (--archive off)")
	}
	return b.String()
}
