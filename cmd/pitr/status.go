package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pitr/archive"
	"pitr/internal/agent"
)

func newStatus(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show server, archive, backups, the recoverable window and the agent on one screen",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return a.status(c.Context(), asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return c
}

func (a *app) status(ctx context.Context, asJSON bool) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	s := agent.Observe(ctx, agent.Sources{
		Config: c,
		Store:  c.Storage.URL,
		Now:    time.Now,
		Open: func(ctx context.Context) (*archive.Archive, error) {
			e, err := openEnv(ctx, c)
			if err != nil {
				return nil, err
			}
			r, err := e.repo(ctx, 0)
			if err != nil {
				return nil, err
			}
			return e.archive(r, nil), nil
		},
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if asJSON {
		return a.printJSONDocument(s)
	}
	return a.print(statusText(s))
}

// statusText is a status for people: one screen.
func statusText(s *agent.Status) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	line("cluster", "%s, node %s, %s", s.Cluster, s.Node, moment(s.Time))
	serverText(s.Server, line)
	if ar := s.Archive; ar != nil {
		archiveText(ar, s.Time, line)
	}
	if k := s.Backups; k != nil && k.Count > 0 {
		line("backups", "%d, newest %s (%s, %s ago), oldest %s", k.Count, k.Newest.ID, k.Newest.Type, ago(s.Time, k.Newest.Finished), k.Oldest.ID)
	} else if k != nil {
		line("backups", "none")
	}
	switch w := s.Window; {
	case w == nil:
		line("window", "nothing can be restored yet, as far as is known")
	case w.To.IsZero():
		line("window", "from %s to %s on timeline %d", moment(w.From), w.ToLSN, w.Timeline)
	default:
		line("window", "from %s to %s (%s) on timeline %d", moment(w.From), moment(w.To), w.ToLSN, w.Timeline)
	}
	if r := s.Agent; r != nil {
		agentText(r, line)
	}
	for i, p := range s.Problems {
		name := ""
		if i == 0 {
			name = "problems"
		}
		line(name, "%s", p.What)
		if p.Hint != "" {
			line("", "HINT: %s", p.Hint)
		}
	}
	return b.String()
}

func serverText(v *agent.ServerStatus, line func(name, format string, args ...any)) {
	if !v.Running {
		line("server", "can't be asked; %d files wait to be archived", v.Ready)
		return
	}
	line("server", "PostgreSQL %d.%d, %s, timeline %d, at %s; %d files wait to be archived", v.Version/10000, v.Version%10000, v.Role, v.Timeline, v.LSN, v.Ready)
}

func archiveText(ar *agent.ArchiveStatus, now time.Time, line func(name, format string, args ...any)) {
	text := "nothing archived yet"
	if ar.Last != "" {
		text = fmt.Sprintf("last segment %s, %s ago", ar.Last, ago(now, ar.LastAt))
	}
	if ar.LagBytes != nil {
		text += fmt.Sprintf(", %d bytes behind the server", *ar.LagBytes)
	}
	line("archive", "%s: %s", ar.Store, text)
	for _, t := range ar.Timelines {
		line("", "timeline %d: %d segments, %s to %s, %d MB stored", t.Timeline, t.Segments, t.First, t.Last, t.Stored>>20)
	}
	if len(ar.Gaps) == 0 {
		line("gaps", "none")
	}
	for _, g := range ar.Gaps {
		line("gaps", "timeline %d: %s to %s is missing", g.Timeline, g.First, g.Last)
	}
	for _, x := range ar.Conflicts {
		line("conflicts", "%s has several contents", x.Name)
	}
}

func agentText(r *agent.Running, line func(name, format string, args ...any)) {
	line("agent", "process %d since %s: %d files archived, %.1f per second; %d fetched, %d of them ahead",
		r.PID, moment(r.Started), r.Push.Files, r.Push.PerSecond, r.Fetch.Files, r.Fetch.Ahead)
	for _, j := range r.Jobs {
		switch {
		case j.Running:
			line("", "%s runs since %s", j.Name, moment(j.Began))
		case j.Next.IsZero():
			line("", "%s is never due", j.Name)
		default:
			line("", "%s next at %s", j.Name, moment(j.Next))
		}
	}
}

func moment(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func ago(now, then time.Time) string { return max(now.Sub(then), 0).Round(time.Second).String() }
