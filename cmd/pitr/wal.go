package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pitr/archive"
	"pitr/internal/hint"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// verificationError is what a command ends with that found something wrong: exit status 5.
type verificationError struct{ what string }

func (e *verificationError) Error() string { return e.what }

func newWAL(a *app) *cobra.Command {
	var systemID uint64
	var asJSON bool
	list := &cobra.Command{
		Use:   "list",
		Short: "Show what is archived of each timeline, and every gap",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return a.walList(c.Context(), systemID, asJSON) },
	}
	verify := &cobra.Command{
		Use:   "verify [NAME…]",
		Short: "Read back and verify what is archived",
		Long: "Read back and verify what is archived: every byte of the objects, the pages of the WAL, and that nothing is missing\n" +
			"in between. NAMEs are those that the server gives its files, such as 000000010000000000000003; without any,\n" +
			"everything is read. The exit status is 5 if there are damaged objects, gaps or conflicts.",
		RunE: func(c *cobra.Command, names []string) error { return a.walVerify(c.Context(), systemID, asJSON, names) },
	}
	resolve := &cobra.Command{
		Use:   "resolve SEGMENT DIGEST",
		Short: "Settle a conflict that two writers made; both contents stay",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.walResolve(c.Context(), systemID, args[0], args[1])
		},
	}
	for _, c := range []*cobra.Command{list, verify, resolve} {
		c.Flags().Uint64Var(&systemID, "system-id", 0, "system `IDENTIFIER` of the cluster (default: that of postgres.data_dir, or the only one in the store)")
	}
	for _, c := range []*cobra.Command{list, verify} {
		c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	}
	return group("wal", "Archive WAL and give it back", newWALPush(a), newWALFetch(a), list, verify, resolve)
}

// openArchive opens the archive of the configured cluster, for reading and for settling conflicts.
func (a *app) openArchive(ctx context.Context, systemID uint64) (*archive.Archive, error) {
	e, err := a.env(ctx)
	if err != nil {
		return nil, err
	}
	r, err := e.repo(ctx, systemID)
	if err != nil {
		return nil, err
	}
	return e.archive(r, a.log()), nil
}

// walListing is the JSON of `wal list`.
type walListing struct {
	SystemID    uint64             `json:"system_identifier,string"`
	SegmentSize int64              `json:"wal_segment_size"`
	Timelines   []walTimeline      `json:"timelines"`
	Gaps        []archive.Gap      `json:"gaps"`
	Conflicts   []archive.Conflict `json:"conflicts"`
}

type walTimeline struct {
	Timeline wal.Timeline `json:"timeline"`
	// Parent and Begin say where it left another timeline; absent where that is not known.
	Parent   wal.Timeline `json:"parent,omitempty"`
	Begin    wal.LSN      `json:"begin_lsn,omitempty"`
	Segments uint64       `json:"segments"`
	Stored   int64        `json:"stored"`
	Runs     []walRun     `json:"runs"`
	Partials []walPartial `json:"partials"`
}

type walRun struct {
	First    string  `json:"first"`
	Last     string  `json:"last"`
	From     wal.LSN `json:"from_lsn"`
	To       wal.LSN `json:"to_lsn"`
	Segments uint64  `json:"segments"`
}

type walPartial struct {
	Segment string  `json:"segment"`
	End     wal.LSN `json:"end_lsn"`
}

func listing(systemID uint64, c *archive.Coverage) walListing {
	l := walListing{
		SystemID: systemID, SegmentSize: c.SegSize, Timelines: []walTimeline{},
		Gaps: append([]archive.Gap{}, c.Gaps()...), Conflicts: append([]archive.Conflict{}, c.Conflicts...),
	}
	for _, tli := range c.TimelinesInOrder() {
		have := c.Timelines[tli]
		t := walTimeline{Timeline: tli, Stored: have.Stored, Runs: []walRun{}, Partials: []walPartial{}}
		if h, err := c.History(tli); err == nil {
			if from, ok := h.Parent(); ok {
				t.Parent, t.Begin = from.Timeline, from.At
			}
		}
		for _, r := range have.Runs {
			n := r.Last - r.First + 1
			t.Segments += n
			t.Runs = append(t.Runs, walRun{
				First: wal.SegmentName(tli, r.First, c.SegSize), Last: wal.SegmentName(tli, r.Last, c.SegSize),
				From: wal.SegmentStart(r.First, c.SegSize), To: wal.SegmentStart(r.Last+1, c.SegSize), Segments: n,
			})
		}
		for _, p := range have.PartialsInOrder() {
			t.Partials = append(t.Partials, walPartial{Segment: wal.SegmentName(tli, p.No, c.SegSize), End: p.End})
		}
		l.Timelines = append(l.Timelines, t)
	}
	return l
}

func (a *app) walList(ctx context.Context, systemID uint64, asJSON bool) error {
	ar, err := a.openArchive(ctx, systemID)
	if err != nil {
		return err
	}
	defer ar.Close()
	c, err := ar.Coverage(ctx)
	if err != nil {
		return err
	}
	l := listing(ar.Repo().SystemID(), c)
	if asJSON {
		return a.printJSONDocument(l)
	}
	return a.print(listText(l))
}

