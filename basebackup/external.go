package basebackup

import (
	"bufio"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"pitr/internal/postgres"
)

// maxIncludes is how deep the server lets configuration files include others (CONF_FILE_MAX_DEPTH in
// src/include/utils/conffiles.h).
const maxIncludes = 10

// external is a configuration file outside the data directory.
type external struct {
	name string // of the setting, or "include"
	path string
	info fs.FileInfo
}

// findExternal lists the server's configuration files that are not in its data directory, those that they include among
// them, by path. One that can't be read is left out with a warning: the server runs without it being read again.
func findExternal(info postgres.Info, dataDir string, log *slog.Logger) []external {
	f := externalFinder{log: log, seen: make(map[string]bool)}
	f.dataDir = resolve(dataDir)
	f.file("config_file", info.ConfigFile, 0)
	f.file("hba_file", info.HBAFile, 0)
	f.file("ident_file", info.IdentFile, 0)
	slices.SortFunc(f.found, func(a, b external) int { return strings.Compare(a.path, b.path) })
	return f.found
}

type externalFinder struct {
	dataDir string
	log     *slog.Logger
	seen    map[string]bool
	found   []external
}

// includeLine is a line that includes other files: in the main file the value may be quoted and follow an equals sign
// (guc-file.l); in the two others, from PostgreSQL 16 on, it is a token, which may be quoted (hba.c).
var includeLine = regexp.MustCompile(`(?i)^\s*(include|include_if_exists|include_dir)[\s=]+(?:'((?:[^']|'')*)'|"([^"]*)"|([^\s#'"]+))`)

func (f *externalFinder) file(name, path string, depth int) {
	if path == "" || depth > maxIncludes {
		return
	}
	path = filepath.Clean(path)
	real := resolve(path)
	if f.seen[real] {
		return
	}
	f.seen[real] = true
	info, err := os.Stat(real)
	if gone(err) {
		return // hba_file and ident_file may be named without being there
	}
	if err != nil || !info.Mode().IsRegular() {
		f.log.Warn("a configuration file is left out of the backup", "path", path, "error", err)
		return
	}
	if f.outside(real) {
		if !f.outside(path) {
			path = real // the data directory holds a link to it
		}
		f.found = append(f.found, external{name: name, path: path, info: info})
	}
	f.includes(path, real, depth)
}

func (f *externalFinder) includes(path, real string, depth int) {
	in, err := os.Open(real)
	if err != nil {
		f.log.Warn("a configuration file can't be read", "path", path, "error", err)
		return
	}
	defer in.Close()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		m := includeLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		target := strings.ReplaceAll(m[2], "''", "'") + m[3] + m[4]
		if target == "" {
			continue
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		if !strings.EqualFold(m[1], "include_dir") {
			f.file("include", target, depth+1)
			continue
		}
		names, err := readNames(target)
		if err != nil {
			f.log.Warn("a directory of configuration files can't be read", "path", target, "error", err)
		}
		for _, n := range names {
			if strings.HasSuffix(n, ".conf") && n[0] != '.' {
				f.file("include", filepath.Join(target, n), depth+1)
			}
		}
	}
	if err := lines.Err(); err != nil {
		f.log.Warn("a configuration file can't be read", "path", path, "error", err)
	}
}

func (f *externalFinder) outside(path string) bool {
	return path != f.dataDir && !strings.HasPrefix(path, f.dataDir+"/")
}

// resolve follows the links in a path, as far as it exists.
func resolve(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return filepath.Clean(path)
}
