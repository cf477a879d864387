package recovery

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pitr/basebackup"
	"pitr/internal/repo"
)

// compare finds out which extents of a window are on the disk already.
func (r *restorer) compare(ctx context.Context, w *window) error {
	if !r.keep {
		return nil
	}
	err := each(ctx, r.o.Workers, slices.Values(w.files), func(ctx context.Context, f *file, buf []byte) error {
		return r.compareFile(ctx, f, buf)
	})
	if err != nil {
		return err
	}
	return each(ctx, r.o.Workers, slices.Values(shared(w)), func(_ context.Context, uses []use, buf []byte) error {
		return r.compareShared(uses, buf)
	})
}

// each gives each item to one of some workers, each with a buffer of a frame's size.
func each[T any](ctx context.Context, workers int, items func(func(T) bool), do func(context.Context, T, []byte) error) error {
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan T)
	g.Go(func() error {
		defer close(next)
		for item := range items {
			select {
			case next <- item:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			buf := make([]byte, basebackup.MaxFrameRaw)
			for item := range next {
				if err := do(ctx, item, buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// compareFile compares what is under the file's name. Extents that are whole frames are compared by their checks. Zeros
// are made where they are not.
func (r *restorer) compareFile(ctx context.Context, f *file, buf []byte) error {
	in, err := os.OpenFile(f.path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return r.remove(ctx, f.path) // a directory, a link, or what may not be opened
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return r.remove(ctx, f.path)
	}
	f.there = true
	f.right = make([]bool, len(f.entry.Extents))
	at := int64(0)
	for i, x := range f.entry.Extents {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case x.Zeros:
			if err := makeZero(in, at, min(x.Length, info.Size()-at), buf); err != nil {
				return err
			}
			f.right[i] = true
		case x.Offset == 0 && x.Length == int64(x.Frame.Raw):
			n, err := readFull(in, buf[:x.Length], at)
			if err != nil {
				return err
			}
			if int64(n) == x.Length && repo.CheckOf(buf[:n]) == x.Frame.Check {
				f.right[i] = true
				r.kept(x.Length)
			}
		}
		at += x.Length
	}
	return nil
}

func (r *restorer) kept(n int64) {
	r.progress(func(p *Progress) { p.Bytes += n })
	r.mu.Lock()
	r.report.Kept += n
	r.mu.Unlock()
}

// shared lists the frames that several small files share, as far as all of each frame's bytes are wanted in the window:
// then what the files hold can be put together and compared.
func shared(w *window) [][]use {
	byFrame := map[basebackup.Frame][]use{}
	for _, f := range w.files {
		if !f.there {
			continue
		}
		at := int64(0)
		for i, x := range f.entry.Extents {
			if !f.has(i) {
				byFrame[x.Frame] = append(byFrame[x.Frame], use{f, i, at})
			}
			at += x.Length
		}
	}
	var whole [][]use
	for frame, uses := range byFrame {
		slices.SortFunc(uses, func(a, b use) int { return cmp.Compare(a.span().Offset, b.span().Offset) })
		end := int64(0)
		for _, u := range uses {
			// One behind the other, so that no byte is vouched for by another file's.
			if x := u.span(); int64(x.Offset) == end {
				end += x.Length
			} else {
				end = -1
				break
			}
		}
		if end == int64(frame.Raw) {
			whole = append(whole, uses)
		}
	}
	return whole
}

// span is the extent of a use.
func (u use) span() *basebackup.Extent { return &u.file.entry.Extents[u.extent] }

func (r *restorer) compareShared(uses []use, buf []byte) error {
	frame := uses[0].span().Frame
	for _, u := range uses {
		x := u.span()
		in, err := os.OpenFile(u.file.path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		n, err := readFull(in, buf[x.Offset:int64(x.Offset)+x.Length], u.at)
		in.Close()
		if err != nil || int64(n) < x.Length {
			return err // too short: it is fetched
		}
	}
	if repo.CheckOf(buf[:frame.Raw]) != frame.Check {
		return nil
	}
	for _, u := range uses {
		u.file.right[u.extent] = true // no other worker has this extent
		r.kept(u.span().Length)
	}
	return nil
}

// makeZero writes zeros where n bytes from at on are something else.
func makeZero(f *os.File, at, n int64, buf []byte) error {
	for n > 0 {
		part := buf[:min(n, int64(len(buf)))]
		got, err := readFull(f, part, at)
		if err != nil {
			return err
		}
		if got == 0 {
			return nil
		}
		if !zero(part[:got]) {
			clear(part)
			if _, err := f.WriteAt(part[:got], at); err != nil {
				return err
			}
		}
		at, n = at+int64(got), n-int64(got)
	}
	return nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
