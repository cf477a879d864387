package basebackup

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sync/errgroup"
)

// The copy is a line of units, in the order of the manifest: one goroutine walks the data directory and makes them, the
// workers read, check, compress and pack them in any order, and one more writes the finished ones into the manifest in
// theirs. What is under way at a time is bounded by the length of the line, not by the number of files.

const (
	unitsAhead    = 64   // units that may wait behind one that is not finished
	bundleEntries = 1000 // entries in a unit of small things
)

// dataFile is what the copy asks of an open file.
type dataFile interface {
	io.ReaderAt
	io.Closer
	Stat() (fs.FileInfo, error)
}

// openData opens a regular file. What has become something else since it was seen is not followed and not waited for.
func openData(path string) (dataFile, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// copier copies one data directory into packs and a manifest.
type copier struct {
	open      func(path string) (dataFile, error)
	log       *slog.Logger
	checksums bool
	blockSize int
	segBlocks uint32 // blocks in a file of a relation
	packs     *packs
	manifest  *Writer
	workers   int

	work, line chan *unit
	bundle     *unit // being filled
	bundled    int64 // bytes that it will probably have

	mu     sync.Mutex
	opened map[*bigFile]struct{}

	read                  atomic.Int64 // bytes
	files, size, badPages atomic.Int64 // what the manifest has so far
}

// unit is a part of the work: either entries that are small, with the content of the files among them, or a piece of one
// big file.
type unit struct {
	items []*item

	big  *bigFile
	off  int64
	len  int
	last bool // of its file

	// Set by the worker, before done is closed.
	got     int // bytes of the piece that were there
	extents []Extent
	bad     []uint32
	done    chan struct{}

	// reached is set in a unit without work: closed when everything before it is in the manifest.
	reached chan struct{}
}

// item is an entry and, if it is a file, where its content comes from.
type item struct {
	entry   *Entry
	file    string // path on this machine
	content []byte // instead of file
	gone    bool   // there is no such file any more
}

// bigFile is one that is copied in pieces.
type bigFile struct {
	entry *Entry
	file  dataFile
	pages pageFile
	ended bool // the pieces that follow are past the end that was seen
}

// run copies everything that feed gives to entry and flushes, and returns when it is in the packs, stored, and in the
// manifest.
func (c *copier) run(ctx context.Context, feed func(ctx context.Context) error) error {
	c.work, c.line = make(chan *unit, c.workers), make(chan *unit, unitsAhead)
	c.opened = make(map[*bigFile]struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(c.work)
		defer close(c.line)
		if err := feed(ctx); err != nil {
			return err
		}
		return c.flush(ctx)
	})
	for range c.workers {
		g.Go(func() error { return c.worker(ctx) })
	}
	g.Go(func() error { return c.collect(ctx) })
	err := g.Wait()
	for b := range c.opened {
		b.file.Close()
	}
	return err
}

// entry takes the next entry of the manifest. Files are opened now or later; those that are gone then are passed over.
func (c *copier) entry(ctx context.Context, e *Entry, file string, size int64) error {
	if size >= MaxFrameRaw {
		return c.bigFile(ctx, e, file)
	}
	if c.bundle != nil && (c.bundled+size > MaxFrameRaw || len(c.bundle.items) == bundleEntries) {
		if err := c.flush(ctx); err != nil {
			return err
		}
	}
	c.item(&item{entry: e, file: file}, size)
	return nil
}

// item puts something small into the next unit.
func (c *copier) item(it *item, size int64) {
	if c.bundle == nil {
		c.bundle, c.bundled = &unit{done: make(chan struct{})}, 0
	}
	c.bundle.items = append(c.bundle.items, it)
	c.bundled += size
}

// flush sends what small things there are.
func (c *copier) flush(ctx context.Context) error {
	if c.bundle == nil {
		return nil
	}
	u := c.bundle
	c.bundle = nil
	return c.send(ctx, u)
}

