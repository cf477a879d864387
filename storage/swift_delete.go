package storage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

const (
	// swiftBatch is how many objects are deleted at a time: servers allow 10,000 (max_deletes_per_request), and none
	// answers before it has deleted them all.
	swiftBatch = 1000
	// swiftFew are deleted one by one.
	swiftFew = 4
)

// Delete removes the manifest of a large object first, and then its segments: so it is never there with some of them
// missing. What is left after an interruption, Sweep removes.
func (s *swift) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := s.check(ctx, key); err != nil {
			return s.failed("delete", key, err)
		}
	}
	for batch := range slices.Chunk(keys, swiftBatch) {
		if err := s.deleteBatch(ctx, batch); err != nil {
			key := ""
			if len(keys) == 1 {
				key = keys[0]
			}
			return s.failed("delete", key, err)
		}
	}
	return nil
}

func (s *swift) deleteBatch(ctx context.Context, keys []string) error {
	segments, err := s.segmentsOf(ctx, keys)
	if err != nil {
		return err
	}
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = s.name(key)
	}
	if err := s.remove(ctx, names); err != nil {
		return err
	}
	for batch := range slices.Chunk(segments, swiftBatch) {
		if err := s.remove(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// segmentsOf are the segments that the manifests of the keys name now. Those of other uploads of a key stay: they may be of
// one that is under way.
func (s *swift) segmentsOf(ctx context.Context, keys []string) ([]string, error) {
	sorted := slices.Sorted(slices.Values(keys))
	first, last := sorted[0], sorted[len(sorted)-1]
	same := 0
	for same < min(len(first), len(last)) && first[same] == last[same] {
		same++
	}
	below := s.prefix + swiftSegments
	r := swiftRange{prefix: below + first[:same], after: below + first}
	// Behind "/" comes "0"; but a key that the last one begins with can have segments behind that.
	if !slices.ContainsFunc(sorted, func(key string) bool { return key != last && strings.HasPrefix(last, key) }) {
		r.end = below + last + "0"
	}
	var groups []swiftGroup
	for g, err := range s.groups(ctx, r) {
		if err != nil {
			return nil, err
		}
		if _, ok := slices.BinarySearch(sorted, g.key); ok {
			groups = append(groups, g)
		}
	}
	named := make([]bool, len(groups))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(swiftParallel)
	for i, g := range groups {
		group.Go(func() error {
			there, err := s.head(groupCtx, g.key)
			if errors.Is(err, ErrNotFound) {
				return nil
			}
			named[i] = err == nil && there.Get(swiftUploadHeader) == g.upload
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var names []string
	for i, g := range groups {
		if named[i] {
			names = append(names, g.names...)
		}
	}
	return names, nil
}

// remove deletes objects by name; those that are not there are ignored.
func (s *swift) remove(ctx context.Context, names []string) error {
	if len(names) > swiftFew && !s.noBulk.Load() {
		done, err := s.removeBulk(ctx, names)
		if err != nil || done {
			return err
		}
	}
	absent := false
	for _, name := range names {
		resp, err := s.do(ctx, swiftRequest{method: http.MethodDelete, name: name})
		if err != nil {
			return err
		}
		switch {
		case resp.StatusCode/100 == 2:
			swiftDrain(resp)
		case resp.StatusCode == http.StatusNotFound:
			swiftDrain(resp)
			absent = true
		default:
			defer resp.Body.Close()
			return fmt.Errorf("%s: %w", strings.TrimPrefix(name, s.prefix), s.refused(resp))
		}
	}
	return s.stillThere(ctx, absent)
}

// stillThere returns ErrVanished if names were absent because the container is.
func (s *swift) stillThere(ctx context.Context, absent bool) error {
	if !absent {
		return nil
	}
	_, err := s.present(ctx)
	return err
}

// removeBulk deletes objects with one request, unless the server cannot.
func (s *swift) removeBulk(ctx context.Context, names []string) (done bool, err error) {
	var list bytes.Buffer
	for _, name := range names {
		fmt.Fprintf(&list, "/%s/%s\n", url.PathEscape(s.container), swiftEscape(name))
	}
	resp, err := s.do(ctx, swiftRequest{
		method: http.MethodPost, account: true, query: url.Values{"bulk-delete": {""}}, body: swiftText(list.Bytes()),
		header: http.Header{"Content-Type": {"text/plain"}, "Accept": {"application/json"}},
	})
	if err != nil {
		return false, err
	}
	defer swiftDrain(resp)
	switch {
	case resp.StatusCode == http.StatusOK:
	case resp.StatusCode/100 == 2, resp.StatusCode == http.StatusForbidden, resp.StatusCode/100 == 4 && resp.StatusCode != http.StatusTooManyRequests:
		// Without the middleware it is a request to change the account, which does nothing.
		s.noBulk.Store(true)
		return false, nil
	default:
		return false, s.refused(resp)
	}
	var result struct {
		Status string     `json:"Response Status"`
		Body   string     `json:"Response Body"`
		Absent int        `json:"Number Not Found"`
		Errors [][]string `json:"Errors"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&result); err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		return false, MarkTemporary(fmt.Errorf("read the answer to a bulk delete: %s", err.Error()))
	}
	status := result.Status
	if len(result.Errors) > 0 && len(result.Errors[0]) == 2 {
		status = result.Errors[0][1]
	}
	number, _, _ := strings.Cut(status, " ")
	code, err := strconv.Atoi(number)
	switch {
	case err != nil:
		return false, MarkTemporary(fmt.Errorf("the answer to a bulk delete has no status, but %q", status))
	case code == http.StatusRequestEntityTooLarge: // a server with a lower limit
		return false, nil
	case code/100 != 2:
		text := "the server says " + status
		if len(result.Errors) > 0 {
			text = fmt.Sprintf("%d objects could not be deleted, one of them %s: %s", len(result.Errors), result.Errors[0][0], text)
		}
		return false, s.refusal(code, text)
	}
	return true, s.stillThere(ctx, result.Absent > 0)
}
