package storage

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"pitr/internal/hint"
)

const (
	// swiftSegment is how large the first segments of a large object are, and the largest object in one piece; each 250
	// segments the size doubles, so that with 1,000 segments, which is what servers allow (max_manifest_segments), an
	// object can have 58 GiB.
	swiftSegment      = 16 << 20
	swiftSameSegments = 250
	swiftMostSegments = 1000

	// swiftUploadHeader is the manifest's note of the upload that its segments come from.
	swiftUploadHeader = "X-Object-Meta-Pitr-Upload"

	swiftCleanup = 30 * time.Second // for removing segments after the context has ended
)

// swiftSegmentSize is the size of segment n, counted from 0, unless it is the last. Readers check digests by it: another rule
// needs another first character in the name of an upload.
func swiftSegmentSize(n int) int64 { return swiftSegment << (n / swiftSameSegments) }

// swiftUpload names a new upload. The first character says which rule gives the sizes of its segments.
func swiftUpload() string { return "1" + rand.Text() }

// Create: see swift. In memory it holds one segment.
func (s *swift) Create(ctx context.Context, key string, r io.Reader) error {
	err := s.check(ctx, key)
	if err == nil {
		err = s.create(ctx, key, r)
	}
	if err != nil {
		return s.failed("create", key, err)
	}
	return nil
}

func (s *swift) create(ctx context.Context, key string, r io.Reader) error {
	source := &swiftSource{ctx: ctx, r: r, pool: &s.chunks}
	first, err := source.next(swiftSegmentSize(0))
	if err != nil {
		return err
	}
	if !source.ended {
		return s.createLarge(ctx, key, source, first)
	}
	defer source.free(first)
	resp, err := s.put(ctx, swiftRequest{
		method: http.MethodPut, name: s.name(key), body: first, commit: true,
		header: http.Header{"If-None-Match": {"*"}, "Etag": {first.md5}},
	})
	_, err = s.outcome(ctx, resp, err, func(there http.Header) bool {
		return swiftETag(there) == first.md5 && there.Get("X-Static-Large-Object") == ""
	}, key)
	return err
}

