package basebackup

import (
	"bytes"
	"context"
	"io"
	"strings"
	"time"
)

// pageRetries and pagePause bound how long a page with a wrong checksum is looked at: a write of the server's that it
// was caught in is over long before.
const (
	pageRetries = 4
	pagePause   = 50 * time.Millisecond
)

// pageFile is what is to be known of a relation's file in order to check its pages.
type pageFile struct {
	size  int    // of a page; 0: the file has none to be checked
	first uint32 // the number, within the relation, of the file's first block
}

// pagesOf tells which pages the file at path, in the manifest's way, has. Files of a relation are in global, in databases'
// directories and, for these, in tablespaces.
func (c *copier) pagesOf(path string) pageFile {
	if !c.checksums {
		return pageFile{}
	}
	i := strings.LastIndexByte(path, '/')
	if i < 0 || path[:i] != "global" && !isDatabaseDir(path[:i]) {
		return pageFile{}
	}
	f, ok := parseRelFile(path[i+1:])
	if !ok || f.temp {
		return pageFile{}
	}
	return pageFile{size: c.blockSize, first: f.segment * c.segBlocks}
}

// checkPages looks at the whole pages in buf, which was read from off in the file, and returns the block numbers of the
// bad ones. A page that is bad is read again: if it has become good, buf gets that; if it changes all the time, the
// server is writing it, and since any page that changes during the backup is in the WAL that the backup needs, whole,
// what buf has will do.
func (p pageFile) checkPages(ctx context.Context, f io.ReaderAt, buf []byte, off int64) (bad []uint32, err error) {
	if p.size == 0 {
		return nil, nil
	}
	first := p.first + uint32(off/int64(p.size))
	again := make([]byte, 0, p.size)
	for _, i := range badPages(buf, p.size, first) {
		page, no := buf[i*p.size:(i+1)*p.size], first+uint32(i)
		isBad, err := stillBad(ctx, f, page, no, off+int64(i*p.size), again[:p.size])
		if err != nil {
			return nil, err
		}
		if isBad {
			bad = append(bad, no)
		}
	}
	return bad, nil
}

// stillBad reads the page at off again, until it is good, which page then is too, or has been looked at often enough.
func stillBad(ctx context.Context, f io.ReaderAt, page []byte, no uint32, off int64, again []byte) (bool, error) {
	changed := false
	for range pageRetries {
		n, err := f.ReadAt(again, off)
		if n < len(again) && (err == io.EOF || err == io.ErrUnexpectedEOF) {
			return false, nil // cut off meanwhile, which is in the WAL too
		}
		if n < len(again) {
			return false, err
		}
		if pageGood(again, no) {
			copy(page, again)
			return false, nil
		}
		changed = changed || !bytes.Equal(again, page)
		copy(page, again)
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(pagePause):
		}
	}
	return !changed, nil
}
