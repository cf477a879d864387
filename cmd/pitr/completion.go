package main

import (
	"bytes"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newCompletion(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:       "completion SHELL",
		Short:     "Print the completion script for bash, zsh, fish or powershell",
		Long:      "Print the completion script for a shell. For bash, in ~/.bashrc:\n\n  source <(pitr completion bash)",
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      cobra.ExactArgs(1),
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		root := c.Root()
		generate := map[string]func(io.Writer) error{
			"bash":       func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
			"zsh":        root.GenZshCompletion,
			"fish":       func(w io.Writer) error { return root.GenFishCompletion(w, true) },
			"powershell": root.GenPowerShellCompletionWithDesc,
		}[args[0]]
		if generate == nil {
			return usagef(c, "unknown shell %q: it must be bash, zsh, fish or powershell", args[0])
		}
		var script bytes.Buffer
		if err := generate(&script); err != nil {
			return fmt.Errorf("make the completion script: %w", err)
		}
		return a.print(script.String())
	}
	return c
}
