package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"pitr/basebackup"
)

// lostFound belongs to the file system.
const lostFound = "lost+found"

// clear takes away what does not belong: everything, or with keep what the backup does not have.
func (r *restorer) clear(ctx context.Context, m *basebackup.Manifest) error {
	for _, dir := range r.p.outside() {
		if err := r.makeDir(dir, 0o700); err != nil {
			return err
		}
		if err := r.own.takeDir(dir); err != nil {
			return err
		}
	}
	// First, while the links still tell a later plan whose this is: pages left here would become part of the tablespace
	// when its creation is replayed.
	for _, dir := range r.p.createdDirs() {
		if err := r.remove(ctx, filepath.Join(dir, versionDir(r.p.Backup))); err != nil {
			return err
		}
	}
	switch {
	case r.keep:
		return r.clearForeign(ctx, m)
	case r.p.Layout.Replaces:
		return r.clearAll(ctx)
	}
	return nil
}

// clearAll empties the data directory, and what the plan puts outside of it. The directories there stay, and so does a link
// in the place of pg_wal. Where other links of the directory lead is not touched: it may be a clone of another one.
func (r *restorer) clearAll(ctx context.Context) error {
	for _, l := range r.p.Layout.Tablespaces {
		// Other clusters may have directories of their own beside.
		if l.Path == "" {
			continue
		}
		if err := r.remove(ctx, filepath.Join(l.Path, versionDir(r.p.Backup))); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == JournalFile || name == lostFound:
		case name == "pg_wal" && r.p.Layout.WALDir != "":
			if err := r.empty(ctx, r.p.Layout.WALDir); err != nil {
				return err
			}
		default:
			if err := r.remove(ctx, filepath.Join(r.dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// empty removes what is in a directory, which may be missing.
func (r *restorer) empty(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.Name() == lostFound {
			continue
		}
		if err := r.remove(ctx, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// remove takes a file, or a directory with everything in it, away. Links are not followed. Of a directory that is a mount
// point only what is in it can be.
func (r *restorer) remove(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		if err := r.empty(ctx, path); err != nil {
			return err
		}
	} else {
		r.report.Removed++
	}
	err = os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) || info.IsDir() && errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// entrySet tells which paths a backup has, in a few bytes for each. That two paths share a hash is as good as impossible,
// and would keep a foreign file that the server does not look at.
type entrySet map[uint64]struct{}

func (s entrySet) add(path string)      { s[xxh3.HashString(path)] = struct{}{} }
func (s entrySet) has(path string) bool { _, ok := s[xxh3.HashString(path)]; return ok }

// clearForeign removes what the backup does not have.
func (r *restorer) clearForeign(ctx context.Context, m *basebackup.Manifest) error {
	set := entrySet{}
	for e, err := range m.Entries() {
		if err != nil {
			return err
		}
		if e.Type != basebackup.External {
			set.add(e.Path)
		}
	}
	if err := r.foreign(ctx, set, r.dir, ""); err != nil {
		return err
	}
	// Whether the links are there yet, or still, or lead elsewhere, does not matter.
	for _, l := range r.p.Layout.Tablespaces {
		if l.Path == "" {
			continue
		}
		if err := r.foreignIn(ctx, set, l.Path, fmt.Sprintf("pg_tblspc/%d", l.OID)); err != nil {
			return err
		}
	}
	return nil
}

// foreign does so in the directory dir, the entry path of which is entry ("" for the data directory).
func (r *restorer) foreign(ctx context.Context, set entrySet, dir, entry string) error {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range names {
		name, path, at := e.Name(), e.Name(), filepath.Join(dir, e.Name())
		if entry != "" {
			path = entry + "/" + name
		}
		if name == lostFound || entry == "" && (name == JournalFile || name == tablespacesDir) {
			continue
		}
		link := e.Type()&fs.ModeSymlink != 0
		switch {
		case !set.has(path):
			err = r.remove(ctx, at)
		case link && path == "pg_wal" && r.p.Layout.WALDir != "":
			err = r.empty(ctx, r.p.Layout.WALDir) // WAL comes from the archive
		case link:
			// Set right, or not, when its entry comes.
		case e.IsDir() && path == "pg_wal":
			err = r.empty(ctx, at)
		case e.IsDir():
			err = r.foreign(ctx, set, at, path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// foreignIn looks at this server's part of a tablespace.
func (r *restorer) foreignIn(ctx context.Context, set entrySet, dir, entry string) error {
	version := versionDir(r.p.Backup)
	if !set.has(entry + "/" + version) {
		return r.remove(ctx, filepath.Join(dir, version))
	}
	return r.foreign(ctx, set, filepath.Join(dir, version), entry+"/"+version)
}

func readlink(path string) string {
	target, err := os.Readlink(path)
	if err != nil {
		return ""
	}
	return filepath.Clean(target)
}

// places are the directories whose file systems a restore writes to.
func (r *restorer) places() []string {
	return append([]string{r.dir}, r.p.outside()...)
}

// outside are the directories that a plan fills or has filled beside the data directory, or under it under names of its own.
func (p *Plan) outside() []string {
	var dirs []string
	if p.Layout.WALDir != "" {
		dirs = append(dirs, p.Layout.WALDir)
	}
	for _, l := range p.Layout.Tablespaces {
		if l.Path != "" {
			dirs = append(dirs, l.Path)
		}
	}
	return append(dirs, p.createdDirs()...)
}
