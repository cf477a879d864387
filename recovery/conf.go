package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"pitr/basebackup"
	"pitr/internal/postgres"
	"sync"
)

// configDir is where configuration files from outside of the data directory go in a copy beside the server, each under
// the absolute path it had, so that relative includes hold.
const configDir = "pitr_config"

// configFile is one of them.
type configFile struct {
	name string // the setting that names it, or "include"
	path string // where it was
	mode fs.FileMode
	text []byte
}

// external notes a configuration file from outside of the data directory. They come last in a manifest, and there are few.
func (r *restorer) external(ctx context.Context, e *basebackup.Entry) error {
	text, err := r.content(ctx, e)
	if err != nil {
		return err
	}
	r.config = append(r.config, configFile{name: e.Name, path: e.Path, mode: fs.FileMode(e.Mode & 0o777), text: text})
	return nil
}

// configure writes the configuration, the label and the signal, and thereby how far the server goes.
func (r *restorer) configure(ctx context.Context) error {
	settings := r.p.Settings
	if r.p.Destination.InPlace {
		if err := r.configureInPlace(); err != nil {
			return err
		}
	} else {
		more, err := r.configureBeside()
		if err != nil {
			return err
		}
		// What the plan says wins: it names the access file of a scratch copy.
		settings = append(more, settings...)
	}
	standby := r.p.Destination.Standby
	obsolete := func(name string) bool { return obsolete(name, standby) }
	if err := postgres.EditAutoConf(r.dir, obsolete, settings); err != nil {
		return err
	}
	if r.p.Destination.Scratch() {
		if err := r.configureScratch(ctx); err != nil {
			return err
		}
	}
	for _, name := range []string{recoverySignal, standbySignal, "backup_label.old", "tablespace_map", "tablespace_map.old"} {
		if err := os.Remove(filepath.Join(r.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// Tablespaces are links already, so that the server needs no map of them.
	if err := r.own.writeFile(filepath.Join(r.dir, "backup_label"), []byte(r.p.Backup.BackupLabel), 0o600); err != nil {
		return err
	}
	return r.own.writeFile(filepath.Join(r.dir, r.p.Signal), nil, 0o600)
}

// configureInPlace puts back the files outside of the data directory that are missing. Those that are there are their
// administrator's, who may have changed them for good reason since.
func (r *restorer) configureInPlace() error {
	for _, c := range r.config {
		_, err := os.Lstat(c.path)
		if err == nil {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			if err = r.makeDir(filepath.Dir(c.path), 0o755); err == nil {
				err = r.own.writeFile(c.path, c.text, c.mode)
			}
		}
		if err != nil {
			r.warn("the configuration file %s, which is missing, could not be put back: %v", c.path, err)
			continue
		}
		r.warn("the configuration file %s was missing and is put back", c.path)
	}
	return nil
}

// configureBeside makes a configuration in the data directory that names nothing outside of it, and returns settings that
// belong to it.
func (r *restorer) configureBeside() ([]postgres.Setting, error) {
	var s []postgres.Setting
	known := map[string]bool{}
	for _, c := range r.config {
		known[c.path] = true
	}
	main := ""
	for _, c := range r.config {
		at := filepath.Join(r.dir, configDir, c.path)
		if err := r.makeDir(filepath.Dir(at), 0o700); err != nil {
			return nil, err
		}
		text, err := r.relocate(c.text, filepath.Dir(c.path), known)
		if err != nil {
			return nil, err
		}
		if err := r.own.writeFile(at, text, 0o600); err != nil {
			return nil, err
		}
		switch c.name {
		case "config_file":
			main = at
		case "hba_file", "ident_file":
			s = append(s, postgres.Setting{Name: c.name, Value: at})
		}
	}
	have := map[string]bool{}
	for _, x := range s {
		have[x.Name] = true
	}
	for _, own := range []postgres.Setting{{Name: "hba_file", Value: "pg_hba.conf"}, {Name: "ident_file", Value: "pg_ident.conf"}} {
		if !have[own.Name] {
			s = append(s, postgres.Setting{Name: own.Name, Value: filepath.Join(r.dir, own.Value)})
		}
	}
	conf := filepath.Join(r.dir, "postgresql.conf")
	text, err := os.ReadFile(conf)
	if main != "" {
		quoted, qerr := postgres.QuoteConf(main)
		if qerr != nil {
			return nil, qerr
		}
		// A file of that name in the data directory is not the one that the server read.
		text, err = fmt.Appendf(nil, "# written by pitr: the server's configuration was outside of its data directory\ninclude %s\n", quoted), nil
	} else if err == nil {
		text, err = r.relocate(text, r.dir, known)
	}
	if err != nil {
		return nil, err
	}
	// The server would go to the directory that is named here, whatever it is started on, and read the file that
	// overrides all others only there.
	text, err = postgres.EditConf(text, func(name string) bool { return name == "data_directory" },
		[]postgres.Setting{{Name: "data_directory", Value: r.dir}})
	if err != nil {
		return nil, err
	}
	return s, r.own.writeFile(conf, text, 0o600)
}

// includeLine is a line that includes other files (guc-file.l).
var includeLine = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)^(\s*)(include_if_exists|include_dir|include)[\s=]+(?:'((?:[^']|'')*)'|([^\s#']+))`)
})

// relocate makes the include lines of a configuration file, which was in dir, name files of the copy.
func (r *restorer) relocate(text []byte, dir string, known map[string]bool) ([]byte, error) {
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		m := includeLine().FindSubmatchIndex(line)
		if m == nil {
			out.Write(line)
			continue
		}
		group := func(i int) string {
			if m[2*i] < 0 {
				return ""
			}
			return string(line[m[2*i]:m[2*i+1]])
		}
		verb := strings.ToLower(group(2))
		named := strings.ReplaceAll(group(3), "''", "'") + group(4)
		target := named
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		target = filepath.Clean(target)
		moved := filepath.Join(r.dir, configDir, target)
		if inside(r.dir, target) {
			moved = target // relative, in the data directory itself
		}
		switch {
		case verb == "include_dir":
			if err := r.makeDir(moved, 0o700); err != nil {
				return nil, err
			}
		case moved == target:
			out.Write(line)
			continue
		case !known[target] && verb == "include":
			r.warn("the configuration includes %s, which is not in the backup", target)
			verb = "include_if_exists"
		}
		quoted, err := postgres.QuoteConf(moved)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, "%s%s %s%s", group(1), verb, quoted, line[m[1]:])
	}
	return out.Bytes(), nil
}

// configureScratch writes the access file of a scratch copy, and takes libraries that run jobs out of what it loads.
func (r *restorer) configureScratch(ctx context.Context) error {
	if err := r.own.writeFile(filepath.Join(r.dir, scratchHBA), []byte(scratchHBAText), 0o600); err != nil {
		return err
	}
	bin, err := r.programs(ctx, r.p.Backup.ServerVersion/10000)
	if err != nil && !r.p.Destination.Start {
		r.warn("whether it loads libraries that run jobs of their own can't be told: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	acct, err := postgres.AccountOf(r.dir)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "-C", "shared_preload_libraries", "-D", r.dir)
	cmd.Dir = r.dir
	if err := acct.RunAs(cmd); err != nil {
		return err
	}
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("read the restored configuration: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	kept, dropped := withoutJobs(strings.TrimRight(out.String(), "\r\n"))
	if len(dropped) == 0 {
		return nil
	}
	r.warn("the copy does not load %s, which would run jobs of its own", strings.Join(dropped, ", "))
	return postgres.EditAutoConf(r.dir, nil, []postgres.Setting{{Name: "shared_preload_libraries", Value: kept}})
}
