package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"pitr/internal/config"
)

func newConfig(a *app) *cobra.Command {
	return group("config", "Check and show the configuration",
		&cobra.Command{
			Use:   "check",
			Short: "Check the configuration file",
			Long: "Check the configuration file. Everything that is wrong is reported at once, each with its place.\n" +
				"Nothing outside the file is tried: that is what `pitr check` does.",
			Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return a.configCheck() },
		},
		&cobra.Command{
			Use:   "show",
			Short: "Print what is in force, secrets masked",
			Args:  cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				c, err := a.config()
				if err != nil {
					return err
				}
				text, err := config.Show(*c)
				if err != nil {
					return err
				}
				return a.print(text)
			},
		},
		&cobra.Command{
			Use:   "default",
			Short: "Print a commented file with every key and its default",
			Args:  cobra.NoArgs,
			RunE:  func(*cobra.Command, []string) error { return a.print(string(config.DefaultFile())) },
		},
	)
}

func (a *app) configCheck() error {
	c, err := a.config()
	if err != nil {
		return err
	}
	for _, p := range config.Warnings(*c) {
		complain(a.err, "pitr: warning: "+p.Path+": "+p.Text, p.Hint)
	}
	if a.quiet {
		return nil
	}
	if c.File == "" {
		return a.print("no configuration file: the defaults are in force\n")
	}
	return a.print(printable(c.File) + ": ok\n")
}

// print writes a result. One that did not arrive is a failure: a script that fills a file from it must notice.
func (a *app) print(text string) error {
	if _, err := fmt.Fprint(a.out, text); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}
