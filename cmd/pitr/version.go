package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker (see Makefile), which needs a variable.
var version = "dev"

type versionInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"` // empty if unknown; ends in -dirty where the tree had changes
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Zstd     string `json:"zstd"` // which compressor is built in: c or go; the format is the same
}

func newVersion(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			if asJSON {
				data, err := json.Marshal(v)
				if err != nil {
					return fmt.Errorf("print the version: %w", err)
				}
				return a.print(string(data) + "\n")
			}
			return a.print(fmt.Sprintf("pitr %s (%s, %s, zstd in %s)\n", v.Version, v.Go, v.Platform, v.Zstd))
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return c
}

func readVersion() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Zstd: "go"}
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	dirty := ""
	for _, s := range b.Settings {
		switch {
		case s.Key == "vcs.revision":
			v.Commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		case s.Key == "CGO_ENABLED" && s.Value == "1":
			v.Zstd = "c"
		}
	}
	if v.Commit != "" {
		v.Commit += dirty
	}
	return v
}
