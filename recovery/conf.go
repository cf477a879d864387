package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"pitr/basebackup"
	"pitr/internal/postgres"
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
	if err := r.raiseParameters(ctx); err != nil {
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
	within, err := r.accessFiles()
	if err != nil {
		return err
	}
	syntaxes := r.syntaxes(within...)
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
		r.makeIncluded(syntaxes[c.path], c)
	}
	for _, c := range within {
		r.makeIncluded(accessFile, c)
	}
	main := configFile{path: filepath.Join(r.dir, "postgresql.conf")}
	main.text, err = os.ReadFile(main.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is outside
	}
	r.makeIncluded(settingsFile, main)
	return err
}

// makeIncluded makes the directories that a file includes and that are missing. Nothing else of a backup has those that were
// empty, without which the server does not start.
func (r *restorer) makeIncluded(x syntax, c configFile) {
	for line := range bytes.Lines(c.text) {
		for _, m := range x.mentions(line, r.major()) {
			if m.verb != "include_dir" {
				continue
			}
			if err := r.makeDir(m.beside(filepath.Dir(c.path)), 0o755); err != nil {
				r.warn("%s includes a directory that is missing and can't be made: %v", c.path, err)
			}
		}
	}
}

// configureBeside makes a configuration in the data directory that names nothing outside of it, and returns settings that
// belong to it.
func (r *restorer) configureBeside() ([]postgres.Setting, error) {
	var s []postgres.Setting
	known := map[string]bool{}
	for _, c := range r.config {
		known[c.path] = true
	}
	within, err := r.accessFiles()
	if err != nil {
		return nil, err
	}
	syntaxes := r.syntaxes(within...)
	for _, c := range within {
		text, err := r.relocate(accessFile, c.text, r.dir, known)
		if err == nil && !bytes.Equal(text, c.text) {
			err = r.own.writeFile(c.path, text, 0o600)
		}
		if err != nil {
			return nil, err
		}
	}
	main := ""
	for _, c := range r.config {
		at := filepath.Join(r.dir, configDir, c.path)
		if err := r.makeDir(filepath.Dir(at), 0o700); err != nil {
			return nil, err
		}
		text, err := r.relocate(syntaxes[c.path], c.text, filepath.Dir(c.path), known)
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
		text, err = r.relocate(settingsFile, text, r.dir, known)
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

// accessFiles are those that lie in the data directory itself.
func (r *restorer) accessFiles() ([]configFile, error) {
	var files []configFile
	for _, name := range []string{"pg_hba.conf", "pg_ident.conf"} {
		path := filepath.Join(r.dir, name)
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files = append(files, configFile{path: path, text: text})
	}
	return files, nil
}

// configureScratch writes the access file of a scratch copy, and takes libraries that run jobs out of what it loads.
func (r *restorer) configureScratch(ctx context.Context) error {
	if err := r.own.writeFile(filepath.Join(r.dir, scratchHBA), []byte(scratchHBAText), 0o600); err != nil {
		return err
	}
	if _, err := r.programs(ctx, r.p.Backup.ServerVersion/10000); err != nil && !r.p.Destination.Start {
		r.warn("whether it loads libraries that run jobs of their own can't be told: %v", err)
		return nil
	}
	libraries, err := r.inForce(ctx, "shared_preload_libraries")
	if err != nil {
		return err
	}
	kept, dropped := withoutJobs(libraries)
	if len(dropped) == 0 {
		return nil
	}
	r.warn("the copy does not load %s, which would run jobs of its own", strings.Join(dropped, ", "))
	return postgres.EditAutoConf(r.dir, nil, []postgres.Setting{{Name: "shared_preload_libraries", Value: kept}})
}
