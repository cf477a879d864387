package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"

	"pitr/internal/hint"
)

// lostAndFound is made in the root of a file system by mkfs and only root may read it.
const lostAndFound = "lost+found"

// List walks the directories in the order of the keys, and holds the names of one directory per level.
func (f *file) List(ctx context.Context, prefix, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		w := &walk{ctx: ctx, f: f, prefix: prefix, after: after, yield: yield}
		// Objects below the last "/" of the prefix, and none elsewhere, can match.
		dir := prefix[:strings.LastIndexByte(prefix, '/')+1]
		err := ctx.Err()
		if err == nil {
			err = f.present()
		}
		if err == nil && (dir == "" || f.check(ctx, strings.TrimSuffix(dir, "/")) == nil) {
			err = w.dir(dir)
		}
		if err == nil {
			// What vanished with its file system on the way looked as if it had been deleted.
			err = f.present()
		}
		if err != nil && err != errStopped {
			yield(Object{}, f.failed("list", "", err))
		}
	}
}

// errStopped ends a walk whose caller has seen enough.
var errStopped = errors.New("stopped")

type walk struct {
	ctx           context.Context
	f             *file
	prefix, after string
	yield         func(Object, error) bool
}

// name is an entry of a directory as it counts in the order of keys. That of a subdirectory ends in "/", since the keys of
// all its objects go on so: "a.b" is listed before "a/b", although the name "a" is less than "a.b".
type name struct {
	text  string
	entry fs.DirEntry
}

// dir lists the objects whose keys begin with dir, which is empty or ends in "/".
func (w *walk) dir(dir string) error {
	names, err := w.read(dir)
	if err != nil {
		return err
	}
	for i := range names {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		key := dir + names[i].text
		if strings.HasSuffix(key, "/") {
			err = w.dir(key)
		} else {
			err = w.object(key, names[i].entry)
		}
		if err != nil {
			return err
		}
		names[i] = name{} // a directory of many names is given back while what lies below it is listed
	}
	return nil
}

// read gives the names in dir that the listing needs, in the order of keys.
func (w *walk) read(dir string) ([]name, error) {
	entries, err := w.f.readDir(w.f.path(dir))
	if absent(err) {
		return nil, nil // deleted at this moment, or never there; List looks whether the store is
	}
	if err != nil {
		return nil, err
	}
	names := make([]name, 0, len(entries))
	for _, e := range entries {
		text := e.Name()
		if text[0] == '.' || dir == "" && text == lostAndFound {
			continue
		}
		if e.IsDir() {
			text += "/"
		}
		if w.wants(dir + text) {
			names = append(names, name{text, e})
		}
	}
	slices.SortFunc(names, func(a, b name) int { return strings.Compare(a.text, b.text) })
	return names, nil
}

// readDir is os.ReadDir without the sorting.
func (f *file) readDir(path string) ([]fs.DirEntry, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.ReadDir(-1)
}

// wants says whether the object with this key, or for a key that ends in "/" any object below it, is to be listed.
func (w *walk) wants(key string) bool {
	if !strings.HasSuffix(key, "/") {
		return strings.HasPrefix(key, w.prefix) && key > w.after
	}
	return (strings.HasPrefix(key, w.prefix) || strings.HasPrefix(w.prefix, key)) &&
		(key > w.after || strings.HasPrefix(w.after, key))
}

func (w *walk) object(key string, e fs.DirEntry) error {
	if !e.Type().IsRegular() {
		return hint.Wrap(fmt.Errorf("%s is neither a file nor a directory (%s)", w.f.path(key), e.Type()),
			"move it out of the store; to keep the store elsewhere, link or mount its root as a whole")
	}
	info, err := e.Info()
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !w.yield(Object{key, info.Size(), info.ModTime()}, nil) {
		return errStopped
	}
	return nil
}
