package storage

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"
)

const (
	// swiftPage is how many objects are listed at a time.
	swiftPage = 2000
	// swiftParallel is how many small requests one call has under way at a time.
	swiftParallel = 8
)

// swiftEntry is an object in a listing.
type swiftEntry struct {
	Name     string `json:"name"`
	Bytes    int64  `json:"bytes"`
	Modified string `json:"last_modified"`
}

func (e swiftEntry) time() time.Time {
	t, _ := time.Parse("2006-01-02T15:04:05", e.Modified)
	return t
}

// List: the order of a Swift container is that of the names' bytes.
func (s *swift) List(ctx context.Context, prefix, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		r := swiftRange{prefix: s.prefix + prefix, hidden: true}
		if after != "" {
			r.after = s.prefix + after
		}
		for e, err := range s.entries(ctx, r) {
			if err != nil {
				yield(Object{}, s.failed("list", "", err))
				return
			}
			key := e.Name[len(s.prefix):]
			if CheckKey(key) != nil {
				continue // somebody else's
			}
			if !yield(Object{key, e.Bytes, e.time()}, nil) {
				return
			}
		}
	}
}

// swiftRange is a part of the container: the names that begin with prefix, lie behind after, and before end, if that is set;
// without the segments if they are hidden.
type swiftRange struct {
	prefix, after, end string
	hidden             bool
}

// entries lists a part of the container, page by page. A container that has never been there is empty.
func (s *swift) entries(ctx context.Context, r swiftRange) iter.Seq2[swiftEntry, error] {
	return func(yield func(swiftEntry, error) bool) {
		query := url.Values{"format": {"json"}, "limit": {strconv.Itoa(swiftPage)}}
		set := func(name, value string) {
			if value = swiftParameter(value); value != "" {
				query.Set(name, value)
			}
		}
		set("prefix", r.prefix)
		set("marker", r.after)
		set("end_marker", r.end)
		for {
			page, err := s.page(ctx, query)
			if err != nil {
				yield(swiftEntry{}, err)
				return
			}
			if len(page) == 0 {
				return // a short page proves nothing
			}
			next := page[len(page)-1].Name
			for _, e := range page {
				if r.hidden && strings.HasPrefix(e.Name, s.prefix+swiftSegments) {
					next = s.prefix + swiftBehindSegments
					break
				}
				if !strings.HasPrefix(e.Name, r.prefix) || e.Name <= r.after {
					continue // the server was asked for more, where it could not be asked for this
				}
				if !yield(e, nil) {
					return
				}
			}
			set("marker", next)
		}
	}
}

// swiftParameter is the longest beginning of a name that a server takes.
func swiftParameter(name string) string {
	const most = 1024 // max_object_name_length
	name, _, _ = strings.Cut(name[:min(len(name), most)], "\x00")
	for i, r := range name {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(name[i:]); n == 1 {
				return name[:i]
			}
		}
	}
	return name
}

func (s *swift) page(ctx context.Context, query url.Values) ([]swiftEntry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	resp, err := s.do(ctx, swiftRequest{method: http.MethodGet, query: query})
	if err != nil {
		return nil, err
	}
	defer swiftDrain(resp)
	switch {
	case resp.StatusCode == http.StatusNoContent:
		s.seen.Store(true)
		return nil, nil
	case resp.StatusCode == http.StatusNotFound && s.seen.Load():
		return nil, s.vanished()
	case resp.StatusCode == http.StatusNotFound:
		return nil, nil
	case resp.StatusCode != http.StatusOK:
		return nil, s.refused(resp)
	}
	var page []swiftEntry
	if err := json.NewDecoder(resp.Body).Decode(&page); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, MarkTemporary(fmt.Errorf("read the listing: %s", err.Error()))
	}
	s.seen.Store(true)
	return page, nil
}

// swiftGroup is what one upload left: its segments, of one key.
type swiftGroup struct {
	key, upload string
	names       []string
	newest      time.Time
}

// groups goes through the segments in a part of the container, upload by upload.
func (s *swift) groups(ctx context.Context, r swiftRange) iter.Seq2[swiftGroup, error] {
	return func(yield func(swiftGroup, error) bool) {
		var g swiftGroup
		for e, err := range s.entries(ctx, r) {
			if err != nil {
				yield(swiftGroup{}, err)
				return
			}
			key, upload, ok := s.segmentOf(e.Name)
			if !ok {
				continue
			}
			if key != g.key || upload != g.upload {
				if len(g.names) > 0 && !yield(g, nil) {
					return
				}
				g = swiftGroup{key: key, upload: upload}
			}
			g.names = append(g.names, e.Name)
			if t := e.time(); t.After(g.newest) {
				g.newest = t
			}
		}
		if len(g.names) > 0 {
			yield(g, nil)
		}
	}
}

// segmentOf takes the name of a segment apart.
func (s *swift) segmentOf(name string) (key, upload string, ok bool) {
	rest, ok := strings.CutPrefix(name, s.prefix+swiftSegments)
	if !ok {
		return "", "", false
	}
	at := strings.LastIndexByte(rest, '/')
	if at < 0 {
		return "", "", false
	}
	rest = rest[:at]
	if at = strings.LastIndexByte(rest, '/'); at < 0 {
		return "", "", false
	}
	return rest[:at], rest[at+1:], CheckKey(rest[:at]) == nil
}

// Sweep removes the segments of uploads that no manifest names: see Sweeper.
func (s *swift) Sweep(ctx context.Context, olderThan time.Duration) (removed int, err error) {
	limit := time.Now().Add(-olderThan)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(swiftParallel)
	var gone atomic.Int64
	for g, listErr := range s.groups(ctx, swiftRange{prefix: s.prefix + swiftSegments}) {
		if listErr != nil {
			err = listErr
			break
		}
		if !g.newest.Before(limit) {
			continue
		}
		group.Go(func() error {
			yes, err := s.abandoned(groupCtx, g)
			if err != nil || !yes {
				return err
			}
			if err := s.remove(groupCtx, g.names); err != nil {
				return err
			}
			gone.Add(int64(len(g.names)))
			return nil
		})
		if groupCtx.Err() != nil {
			break
		}
	}
	if waitErr := group.Wait(); waitErr != nil {
		err = waitErr
	}
	removed = int(gone.Load())
	if err != nil {
		return removed, s.failed("sweep", "", err)
	}
	return removed, nil
}

// abandoned says whether no manifest names the upload's segments. Data is lost where this is wrong, and one answer of a
// store that is not strongly consistent proves nothing: all replicas are asked, and the listing must agree.
func (s *swift) abandoned(ctx context.Context, g swiftGroup) (bool, error) {
	resp, err := s.do(ctx, swiftRequest{method: http.MethodHead, name: s.name(g.key), header: http.Header{"X-Newest": {"true"}}})
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode/100 == 2:
		// Another upload, or none: then its manifest came later than this one's could have.
		return resp.Header.Get(swiftUploadHeader) != g.upload, nil
	case resp.StatusCode != http.StatusNotFound:
		return false, s.refused(resp)
	}
	for e, err := range s.entries(ctx, swiftRange{prefix: s.name(g.key)}) {
		if err != nil {
			return false, err
		}
		return e.Name != s.name(g.key), nil // it would come first
	}
	return true, nil
}
