package storage

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"pitr/internal/hint"
)

// azureBatch is how many deletions one request can hold (Blob Batch).
const azureBatch = 256

// The values of azure.startFrom: whether the service can begin a listing in the middle.
const (
	startUntried int32 = iota
	startNo
)

// azureListing is a listing under way. Names in it are those of blobs: with the prefix of the bucket.
type azureListing struct {
	*azure
	prefix, after string
	from          string // where the service was asked to begin; empty: at the prefix
	last          string // the name that came last
}

// List asks for page after page. To begin in the middle the service is told the name to start from, and then no prefix:
// how it understands both together is not documented.
func (a *azure) List(ctx context.Context, prefix, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		l := &azureListing{azure: a, prefix: a.name(prefix), after: a.name(after)}
		if after != "" && strings.HasPrefix(l.after, l.prefix) && a.startFrom.Load() != startNo {
			l.from = azureText(l.after)
		}
		marker := ""
		for {
			page, next, err := l.page(ctx, marker)
			if err == errStartAnew {
				a.startFrom.Store(startNo)
				l.from, l.last, marker = "", "", ""
				continue
			}
			for _, o := range page {
				if ctx.Err() != nil {
					err = ctx.Err()
					break
				}
				if !yield(o, nil) {
					return
				}
			}
			if err != nil {
				yield(Object{}, a.failed(ctx, "list", "", err))
				return
			}
			if next == "" {
				return
			}
			marker = next
		}
	}
}

// errStartAnew says that the service did not begin where it was told to.
var errStartAnew = errors.New("the listing does not begin where it should")

// page gets one page and leaves of it what is wanted. An empty next says that nothing follows; an error, what comes after
// the objects.
func (l *azureListing) page(ctx context.Context, marker string) (page []Object, next string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, "", err
	}
	opts := &container.ListBlobsFlatOptions{}
	if marker != "" {
		opts.Marker = &marker
	}
	if prefix := azureText(l.prefix); l.from != "" {
		opts.StartFrom = &l.from
	} else if prefix != "" {
		opts.Prefix = &prefix
	}
	// A pager for each page: it would keep the page it gave.
	got, err := l.client.NewListBlobsFlatPager(opts).NextPage(ctx)
	if err != nil {
		if l.from != "" && azureStatus(err) == http.StatusBadRequest {
			err = errStartAnew
		}
		return nil, "", err
	}
	l.seen.Store(true)
	if got.NextMarker != nil {
		next = *got.NextMarker
	}
	if got.Segment == nil {
		return nil, next, nil
	}
	page = make([]Object, 0, len(got.Segment.BlobItems))
	for _, b := range got.Segment.BlobItems {
		if b.Name == nil || b.Properties == nil {
			return page, "", errors.New("the listing has a blob without a name or properties")
		}
		name := *b.Name
		switch {
		case l.from != "" && l.last == "" && name < l.from:
			return nil, "", errStartAnew
		case name <= l.last:
			return page, "", hint.Wrap(fmt.Errorf("the container lists %q after %q, which is not the order of bytes", name, l.last),
				"a storage account with a hierarchical namespace does that: use an account without one")
		}
		l.last = name
		if !strings.HasPrefix(name, l.prefix) {
			if name > l.prefix && l.from != "" {
				return page, "", nil
			}
			continue
		}
		key, ok := azureKey(strings.TrimPrefix(name, l.azure.prefix))
		if !ok || name <= l.after {
			continue
		}
		o := Object{Key: key}
		if b.Properties.ContentLength != nil {
			o.Size = *b.Properties.ContentLength
		}
		if b.Properties.LastModified != nil {
			o.Modified = *b.Properties.LastModified
		}
		page = append(page, o)
	}
	return page, next, nil
}

// Delete removes many keys by few requests; of those in one request the order is the service's.
func (a *azure) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := a.check(ctx, key); err != nil {
			return a.failed(ctx, "delete", key, err)
		}
	}
	for len(keys) > 0 {
		n := min(len(keys), azureBatch)
		if n > 1 && a.batch(ctx, keys[:n]) == nil {
			keys = keys[n:]
			continue
		}
		// One by one also after a batch has failed: what it can't do may be possible so, and each error has its key.
		for _, key := range keys[:n] {
			if err := a.delete(ctx, key); err != nil {
				return a.failed(ctx, "delete", key, err)
			}
		}
		keys = keys[n:]
	}
	return nil
}

func (a *azure) delete(ctx context.Context, key string) error {
	_, err := a.client.NewBlobClient(a.name(key)).Delete(ctx, &blob.DeleteOptions{DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)})
	if err != nil {
		if why := a.missing(ctx, err); errors.Is(why, ErrNotFound) {
			return nil
		} else if why != nil {
			return why
		}
		return err
	}
	a.seen.Store(true)
	return nil
}

// batch removes up to azureBatch keys by one request, and returns an error unless all are gone.
func (a *azure) batch(ctx context.Context, keys []string) error {
	client, err := a.login.batchClient(a.client)
	if err != nil {
		return err
	}
	batch, err := client.NewBatchBuilder()
	if err != nil {
		return err
	}
	opts := &container.BatchDeleteOptions{DeleteOptions: blob.DeleteOptions{DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)}}
	asked := make(map[string]struct{}, len(keys))
	for _, key := range keys {
		if _, twice := asked[key]; twice {
			continue
		}
		asked[key] = struct{}{}
		if err := batch.Delete(a.name(key), opts); err != nil {
			return err
		}
	}
	answers, err := a.client.SubmitBatch(ctx, batch, nil)
	if err != nil {
		return err
	}
	for _, answer := range answers.Responses {
		if answer.Error != nil && !bloberror.HasCode(answer.Error, bloberror.BlobNotFound) {
			return answer.Error
		}
	}
	a.seen.Store(true)
	return nil
}
