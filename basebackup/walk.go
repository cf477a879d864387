package basebackup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"pitr/internal/hint"
)

// spaceTries and spacePause bound how long a tablespace may be half dropped.
const (
	spaceTries = 40
	spacePause = 50 * time.Millisecond
)

// walker goes through a data directory in the order of a manifest. It holds the names of the directories on the way to
// where it is, and nothing else.
type walker struct {
	dir        string // the data directory
	versionDir string // of this server in a tablespace, such as PG_15_202209061
	log        *slog.Logger
	// visit gets everything but global/pg_control. Of a file, it gets the path on this machine and what lstat said.
	visit func(e *Entry, file string, info fs.FileInfo) error

	spaces  []Tablespace  // found on the way
	roots   []fs.FileInfo // the directories that tablespaces are in
	walLink string        // where pg_wal links to
}

// walk visits everything that belongs to a backup.
func (w *walker) walk(ctx context.Context) error {
	info, err := os.Stat(w.dir)
	if err != nil {
		return fmt.Errorf("read the data directory: %w", err)
	}
	if err := w.findSpaces(); err != nil {
		return err
	}
	if err := w.visit(&Entry{Type: Directory, Path: ".", Mode: mode(info)}, "", nil); err != nil {
		return err
	}
	return w.contents(ctx, w.dir, "")
}

// findSpaces notes where tablespaces are, so that one inside the data directory is not taken twice.
func (w *walker) findSpaces() error {
	names, err := readNames(filepath.Join(w.dir, "pg_tblspc"))
	if err != nil {
		return err
	}
	for _, name := range names {
		link := filepath.Join(w.dir, "pg_tblspc", name)
		if l, err := os.Lstat(link); err != nil || l.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		if info, err := os.Stat(link); err == nil {
			w.roots = append(w.roots, info)
		}
	}
	return nil
}

// contents visits what is in the directory dir, whose path in the manifest is path ("" for the data directory).
func (w *walker) contents(ctx context.Context, dir, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	// The order is that of whole paths: what is in "a" comes behind "a.b", since "/" follows ".". A name with a slash
	// behind it stands for what is in that directory, which the function visits.
	inside := make(map[string]func() error)
	inits := initForks(path, names)
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		if visit := inside[name]; visit != nil {
			delete(inside, name)
			if err := visit(); err != nil {
				return err
			}
			continue
		}
		visit, err := w.entry(ctx, dir, path, name, inits)
		if err != nil {
			return err
		}
		if visit != nil {
			at, _ := slices.BinarySearch(names, name+"/")
			names = slices.Insert(names, at, name+"/")
			inside[name+"/"] = visit
		}
	}
	return nil
}

// entry visits one entry of a directory, and returns what visits that which is in it, if that is to be.
func (w *walker) entry(ctx context.Context, dir, parent, name string, inits map[string]bool) (inside func() error, err error) {
	path, file := join(parent, name), filepath.Join(dir, name)
	if excluded(name) || parent == "" && rootExcluded(name) || path == controlPath {
		return nil, nil
	}
	if isDatabaseDir(parent) {
		if f, ok := parseRelFile(name); ok && (f.temp || f.fork != "init" && w.unlogged(dir, f.rel, inits)) {
			return nil, nil
		}
	}
	info, err := os.Lstat(file)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, readFailed(err)
	}
	if parent == "" && (emptied[name] || name == walDir) {
		return w.emptied(name, file, info)
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		if parent == "pg_tblspc" && digits(name) {
			w.space(name, "") // made in place
		}
		if !w.isSpaceRoot(info) {
			inside = func() error { return w.contents(ctx, file, path) }
		}
		return inside, w.visit(&Entry{Type: Directory, Path: path, Mode: mode(info)}, "", nil)
	case fs.ModeSymlink:
		return w.link(ctx, parent, name, path, file)
	case 0:
		return nil, w.visit(&Entry{Type: File, Path: path, Mode: mode(info)}, file, info)
	}
	w.log.Warn("left out of the backup: neither file nor directory nor link", "path", file)
	return nil, nil
}

// emptied visits a directory whose content is left out.
func (w *walker) emptied(name, file string, info fs.FileInfo) (inside func() error, err error) {
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(file)
		if err != nil {
			return nil, readFailed(err)
		}
		if name == walDir {
			w.walLink = target
		}
		if info, err = os.Stat(file); err != nil {
			return nil, readFailed(err)
		}
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("read the data directory: %s is not a directory", file)
	}
	if name == walDir {
		inside = func() error { return w.walSubdirs(file) }
	}
	return inside, w.visit(&Entry{Type: Directory, Path: name, Mode: mode(info)}, "", nil)
}

