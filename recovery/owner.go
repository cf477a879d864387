package recovery

import (
	"os"
)

// owner is whom files are made for. Where this process is not root they are its own.
type owner struct {
	uid, gid int // -1: this process's
}

// take gives an open file to the owner.
func (o *owner) take(f *os.File) error {
	if o.uid < 0 {
		return nil
	}
	return f.Chown(o.uid, o.gid)
}

// takeDir gives a directory, or the one that a link leads to, to the owner.
func (o *owner) takeDir(path string) error {
	if o.uid < 0 {
		return nil
	}
	return os.Chown(path, o.uid, o.gid)
}

// takePath gives a directory or link to the owner.
func (o *owner) takePath(path string) error {
	if o.uid < 0 {
		return nil
	}
	return os.Lchown(path, o.uid, o.gid)
}