// listText is the table for people.
func listText(l walListing) string {
	if len(l.Timelines) == 0 {
		return "no WAL is archived\n"
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TIMELINE\tFIRST\tLAST\tSEGMENTS\tFROM\tTO")
	for _, t := range l.Timelines {
		for _, r := range t.Runs {
			fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\n", t.Timeline, r.First, r.Last, r.Segments, r.From, r.To)
		}
		for _, p := range t.Partials {
			fmt.Fprintf(w, "%d\t%s\tpartial\t\t\t%s\n", t.Timeline, p.Segment, p.End)
		}
	}
	// The buffer takes everything.
	_ = w.Flush()
	for _, t := range l.Timelines {
		if t.Parent != 0 {
			fmt.Fprintf(&b, "timeline %d left timeline %d at %s\n", t.Timeline, t.Parent, t.Begin)
		}
	}
	b.WriteString(troubleText(l.Gaps, l.Conflicts))
	return b.String()
}

func troubleText(gaps []archive.Gap, conflicts []archive.Conflict) string {
	var b strings.Builder
	for _, g := range gaps {
		if g.First == g.Last {
			fmt.Fprintf(&b, "gap: %s is missing (%s to %s)\n", g.First, g.From, g.To)
			continue
		}
		fmt.Fprintf(&b, "gap: %s to %s are missing (%s to %s)\n", g.First, g.Last, g.From, g.To)
	}
	for _, c := range conflicts {
		fmt.Fprintf(&b, "conflict: %s is archived as %s", c.Name, digests(c.Archived))
		if len(c.Aside) > 0 {
			fmt.Fprintf(&b, "; refused: %s", digests(c.Aside))
		}
		b.WriteString("\n")
	}
	return b.String()
}

func digests(ds []repo.Digest) string {
	var words []string
	for _, d := range ds {
		words = append(words, d.String())
	}
	return strings.Join(words, " and ")
}

func (a *app) walVerify(ctx context.Context, systemID uint64, asJSON bool, names []string) error {
	ar, err := a.openArchive(ctx, systemID)
	if err != nil {
		return err
	}
	defer ar.Close()
	o := archive.VerifyOptions{Names: names}
	if !a.quiet {
		const pause = 5 * time.Second
		begin := time.Now()
		next := begin.Add(pause)
		o.Progress = func(p archive.VerifyProgress) {
			if now := time.Now(); now.After(next) {
				next = now.Add(pause)
				// Progress that nobody sees is no failure.
				_, _ = fmt.Fprintf(a.err, "verified %d objects, %d MB, %.0f MB/s\n", p.Objects, p.Bytes/1e6, float64(p.Bytes)/1e6/now.Sub(begin).Seconds())
			}
		}
	}
	r, err := ar.Verify(ctx, o)
	if err != nil {
		return err
	}
	if asJSON {
		err = a.printJSONDocument(r)
	} else {
		err = a.print(verifyText(r))
	}
	if err == nil && !r.OK() {
		err = hint.Wrap(&verificationError{fmt.Sprintf("verify the archive: %s, %s, %s",
			count(len(r.Damaged), "damaged object"), count(len(r.Gaps), "gap"), count(len(r.Conflicts), "conflict"))},
			"what can't be recovered from WAL any more is safe again after `pitr backup create --full`; conflicts are settled by `pitr wal resolve`")
	}
	return err
}

func verifyText(r *archive.Report) string {
	var b strings.Builder
	for _, d := range r.Damaged {
		fmt.Fprintf(&b, "damaged: %s\n", printable(d.Reason))
	}
	b.WriteString(troubleText(r.Gaps, r.Conflicts))
	for _, name := range r.Unindexed {
		fmt.Fprintf(&b, "no index: %s is whole, but what is in it has to be read anew each time\n", name)
	}
	fmt.Fprintf(&b, "verified %s and %s, %d bytes\n", count(r.Segments, "segment"), count(r.Files, "other file"), r.Bytes)
	return b.String()
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (a *app) walResolve(ctx context.Context, systemID uint64, name, digest string) error {
	d, err := repo.ParseDigest(digest)
	if err != nil {
		return hint.Wrap(err, "`pitr wal list` shows the conflicts with the digests of their contents")
	}
	ar, err := a.openArchive(ctx, systemID)
	if err != nil {
		return err
	}
	defer ar.Close()
	if err := ar.Resolve(ctx, name, d, who(a)); err != nil {
		return err
	}
	if a.quiet {
		return nil
	}
	return a.print(fmt.Sprintf("%s is %s from now on\n", name, d))
}

// who names the person at the keyboard, for the record.
func who(a *app) string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if c, err := a.config(); err == nil {
		name += "@" + c.Cluster.Node
	}
	return name
}

func (a *app) printJSONDocument(v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return a.print(string(data) + "\n")
}
