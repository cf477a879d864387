// Command pitr makes a PostgreSQL server recoverable to any second: it archives WAL, takes base backups and restores.
//
// Each command has a file here that holds its flags, the wiring of the packages that do the work, and the printing;
// nothing here decides anything about data. How errors become text and exit status is in errors.go alone.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"pitr/internal/config"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// app is what every command needs: the streams and the flags that all commands share.
type app struct {
	in         io.Reader
	out, err   io.Writer
	configFile string // as given by --config
	quiet      bool   // print nothing but the result
}

// config finds, reads and checks the configuration.
func (a *app) config() (*config.Config, error) {
	path, err := config.Find(a.configFile)
	if err != nil {
		return nil, err
	}
	return config.Load(path)
}

// run executes one command line and returns the exit status. The first SIGINT or SIGTERM cancels the command's
// context, upon which it stops cleanly; the second one ends the process as it would any other.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	if code, ok := runHook(args, errOut); ok {
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	a := &app{in: in, out: out, err: errOut}
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)

	// What fails before a command's own code begins is the way it was called.
	began := false
	eachCommand(root, func(c *cobra.Command) {
		if inner := c.RunE; inner != nil {
			c.RunE = func(c *cobra.Command, args []string) error {
				began = true
				return inner(c, args)
			}
		}
	})
	c, err := root.ExecuteContextC(ctx)
	if err != nil && !began {
		err = &usageError{command: c.CommandPath(), err: err}
	}
	return report(ctx, errOut, err)
}

func newRoot(a *app) *cobra.Command {
	root := group("pitr", "Make a PostgreSQL server recoverable to any second",
		newAgent(a),
		newCheck(a),
		newStatus(a),
		newWAL(a),
		newBackup(a),
		newPrune(a),
		newRestore(a),
		newConfig(a),
		newCompletion(a),
		newVersion(a),
	)
	root.Long = "pitr archives the WAL of a PostgreSQL server, takes base backups and restores to any second."
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVar(&a.configFile, "config", "", "configuration `FILE` (else $PITR_CONFIG, ./pitr.yaml, /etc/pitr/pitr.yaml)")
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "print nothing but the result")
	return root
}

// group makes a command that only holds others. Called by itself, or with a word that is none of them, it fails: a
// script with a slip in it must not take a page of help for success.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs}
	g.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef(c, "a command is missing")
		}
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			return usagef(c, "unknown command %q, did you mean %s?", args[0], strings.Join(near, " or "))
		}
		return usagef(c, "unknown command %q", args[0])
	}
	g.SuggestionsMinimumDistance = 2
	g.AddCommand(commands...)
	return g
}

func eachCommand(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, s := range c.Commands() {
		eachCommand(s, f)
	}
}
