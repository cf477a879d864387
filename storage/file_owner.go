package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"pitr/internal/durable"
)

// What root makes in a store would be root's, and the server's user, to whom the store belongs, could neither add to it nor
// delete it. So root gives what it makes to the owner and the group of the store's root directory. Whoever is not root can
// make only what is his.

// owner is whom the files of a store belong to.
type owner struct{ uid, gid int }

func ownerOf(info fs.FileInfo) (owner, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{}, false
	}
	return owner{int(st.Uid), int(st.Gid)}, true
}

// heir returns whom root must give to what it makes below dir; false where it need not.
func heir(dir fs.FileInfo) (owner, bool) {
	if os.Geteuid() != 0 {
		return owner{}, false
	}
	o, ok := ownerOf(dir)
	return o, ok && o != owner{0, os.Getegid()}
}

// mayKeep is for an error of chown(2): where the file system knows no owners, or root may not change them (in a container,
// over a network), the file stays as it is, as all others there do.
func mayKeep(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}

// give makes a file that was just created the store's owner's. The caller syncs it.
func (f *file) give(o *os.File) error {
	root, err := os.Stat(f.root)
	if err != nil {
		return err
	}
	to, must := heir(root)
	if !must {
		return nil
	}
	return mayKeep(o.Chown(to.uid, to.gid))
}

// giveRoot makes the store's root, that was just created, the owner's of the directory above.
func (f *file) giveRoot() error {
	parent, err := os.Stat(filepath.Dir(f.root))
	if err != nil {
		return err
	}
	to, must := heir(parent)
	if !must {
		return nil
	}
	if err := mayKeep(os.Lchown(f.root, to.uid, to.gid)); err != nil {
		return err
	}
	return f.syncDir(f.root)
}

// giveDirs makes dir and the directories above it as far as they are missing, as the store's owner's, and gives him those
// that root left behind earlier. No link on the way is followed out of the store: its owner may have put it there, and root
// can reach more than he. The caller syncs the names.
func (f *file) giveDirs(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	root, err := os.OpenRoot(f.root)
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	to, must := heir(info)
	if !must {
		return nil
	}
	rel := strings.TrimPrefix(dir, f.root+"/")
	for end := 0; end < len(rel); end++ {
		next := strings.IndexByte(rel[end:], '/')
		if next < 0 {
			next = len(rel) - end
		}
		end += next
		if err := giveDir(root, rel[:end], to); err != nil {
			return err
		}
	}
	return nil
}

func giveDir(root *os.Root, dir string, to owner) error {
	if err := root.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := root.Lstat(dir)
	switch {
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%s is a symbolic link: a store can be linked to as a whole only", filepath.Join(root.Name(), dir))
	case !info.IsDir():
		return &fs.PathError{Op: "mkdir", Path: filepath.Join(root.Name(), dir), Err: syscall.ENOTDIR}
	}
	if was, ok := ownerOf(info); !ok || was.uid != 0 || was == to {
		return nil
	}
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// By the open directory, whatever the name stands for by now, and it is still root's.
	if now, err := d.Stat(); err != nil || !os.SameFile(now, info) {
		return err
	}
	if err := mayKeep(d.Chown(to.uid, to.gid)); err != nil {
		return err
	}
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// writeMarker writes the file that tells a store.
func (f *file) writeMarker() error {
	m, err := durable.Create(f.path(markerName), fileMode)
	if err != nil {
		return err
	}
	defer m.Abort()
	if err := f.give(m.File); err != nil {
		return err
	}
	if _, err := m.WriteString(markerText); err != nil {
		return err
	}
	return m.Commit()
}
