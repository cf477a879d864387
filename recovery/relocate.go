package recovery

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"pitr/internal/postgres"
)

// syntax is that of a configuration file.
type syntax int

const (
	settingsFile syntax = iota // postgresql.conf (guc-file.l)
	// pg_hba.conf, pg_ident.conf, and what they include or list (next_token in src/backend/libpq/hba.c)
	accessFile
)

var (
	// includeLine is a line of a settingsFile that includes other files.
	includeLine = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?i)^\s*(include_if_exists|include_dir|include)[\s=]+(?:'((?:[^']|'')*)'|([^\s#']+))`)
	})
	// includeToken is the same in an accessFile, from PostgreSQL 16 on.
	includeToken = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^\s*(include_if_exists|include_dir|include)[\s,]+(?:"((?:[^"]|"")*)"|([^\s,#"]+))`)
	})
	// listToken names, in an accessFile, a file that more names stand in.
	listToken = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?:^|[\s,])(@)(?:"((?:[^"]|"")*)"|([^\s,#"]+))`)
	})
)

// mention is what a line says of another file.
type mention struct {
	verb     string // include_dir, …, or @
	name     string
	from, to int // of the line: what names it
}

// mentions gives those of a line, in their order.
func (x syntax) mentions(line []byte, major int) []mention {
	var found [][]int
	quote := `"`
	switch {
	case x == settingsFile:
		found, quote = includeLine().FindAllSubmatchIndex(line, 1), "'"
	case bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")):
	default:
		if major >= 16 { // before, it is the name of something
			found = includeToken().FindAllSubmatchIndex(line, 1)
		}
		if found == nil {
			found = listToken().FindAllSubmatchIndex(line, -1)
		}
	}
	var all []mention
	for _, m := range found {
		group := func(i int) string {
			if m[2*i] < 0 {
				return ""
			}
			return string(line[m[2*i]:m[2*i+1]])
		}
		all = append(all, mention{strings.ToLower(group(1)), strings.ReplaceAll(group(2), quote+quote, quote) + group(3), m[2], m[1]})
	}
	return all
}

// quote writes a path as the file takes it.
func (x syntax) quote(path string) (string, error) {
	if x == settingsFile {
		return postgres.QuoteConf(path)
	}
	if strings.ContainsAny(path, "\x00\n\r") {
		return "", fmt.Errorf("%q can't be named in pg_hba.conf", path)
	}
	return `"` + strings.ReplaceAll(path, `"`, `""`) + `"`, nil
}

// beside gives the file that a mention in a file of dir means.
func (m mention) beside(dir string) string {
	if filepath.IsAbs(m.name) {
		return filepath.Clean(m.name)
	}
	return filepath.Join(dir, m.name)
}

// syntaxes tells the syntax of the files that were outside of the data directory: an included one has that of the file which
// includes it. within are access files of the data directory itself.
func (r *restorer) syntaxes(within ...configFile) map[string]syntax {
	of := map[string]syntax{}
	var follow func(c *configFile)
	follow = func(c *configFile) {
		for line := range bytes.Lines(c.text) {
			for _, m := range accessFile.mentions(line, r.major()) {
				target := m.beside(filepath.Dir(c.path))
				for i := range r.config {
					x := &r.config[i]
					if _, known := of[x.path]; !known && (x.path == target || m.verb == "include_dir" && filepath.Dir(x.path) == target) {
						of[x.path] = accessFile
						follow(x)
					}
				}
			}
		}
	}
	for i := range r.config {
		if c := &r.config[i]; c.name == "hba_file" || c.name == "ident_file" {
			of[c.path] = accessFile
			follow(c)
		}
	}
	for i := range within {
		follow(&within[i])
	}
	return of
}

func (r *restorer) major() int { return r.p.Backup.ServerVersion / 10000 }

// relocate makes a configuration file, which was in dir, name files of the copy.
func (r *restorer) relocate(x syntax, text []byte, dir string, known map[string]bool) ([]byte, error) {
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		done := 0
		for _, m := range x.mentions(line, r.major()) {
			target := m.beside(dir)
			moved := filepath.Join(r.dir, configDir, target)
			if inside(r.dir, target) {
				moved = target // relative, in the data directory itself
			}
			switch {
			case m.verb == "@" && !known[target]:
				continue // beside this file, or nowhere
			case m.verb == "include_dir":
				if err := r.makeDir(moved, 0o700); err != nil {
					return nil, err
				}
			case moved == target:
				continue
			case !known[target] && m.verb == "include":
				r.warn("the configuration includes %s, which is not in the backup", target)
				m.verb = "include_if_exists"
			}
			quoted, err := x.quote(moved)
			if err != nil {
				return nil, err
			}
			if m.verb != "@" {
				m.verb += " "
			}
			out.Write(line[done:m.from])
			out.WriteString(m.verb + quoted)
			done = m.to
		}
		out.Write(line[done:])
	}
	return out.Bytes(), nil
}