func (w *walker) walSubdirs(file string) error {
	for _, sub := range walSubdirs {
		info, err := os.Stat(filepath.Join(file, sub))
		if gone(err) || err == nil && !info.IsDir() {
			continue
		}
		if err != nil {
			return readFailed(err)
		}
		if err := w.visit(&Entry{Type: Directory, Path: join(walDir, sub), Mode: mode(info)}, "", nil); err != nil {
			return err
		}
	}
	return nil
}

// link visits a symbolic link. Tablespaces are followed, and nothing else is.
func (w *walker) link(ctx context.Context, parent, name, path, file string) (inside func() error, err error) {
	target, err := os.Readlink(file)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, readFailed(err)
	}
	top, _, _ := strings.Cut(path, "/")
	switch {
	case parent == "pg_tblspc" && digits(name):
		w.space(name, target)
		inside = func() error { return w.tablespace(ctx, file, path) }
	case dataDirs[top]:
		return nil, hint.Wrap(fmt.Errorf("read the data directory: %s is a link to %s, in a place where PostgreSQL has no links", file, target),
			"PostgreSQL's own base backups leave out what it leads to; move that into the data directory, or use a tablespace")
	default:
		w.log.Warn("taken into the backup as a link, without what it leads to", "path", file, "target", target)
	}
	return inside, w.visit(&Entry{Type: Symlink, Path: path, Target: target}, "", nil)
}

// tablespace visits what this server has in a tablespace. Several major versions may share a tablespace's directory;
// each has a directory of its own in it.
func (w *walker) tablespace(ctx context.Context, link, path string) error {
	dir, sub := filepath.Join(link, w.versionDir), join(path, w.versionDir)
	info, err := os.Lstat(dir)
	for tries := 0; gone(err); tries++ {
		// The server removes the directory first and the link to it next, when the tablespace is dropped. A link that
		// stays leads to what is not mounted: PostgreSQL's own backup passes over that, and so lacks all of it.
		if _, lerr := os.Lstat(link); gone(lerr) {
			return nil
		}
		if tries == spaceTries {
			return hint.Wrap(fmt.Errorf("read the data directory: the tablespace at %s is not there: %w", link, err),
				"is its file system mounted? A tablespace that is lost must be dropped before a backup can be taken")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(spacePause):
		}
		info, err = os.Lstat(dir)
	}
	if err != nil {
		return readFailed(err)
	}
	if err := w.visit(&Entry{Type: Directory, Path: sub, Mode: mode(info)}, "", nil); err != nil {
		return err
	}
	return w.contents(ctx, dir, sub)
}

func (w *walker) space(name, target string) {
	var oid uint32
	if _, err := fmt.Sscan(name, &oid); err == nil {
		w.spaces = append(w.spaces, Tablespace{OID: oid, Path: Text(target)})
	}
}

func (w *walker) isSpaceRoot(info fs.FileInfo) bool {
	return slices.ContainsFunc(w.roots, func(root fs.FileInfo) bool { return os.SameFile(root, info) })
}

// unlogged tells whether a relation of a database directory is: then it has an init fork, and begins empty after
// recovery.
func (w *walker) unlogged(dir, rel string, inits map[string]bool) bool {
	if inits[rel] {
		return true
	}
	// The relation may be newer than the listing.
	_, err := os.Lstat(filepath.Join(dir, rel+"_init"))
	return err == nil
}

// initForks returns the relations among names that have an init fork.
func initForks(path string, names []string) map[string]bool {
	if !isDatabaseDir(path) {
		return nil
	}
	inits := make(map[string]bool)
	for _, name := range names {
		if f, ok := parseRelFile(name); ok && f.fork == "init" {
			inits[f.rel] = true
		}
	}
	return inits
}

// readNames returns the sorted names in a directory; none if it is gone.
func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, readFailed(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil && !gone(err) {
		return nil, readFailed(err)
	}
	slices.Sort(names)
	return names, nil
}

// gone tells whether err says that a file is not there any more.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) }

func readFailed(err error) error {
	err = fmt.Errorf("read the data directory: %w", err)
	if errors.Is(err, fs.ErrPermission) {
		return hint.Wrap(err, "run pitr as the user that owns the data directory, or as root")
	}
	return err
}

func join(parent, name string) string {
	if parent == "" {
		return name
	}
	return parent + "/" + name
}

// mode gives the permission bits as chmod(2) takes them.
func mode(info fs.FileInfo) uint32 {
	m := uint32(info.Mode().Perm())
	if info.Mode()&fs.ModeSetuid != 0 {
		m |= 0o4000
	}
	if info.Mode()&fs.ModeSetgid != 0 {
		m |= 0o2000
	}
	if info.Mode()&fs.ModeSticky != 0 {
		m |= 0o1000
	}
	return m
}
