package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"pitr/archive"
	"pitr/internal/agent"
	"pitr/storage"
)

// errCheckFailed is for `pitr check`, which has said already what failed.
var errCheckFailed = errors.New("check: something failed")

func newCheck(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Prove the set-up end to end: store, server, a real segment archived and read back",
		Long: "Prove the set-up from end to end, one line per check: ok, warn or fail. The server writes a restore point and ends\n" +
			"a WAL segment for it, which is then awaited in the store and read back. Exits 1 if anything failed. Root checks as the\n" +
			"server's user.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.check(c.Context(), asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return c
}

func (a *app) check(ctx context.Context, asJSON bool) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	if err := asServerUser(c); err != nil {
		return err
	}
	var findings []agent.Finding
	var printErr error
	checks := agent.Checks{
		Config: c,
		Now:    time.Now,
		Bucket: func(ctx context.Context) (storage.Bucket, error) {
			e, err := openEnv(ctx, c)
			if err != nil {
				return nil, err
			}
			return e.bucket, nil
		},
		Archive: func(ctx context.Context) (*archive.Archive, error) {
			e, err := openEnv(ctx, c)
			if err != nil {
				return nil, err
			}
			r, err := e.ensureRepo(ctx, c.Postgres.DataDir)
			if err != nil {
				return nil, err
			}
			return e.archive(r, nil), nil
		},
		Report: func(f agent.Finding) {
			findings = append(findings, f)
			if !asJSON && (!a.quiet || f.Status != agent.CheckOK) {
				printErr = errors.Join(printErr, a.print(findingText(f)))
			}
		},
	}
	passed := checks.Run(ctx)
	if asJSON {
		printErr = a.printJSONDocument(findings)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case printErr != nil:
		return printErr
	case !passed:
		return errCheckFailed
	}
	return nil
}

func findingText(f agent.Finding) string {
	text := fmt.Sprintf("%-4s %s: %s\n", f.Status, f.Name, printable(f.Message))
	if f.Hint != "" && f.Status != agent.CheckOK {
		text += "HINT: " + printable(f.Hint) + "\n"
	}
	return text
}
