package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"pitr/basebackup"
)

// A window is so much of the manifest as is worked on at once: it bounds memory, and is large enough that frames lying
// together in a pack are read together, and that every worker has files of its own.
const (
	windowFiles   = 8 << 10
	windowExtents = 32 << 10
)

// window is a run of files.
type window struct {
	files   []*file
	extents int
}

// use says where a frame's bytes go.
type use struct {
	file   *file
	extent int
	at     int64 // offset in the file
}

// copy makes directories and links and writes all files.
func (r *restorer) copy(ctx context.Context, m *basebackup.Manifest) error {
	w := new(window)
	for e, err := range m.Entries() {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		switch {
		case e.Type == basebackup.Directory:
			err = r.directory(e)
		case e.Type == basebackup.Symlink:
			err = r.symlink(e)
		case e.Type == basebackup.External:
			err = r.external(ctx, e)
		case e.Path == "global/pg_control":
			r.control, err = r.content(ctx, e)
		default:
			w.files = append(w.files, &file{entry: e, path: r.where(e.Path)})
			w.extents += len(e.Extents)
			if len(w.files) >= windowFiles || w.extents >= windowExtents {
				err = r.write(ctx, w)
				w = new(window)
			}
		}
		if err != nil {
			return err
		}
	}
	return r.write(ctx, w)
}

// directory makes one, or gives the one that is there its mode.
func (r *restorer) directory(e *basebackup.Entry) error {
	path := r.where(e.Path)
	if e.Path == "." {
		if err := r.own.takeDir(path); err != nil {
			return err
		}
		return os.Chmod(path, fs.FileMode(e.Mode&0o777)|0o700)
	}
	if e.Path == "pg_wal" && r.p.Layout.WALDir != "" {
		return r.linkDir(path, r.p.Layout.WALDir)
	}
	info, err := os.Lstat(path)
	if err == nil && !info.IsDir() {
		if err := os.Remove(path); err != nil {
			return err
		}
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = os.Mkdir(path, 0o700)
	}
	if err == nil {
		err = r.own.takePath(path) // one that was there may be anybody's
	}
	if err != nil {
		return err
	}
	mode := fs.FileMode(e.Mode & 0o777)
	if mode&0o700 != 0o700 {
		r.oddModes = append(r.oddModes, oddMode{path, mode})
		mode |= 0o700
	}
	return os.Chmod(path, mode)
}

// linkDir makes path a link to the directory target, which it makes too.
func (r *restorer) linkDir(path, target string) error {
	if err := r.makeDir(target, 0o700); err != nil {
		return err
	}
	return r.link(path, target)
}

// link makes path a link, in the place of whatever is there.
func (r *restorer) link(path, target string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink != 0 && readlink(path) == filepath.Clean(target):
		return nil
	default:
		if err := r.remove(context.Background(), path); err != nil {
			return err
		}
	}
	if err := os.Symlink(target, path); err != nil {
		return err
	}
	return r.own.takePath(path)
}

// symlink makes a link: those of tablespaces lead where the plan says. Others lead out of the directory, to where a copy
// beside the server has no business.
func (r *restorer) symlink(e *basebackup.Entry) error {
	path := r.where(e.Path)
	if l, ok := r.tablespaceOf(e.Path); ok {
		return r.linkDir(path, l.Path)
	}
	if e.Path == "pg_wal" {
		return r.directory(&basebackup.Entry{Type: basebackup.Directory, Path: e.Path, Mode: 0o700})
	}
	if !r.p.Destination.InPlace {
		r.warn("the link %s to %s was left out", e.Path, e.Target)
		return nil
	}
	return r.link(path, e.Target)
}

func (r *restorer) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.report.Warnings = append(r.report.Warnings, text)
	r.o.Log.Warn(text)
}

// content reads a small file of the backup into memory.
func (r *restorer) content(ctx context.Context, e *basebackup.Entry) ([]byte, error) {
	const most = 16 << 20
	if e.Size > most {
		return nil, fmt.Errorf("%s has %d bytes", e.Path, e.Size)
	}
	data := make([]byte, e.Size)
	frames := make([]basebackup.Frame, 0, len(e.Extents))
	var ats []int64
	var extents []basebackup.Extent
	at := int64(0)
	for _, x := range e.Extents {
		if !x.Zeros {
			frames, ats, extents = append(frames, x.Frame), append(ats, at), append(extents, x)
		}
		at += x.Length
	}
	reader, err := basebackup.NewFrameReader(r.repo)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	for _, run := range basebackup.Runs(r.p.Backup, frames) {
		err := reader.Read(ctx, frames, run, func(i int, raw []byte, err error) error {
			if err == nil {
				x := extents[i]
				copy(data[ats[i]:], raw[x.Offset:int64(x.Offset)+x.Length])
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	return data, nil
}

// write writes the files of a window, with all workers, and returns when they are written.
func (r *restorer) write(ctx context.Context, w *window) error {
	if err := r.compare(ctx, w); err != nil {
		return err
	}
	work := newGroups(r.p.Backup, w.files)
	var idle []*file // that need no frame: empty ones, those of zeros, and those that were right
	for _, f := range w.files {
		if f.left == 0 {
			idle = append(idle, f)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	open := &openFiles{most: maxOpen}
	for range r.o.Workers {
		g.Go(func() error { return r.writeRuns(ctx, work, open) })
	}
	g.Go(func() error {
		for _, f := range idle {
			if err := r.done(f, nil); err != nil {
				return err
			}
		}
		return nil
	})
	err := g.Wait()
	open.closeAll(w.files)
	r.progress(func(p *Progress) { p.Files += int64(len(w.files)) })
	r.report.Files += int64(len(w.files))
	return err
}

func (r *restorer) writeRuns(ctx context.Context, work *groups, open *openFiles) error {
	reader, err := basebackup.NewFrameReader(r.repo)
	if err != nil {
		return err
	}
	defer reader.Close()
	for g, run := work.next(nil); run != nil; g, run = work.next(g) {
		if err := ctx.Err(); err != nil {
			return err
		}
		written := int64(0)
		err := reader.Read(ctx, g.frames, *run, func(i int, raw []byte, err error) error {
			u := g.uses[i]
			x := u.file.entry.Extents[u.extent]
			if err == nil {
				err = r.put(open, u.file, u.at, raw[x.Offset:int64(x.Offset)+x.Length])
			}
			if err != nil {
				return fmt.Errorf("file %s: %w", u.file.entry.Path, err)
			}
			written += x.Length
			return nil
		})
		if err != nil {
			return err
		}
		r.progress(func(p *Progress) { p.Bytes += written })
		r.mu.Lock()
		r.report.Fetched += written
		r.mu.Unlock()
	}
	return nil
}

// progress changes and reports it.
func (r *restorer) progress(change func(*Progress)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.now)
	r.now.Total, r.now.TotalFiles = r.p.Write, r.p.Backup.Files
	if r.o.Progress != nil {
		r.o.Progress(r.now)
	}
}

// readFull fills buf from off on, and says how much there was.
func readFull(f io.ReaderAt, buf []byte, off int64) (int, error) {
	n, err := f.ReadAt(buf, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
