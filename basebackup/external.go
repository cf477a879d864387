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
	"sync"
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
	f.file("config_file", info.ConfigFile, nil, 0)
	f.file("hba_file", info.HBAFile, listFile(), 0)
	f.file("ident_file", info.IdentFile, nil, 0)
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
var includeLine = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)^\s*(include|include_if_exists|include_dir)[\s=]+(?:'((?:[^']|'')*)'|"([^"]*)"|([^\s#'"]+))`)
})

// listFile is a file that a list of databases or users in pg_hba.conf stands in, or another such file: @ and its name, which
// may be quoted (next_token and tokenize_inc_file in src/backend/libpq/hba.c). Without it the server does not start.
var listFile = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?:^|[\s,])@(?:"([^"]+)"|([^\s,#"]+))`) })

// file takes in a file and what it names: by lines that include others, and by lists, unless that is nil.
func (f *externalFinder) file(name, path string, lists *regexp.Regexp, depth int) {
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
		at := path
		if !f.outside(at) {
			at = real // the data directory holds a link to it
		}
		f.found = append(f.found, external{name: name, path: at, info: info})
	}
	f.includes(path, real, lists, depth)
}

func (f *externalFinder) includes(path, real string, lists *regexp.Regexp, depth int) {
	in, err := os.Open(real)
	if err != nil {
		f.log.Warn("a configuration file can't be read", "path", path, "error", err)
		return
	}
	defer in.Close()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if lists != nil && !strings.HasPrefix(strings.TrimSpace(lines.Text()), "#") {
			for _, m := range lists.FindAllStringSubmatch(lines.Text(), -1) {
				f.file("include", beside(path, m[1]+m[2]), lists, depth+1)
			}
		}
		m := includeLine().FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		target := strings.ReplaceAll(m[2], "''", "'") + m[3] + m[4]
		if target == "" {
			continue
		}
		target = beside(path, target)
		if !strings.EqualFold(m[1], "include_dir") {
			f.file("include", target, lists, depth+1)
			continue
		}
		names, err := readNames(target)
		if err != nil {
			f.log.Warn("a directory of configuration files can't be read", "path", target, "error", err)
		}
		for _, n := range names {
			if strings.HasSuffix(n, ".conf") && n[0] != '.' {
				f.file("include", filepath.Join(target, n), lists, depth+1)
			}
		}
	}
	if err := lines.Err(); err != nil {
		f.log.Warn("a configuration file can't be read", "path", path, "error", err)
	}
}

// beside gives the path that a configuration file means by a name: next to where the server found it, be that a link.
func beside(path, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(path), name)
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
