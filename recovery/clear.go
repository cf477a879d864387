package recovery

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/zeebo/xxh3"

	"pitr/basebackup"
)

// lostFound belongs to the file system.
const lostFound = "lost+found"

// clear takes away what does not belong: everything, or with keep what the backup does not have.
func (r *restorer) clear(ctx context.Context, m *basebackup.Manifest) error {
	for _, l := range r.p.Layout.Tablespaces {
		if l.Path != "" {
			if err := r.makeDir(l.Path, 0o700); err != nil {
				return err
			}
		}
	}
	if r.p.Layout.WALDir != "" {
		if err := r.makeDir(r.p.Layout.WALDir, 0o700); err != nil {
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

// clearAll empties the data directory, and what its links lead to as far as that is its own. The links' ends stay, and so
// does a link in the place of pg_wal.
func (r *restorer) clearAll(ctx context.Context) error {
	spaces, walDir := links(r.dir)
	for _, dir := range spaces {
		// Other clusters may have directories of their own beside.
		if err := r.remove(ctx, filepath.Join(dir, versionDir(r.p.Backup))); err != nil {
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
		case name == "pg_wal" && walDir != "":
			if err := r.empty(ctx, walDir); err != nil {
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

// remove takes a file, or a directory with everything in it, away. Links are not followed.
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
	if errors.Is(err, fs.ErrNotExist) {
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
	return r.foreign(ctx, set, r.dir, "")
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
		l, isSpace := r.tablespaceOf(path)
		switch {
		case !set.has(path):
			err = r.remove(ctx, at)
		case link && isSpace && readlink(at) == l.Path && l.Path != "":
			err = r.foreignIn(ctx, set, l.Path, path)
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
	p := []string{r.dir}
	if r.p.Layout.WALDir != "" {
		p = append(p, r.p.Layout.WALDir)
	}
	for _, l := range r.p.Layout.Tablespaces {
		if l.Path != "" {
			p = append(p, l.Path)
		}
	}
	return slices.Compact(p)
}