// put sends a PUT. The first one looks whether the container is there, and creates it.
func (s *swift) put(ctx context.Context, r swiftRequest) (*http.Response, error) {
	if !s.seen.Load() {
		there, err := s.present(ctx)
		if err == nil && !there {
			err = s.begin(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
	r.header.Set("Content-Type", "application/octet-stream")
	resp, err := s.do(ctx, r)
	if err != nil || resp.StatusCode != http.StatusNotFound {
		return resp, err
	}
	swiftDrain(resp)
	return nil, s.vanished()
}

// outcome judges the answer to a PUT that makes an object visible; refused says that it is certain that this one did not.
// Where it is not known, what is there decides: a refusal can come as a broken connection, and an answer can be lost.
func (s *swift) outcome(ctx context.Context, resp *http.Response, err error, ours func(http.Header) bool, key string) (refused bool, _ error) {
	status := 0
	if err == nil {
		defer resp.Body.Close()
		switch status = resp.StatusCode; status {
		case http.StatusCreated:
			s.seen.Store(true)
			return false, nil
		case http.StatusPreconditionFailed:
			s.seen.Store(true)
			return true, ErrExists
		}
		err = s.refused(resp)
		if status == http.StatusAccepted {
			// A replica had an object with a later time stamp, which stays.
			err = MarkTemporary(fmt.Errorf("the server had a later object of this name: %w", err))
		}
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if status/100 == 4 && status != http.StatusRequestTimeout && status != http.StatusConflict && status != 499 {
		return true, err
	}
	if status == 0 && !Temporary(err) {
		return false, err
	}
	there, headErr := s.head(ctx, key)
	switch {
	case headErr != nil:
		return false, err
	case ours(there):
		return false, nil
	}
	return false, ErrExists
}

// head asks for an object's headers, of the newest replica.
func (s *swift) head(ctx context.Context, key string) (http.Header, error) {
	resp, err := s.do(ctx, swiftRequest{method: http.MethodHead, name: s.name(key), header: http.Header{"X-Newest": {"true"}}})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode/100 == 2:
		s.seen.Store(true)
		return resp.Header, nil
	case resp.StatusCode == http.StatusNotFound:
		return nil, s.notFound(ctx)
	}
	return nil, s.refused(resp)
}

func swiftETag(h http.Header) string { return strings.Trim(h.Get("Etag"), `"`) }

// swiftPart is a segment in a manifest.
type swiftPart struct {
	Path string `json:"path"`
	ETag string `json:"etag"`
	Size int64  `json:"size_bytes"`
}

// createLarge stores the segments and then the manifest. It takes first over.
func (s *swift) createLarge(ctx context.Context, key string, source *swiftSource, first *swiftBuffer) error {
	// To send everything and only then hear that the key is taken would be a waste.
	if _, err := s.head(ctx, key); err == nil {
		source.free(first)
		return ErrExists
	}
	upload := swiftUpload()
	var parts []swiftPart
	refused, err := s.uploadLarge(ctx, key, upload, &parts, source, first)
	if err != nil && refused {
		var names []string
		for n := range len(parts) + 1 { // the last one may be there, unseen
			names = append(names, s.segmentName(key, upload, n))
		}
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), swiftCleanup)
		defer cancel()
		_ = s.remove(cleanup, names) // what stays, Sweep finds
	}
	return err
}

func (s *swift) segmentName(key, upload string, n int) string {
	return fmt.Sprintf("%s%s%s/%s/%04d", s.prefix, swiftSegments, key, upload, n)
}

// uploadLarge does what createLarge says. It notes the segments that are stored; refused says that no manifest names them.
func (s *swift) uploadLarge(ctx context.Context, key, upload string, parts *[]swiftPart, source *swiftSource, piece *swiftBuffer) (refused bool, err error) {
	for n := 0; ; n++ {
		err := s.putSegment(ctx, key, upload, n, piece, parts)
		source.free(piece)
		if err != nil {
			return true, err
		}
		if source.ended {
			break
		}
		if n+1 == swiftMostSegments {
			return true, hint.Wrap(fmt.Errorf("the object is larger than the %d segments that a large object can have", swiftMostSegments), "choose another kind of store")
		}
		if piece, err = source.next(swiftSegmentSize(n + 1)); err != nil {
			return true, err
		}
	}
	manifest, err := json.Marshal(*parts)
	if err != nil {
		return true, err
	}
	etag := swiftManifestETag(*parts)
	resp, err := s.put(ctx, swiftRequest{
		method: http.MethodPut, name: s.name(key), body: swiftText(manifest), commit: true,
		query: url.Values{"multipart-manifest": {"put"}},
		// A server that knows no large objects would store the manifest as the content: the ETag keeps it from that.
		header: http.Header{"If-None-Match": {"*"}, "Etag": {etag}, swiftUploadHeader: {upload}},
	})
	refused, err = s.outcome(ctx, resp, err, func(there http.Header) bool {
		return swiftETag(there) == etag && there.Get("X-Static-Large-Object") != ""
	}, key)
	if refused && swiftStatus(err) == http.StatusUnprocessableEntity {
		err = hint.Wrap(err, "look whether the server has static large objects (the middleware slo) switched on: pitr needs them")
	}
	return refused, err
}

func (s *swift) putSegment(ctx context.Context, key, upload string, n int, piece *swiftBuffer, parts *[]swiftPart) error {
	name := s.segmentName(key, upload, n)
	resp, err := s.put(ctx, swiftRequest{method: http.MethodPut, name: name, body: piece, header: http.Header{"Etag": {piece.md5}}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return s.refused(resp)
	}
	*parts = append(*parts, swiftPart{"/" + s.container + "/" + name, piece.md5, piece.size})
	return nil
}

// swiftManifestETag is the ETag of a static large object: the MD5 of its segments' ETags, one behind the other.
func swiftManifestETag(parts []swiftPart) string {
	sum := md5.New()
	for _, p := range parts {
		io.WriteString(sum, p.ETag)
	}
	return hex.EncodeToString(sum.Sum(nil))
}
