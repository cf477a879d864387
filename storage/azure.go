package storage

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// azureRangeMD5 is the longest range, in bytes, of which the service gives an MD5 (Get Blob, x-ms-range-get-content-md5).
const azureRangeMD5 = 4 << 20

// azure is a bucket in a container of Azure's blob service, or what speaks its protocol. The object KEY is the block blob
// PREFIX/KEY: see azureName. Blobs whose names no key can have are no objects, and are not listed.
//
// A small object is stored by one conditional Put Blob, a large one as blocks that one conditional Put Block List makes
// visible. Blocks that were never committed are invisible; nothing can remove them without making an object of them, and
// the service does that itself after a week, or when another Create of the same key succeeds: there is nothing to Sweep.
//
// Containers of an account with a hierarchical namespace list in another order than that of bytes. List says so.
type azure struct {
	container string // its name, for messages
	prefix    string // of the names of the blobs; empty, or ends in "/"
	login     *azureLogin
	client    *container.Client
	as        azureAttributes

	seen      atomic.Bool // the container has answered as one that is there
	startFrom atomic.Int32
	blocks    sync.Pool // of *[]byte, azureBlock long
}

// azureAttributes are what the configuration wants on each object.
type azureAttributes struct {
	tier   *blob.AccessTier
	tags   map[string]string
	scope  *blob.CPKScopeInfo
	days   int // of immutability; 0: none
	locked bool
}

func (a *azure) String() string {
	u := url.URL{Scheme: "azure", Host: a.container}
	if a.prefix != "" {
		u.Path = "/" + strings.TrimSuffix(a.prefix, "/")
	}
	return u.String()
}

// Capabilities: a conditional put decides between racing writers, and whoever asks after a write sees it (documented as
// strong consistency of the primary location).
func (a *azure) Capabilities() Capabilities {
	return Capabilities{CreateIfAbsent: true, StrongList: true}
}

// name is that of a key's blob.
func (a *azure) name(key string) string { return a.prefix + azureName(key) }

// check refuses keys that the container can't hold, and calls that come too late.
func (a *azure) check(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return CheckKey(key)
}

// failed puts operation and key before an error, and says what could be done about it.
func (a *azure) failed(ctx context.Context, op, key string, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if key == "" {
		return fmt.Errorf("%s %s: %w", op, a, a.explain(err))
	}
	return fmt.Errorf("%s %s in %s: %w", op, key, a, a.explain(err))
}

// missing tells what a 404 was about: the object alone, or more. It returns nil if err is none.
func (a *azure) missing(ctx context.Context, err error) error {
	switch {
	case bloberror.HasCode(err, bloberror.BlobNotFound):
		return ErrNotFound
	case azureStatus(err) != http.StatusNotFound, bloberror.HasCode(err, bloberror.ContainerNotFound):
		return nil
	}
	// The answer to a HEAD has no body, and what stands between may have dropped the header that names the reason.
	if _, asked := a.client.GetProperties(ctx, nil); asked != nil {
		return asked
	}
	return ErrNotFound
}

func (a *azure) Stat(ctx context.Context, key string) (Object, error) {
	p, err := a.properties(ctx, key)
	if err != nil {
		return Object{}, a.failed(ctx, "stat", key, err)
	}
	o := Object{Key: key}
	if p.ContentLength != nil {
		o.Size = *p.ContentLength
	}
	if p.LastModified != nil {
		o.Modified = *p.LastModified
	}
	return o, nil
}

func (a *azure) properties(ctx context.Context, key string) (blob.GetPropertiesResponse, error) {
	if err := a.check(ctx, key); err != nil {
		return blob.GetPropertiesResponse{}, err
	}
	p, err := a.client.NewBlobClient(a.name(key)).GetProperties(ctx, nil)
	if err != nil {
		if why := a.missing(ctx, err); why != nil {
			err = why
		}
		return p, err
	}
	a.seen.Store(true)
	return p, nil
}

func (a *azure) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	return a.open(ctx, key, nil, 0)
}

func (a *azure) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	switch {
	case off < 0 || n < 0:
		return nil, a.failed(ctx, "get", key, fmt.Errorf("%d bytes from %d: negative", n, off))
	case n == 0:
		// HTTP knows no empty range.
		if _, err := a.properties(ctx, key); err != nil {
			return nil, a.failed(ctx, "get", key, err)
		}
		return a.body(ctx, key, http.NoBody, 0, 0, nil), nil
	}
	opts := &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: off, Count: min(n, math.MaxInt64-off)}}
	if n <= azureRangeMD5 {
		opts.RangeGetContentMD5 = to.Ptr(true)
	}
	return a.open(ctx, key, opts, n)
}

// open asks for an object, or n bytes of it.
func (a *azure) open(ctx context.Context, key string, opts *blob.DownloadStreamOptions, n int64) (io.ReadCloser, error) {
	if err := a.check(ctx, key); err != nil {
		return nil, a.failed(ctx, "get", key, err)
	}
	got, err := a.client.NewBlobClient(a.name(key)).DownloadStream(ctx, opts)
	if azureStatus(err) == http.StatusRequestedRangeNotSatisfiable {
		return a.body(ctx, key, http.NoBody, 0, n, nil), nil // the range begins behind the end
	}
	if err != nil {
		if why := a.missing(ctx, err); why != nil {
			err = why
		}
		return nil, a.failed(ctx, "get", key, err)
	}
	a.seen.Store(true)
	length := int64(-1)
	if got.ContentLength != nil {
		length = *got.ContentLength
	}
	return a.body(ctx, key, got.Body, length, n, got.ContentMD5), nil
}

func (a *azure) body(ctx context.Context, key string, r io.ReadCloser, length, need int64, sum []byte) *azureBody {
	b := &azureBody{ctx: ctx, a: a, key: key, r: r, left: length, need: need}
	if len(sum) == md5.Size {
		b.want, b.sum = sum, md5.New()
	}
	return b
}

// azureBody is the content of an object, or of a range of one, as it comes.
type azureBody struct {
	ctx  context.Context
	a    *azure
	key  string
	r    io.ReadCloser
	left int64 // bytes that the answer announced and that have not come; negative: none were announced
	need int64 // bytes that must come before the end
	want []byte
	sum  hash.Hash // nil where there is nothing to compare with
}

var errBroken = errors.New("the connection broke in the middle of the content")

func (b *azureBody) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, b.a.failed(b.ctx, "get", b.key, b.ctx.Err())
	}
	n, err := b.r.Read(p)
	if b.sum != nil {
		b.sum.Write(p[:n])
	}
	b.need -= int64(n)
	if b.left >= 0 {
		b.left -= int64(n)
	}
	if err == nil {
		return n, nil
	}
	switch {
	case err == io.EOF && b.left <= 0:
		if err = b.whole(); err == io.EOF {
			return n, err
		}
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		err = MarkTemporary(errBroken) // and nothing that could be taken for a short object
	}
	return n, b.a.failed(b.ctx, "get", b.key, err)
}

// whole returns io.EOF if what came is what was asked for. Content that differs from its checksum is not worth another
// try here: it was handed on already.
func (b *azureBody) whole() error {
	if b.sum != nil && string(b.sum.Sum(nil)) != string(b.want) {
		return errors.New("the content does not match its MD5: it was damaged on the way or in the store")
	}
	if b.need > 0 {
		return io.ErrUnexpectedEOF
	}
	return io.EOF
}

func (b *azureBody) Close() error { return b.r.Close() }