// barrier returns when everything before it is read and in the manifest.
func (c *copier) barrier(ctx context.Context) error {
	if err := c.flush(ctx); err != nil {
		return err
	}
	u := &unit{reached: make(chan struct{})}
	select {
	case c.line <- u:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-u.reached:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *copier) send(ctx context.Context, u *unit) error {
	// First the line: whatever is being worked on has its place in it.
	for _, to := range []chan *unit{c.line, c.work} {
		select {
		case to <- u:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (c *copier) bigFile(ctx context.Context, e *Entry, path string) error {
	if err := c.flush(ctx); err != nil {
		return err
	}
	f, err := c.open(path)
	if gone(err) {
		return nil
	}
	if err != nil {
		return readFailed(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file any more", path)
	}
	if err != nil {
		f.Close()
		return readFailed(err)
	}
	readAhead(f)
	b := &bigFile{entry: e, file: f, pages: c.pagesOf(e.Path)}
	c.mu.Lock()
	c.opened[b] = struct{}{}
	c.mu.Unlock()
	e.ModTime = info.ModTime().UnixNano()
	// What is written behind this end from now on is in the WAL.
	size := info.Size()
	for off := int64(0); ; off += MaxFrameRaw {
		u := &unit{big: b, off: off, len: int(min(size-off, MaxFrameRaw)), last: size-off <= MaxFrameRaw, done: make(chan struct{})}
		if err := c.send(ctx, u); err != nil || u.last {
			return err
		}
	}
}

// worker does units until there are no more.
func (c *copier) worker(ctx context.Context) error {
	p, err := c.packs.newPacker()
	if err != nil {
		return err
	}
	defer p.close()
	w := &worker{copier: c, packer: p, buf: make([]byte, MaxFrameRaw)}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case u, ok := <-c.work:
			if !ok {
				return p.finish(ctx)
			}
			if u.big != nil {
				err = w.piece(ctx, u)
			} else {
				err = w.bundle(ctx, u)
			}
			if err != nil {
				return err
			}
			close(u.done)
		}
	}
}

// collect writes finished units into the manifest, in the order of the line.
func (c *copier) collect(ctx context.Context) error {
	for u := range c.line {
		if u.reached != nil {
			close(u.reached)
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-u.done:
		}
		if err := c.collected(u); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (c *copier) collected(u *unit) error {
	for _, it := range u.items {
		if it.gone {
			continue
		}
		if err := c.add(it.entry); err != nil {
			return err
		}
	}
	b := u.big
	if b == nil {
		return nil
	}
	if !b.ended {
		b.entry.Extents = appendExtents(b.entry.Extents, u.extents)
		b.entry.BadPages = append(b.entry.BadPages, u.bad...)
		b.entry.Size += int64(u.got)
		// A file that became shorter ends where it ended when that was read. It may since have grown again: both are in
		// the WAL.
		b.ended = u.got < u.len
	}
	if !u.last {
		return nil
	}
	c.mu.Lock()
	delete(c.opened, b)
	c.mu.Unlock()
	b.file.Close()
	if b.pages.size > 0 {
		b.entry.Flags |= PagesChecked
	}
	return c.add(b.entry)
}

func (c *copier) add(e *Entry) error {
	if e.Type == File || e.Type == External {
		c.files.Add(1)
		c.size.Add(e.Size)
		c.badPages.Add(int64(len(e.BadPages)))
	}
	if len(e.BadPages) > 0 {
		c.log.Warn("pages with wrong checksums", "path", e.Path, "blocks", len(e.BadPages), "first", e.BadPages[0])
	}
	return c.manifest.Add(e)
}

// appendExtents joins runs of zeros.
func appendExtents(to, more []Extent) []Extent {
	for _, x := range more {
		if n := len(to); x.Zeros && n > 0 && to[n-1].Zeros {
			to[n-1].Length += x.Length
			continue
		}
		to = append(to, x)
	}
	return to
}

// worker is one of the copier's, with the memory it needs.
type worker struct {
	*copier
	packer *packer
	buf    []byte // raw content of a frame
	fill   int    // of buf
	pieces []piece
}

// piece is a part of a small file in the worker's buffer.
type piece struct {
	entry   *Entry
	at, len int
}

// piece copies a piece of a big file.
func (w *worker) piece(ctx context.Context, u *unit) error {
	n, err := readAt(u.big.file, w.buf[:u.len], u.off)
	if err != nil {
		return readFailed(fmt.Errorf("%s: %w", u.big.entry.Path, err))
	}
	u.got = n
	w.read.Add(int64(n))
	if n == 0 {
		return nil
	}
	raw := w.buf[:n]
	if allZero(raw) {
		u.extents = []Extent{{Zeros: true, Length: int64(n)}}
		return nil
	}
	if u.bad, err = u.big.pages.checkPages(ctx, u.big.file, raw, u.off); err != nil {
		return readFailed(fmt.Errorf("%s: %w", u.big.entry.Path, err))
	}
	f, err := w.packer.add(ctx, raw)
	u.extents = []Extent{{Frame: f, Length: int64(n)}}
	return err
}

// bundle copies small files into as few frames as possible, most times one.
func (w *worker) bundle(ctx context.Context, u *unit) error {
	for _, it := range u.items {
		if it.entry.Type != File && it.entry.Type != External {
			continue
		}
		if err := w.small(ctx, it); err != nil {
			return fmt.Errorf("%s: %w", it.entry.Path, err)
		}
	}
	return w.frame(ctx)
}

func (w *worker) small(ctx context.Context, it *item) error {
	if it.content != nil {
		return w.content(ctx, it.entry, it.content)
	}
	f, err := w.copier.open(it.file)
	if gone(err) {
		it.gone = true
		return nil
	}
	if err != nil {
		return readFailed(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return readFailed(err)
	}
	if !info.Mode().IsRegular() {
		return readFailed(fmt.Errorf("%s is not a file any more", it.file))
	}
	it.entry.ModTime = info.ModTime().UnixNano()
	pages := w.pagesOf(it.entry.Path)
	if pages.size > 0 {
		it.entry.Flags |= PagesChecked
	}
	// The file may be longer than it was when it was seen first.
	for size := info.Size(); it.entry.Size < size; {
		want := int(min(size-it.entry.Size, int64(len(w.buf))))
		if want > len(w.buf)-w.fill {
			if err := w.frame(ctx); err != nil {
				return err
			}
		}
		part := w.buf[w.fill : w.fill+want]
		n, err := readAt(f, part, it.entry.Size)
		if err != nil {
			return readFailed(err)
		}
		bad, err := pages.checkPages(ctx, f, part[:n], it.entry.Size)
		if err != nil {
			return readFailed(err)
		}
		it.entry.BadPages = append(it.entry.BadPages, bad...)
		w.took(it.entry, n)
		if n < want {
			break // it became shorter
		}
	}
	return nil
}

func (w *worker) content(ctx context.Context, e *Entry, data []byte) error {
	if len(data) > len(w.buf)-w.fill {
		if err := w.frame(ctx); err != nil {
			return err
		}
	}
	w.took(e, copy(w.buf[w.fill:], data))
	return nil
}

// took notes that the next n bytes in the buffer are the file's.
func (w *worker) took(e *Entry, n int) {
	if n == 0 {
		return
	}
	w.pieces = append(w.pieces, piece{entry: e, at: w.fill, len: n})
	w.fill += n
	e.Size += int64(n)
	w.read.Add(int64(n))
}

// frame stores what is in the buffer.
func (w *worker) frame(ctx context.Context) error {
	if w.fill == 0 {
		return nil
	}
	f, err := w.packer.add(ctx, w.buf[:w.fill])
	if err != nil {
		return err
	}
	for _, p := range w.pieces {
		p.entry.Extents = append(p.entry.Extents, Extent{Frame: f, Offset: uint32(p.at), Length: int64(p.len)})
	}
	clear(w.pieces)
	w.pieces, w.fill = w.pieces[:0], 0
	return nil
}

// readAt fills buf as far as the file goes.
func readAt(f io.ReaderAt, buf []byte, off int64) (int, error) {
	n, err := f.ReadAt(buf, off)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return n, err
}
