package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"pitr/internal/hint"
	"pitr/storage"
)

// Format is the version of the repository format that this package writes, and the newest that it
// reads.
const Format = 1

// Facts is what a lineage says of itself: the document under "repo/". When the server's facts
// change, one more document is added; the newest holds.
type Facts struct {
	Format   int       `json:"format"`
	SystemID uint64    `json:"system_identifier,string"`
	Created  time.Time `json:"created"`
	// Cluster is the name its administrator gave it; for people only.
	Cluster string `json:"cluster,omitempty"`
	// Major is PostgreSQL's major version.
	Major int `json:"postgresql"`
	// SegmentSize is wal_segment_size in bytes; BlockSize that of relations.
	SegmentSize int64 `json:"wal_segment_size"`
	BlockSize   int   `json:"block_size"`
	// Encryption is "none": objects are stored as they are.
	Encryption string `json:"encryption"`
}

// sameAs compares what f says of the server.
func (f Facts) sameAs(g Facts) bool {
	g.Created, g.Format, g.Encryption = f.Created, f.Format, f.Encryption
	return f == g
}

// ErrNoRepository reports that a bucket holds nothing of a lineage.
var ErrNoRepository = errors.New("no repository of this cluster")

// Repo is one server lineage in a bucket. It is safe for concurrent use.
type Repo struct {
	bucket storage.Bucket
	base   string
	facts  Facts
}

// Open reads the facts of the lineage; ErrNoRepository where there are none.
func Open(ctx context.Context, b storage.Bucket, systemID uint64) (*Repo, error) {
	r := &Repo{bucket: b, base: strconv.FormatUint(systemID, 10) + "/"}
	found := false
	for o, err := range r.List(ctx, factsPrefix, "") {
		if err != nil {
			return nil, fmt.Errorf("look for the repository in %s: %w", b, err)
		}
		var f Facts
		if err := r.GetDocument(ctx, o.Key, &f); err != nil {
			return nil, fmt.Errorf("open the repository: %w", err)
		}
		if f.Format > Format || f.Encryption != "none" {
			return nil, hint.Wrap(
				fmt.Errorf("open the repository %s: its format is %d (encryption %q), this pitr reads up to %d (without encryption)",
					r.Where(""), f.Format, f.Encryption, Format),
				"use the pitr version that wrote it, or a newer one")
		}
		if f.SystemID != systemID {
			return nil, r.Damaged(o.Key, "it is of system identifier %d", f.SystemID)
		}
		if !found || f.Created.After(r.facts.Created) {
			r.facts, found = f, true
		}
	}
	if !found {
		return nil, hint.Wrap(fmt.Errorf("%w: %s holds nothing of system identifier %d", ErrNoRepository, b, systemID),
			"it is made by the first WAL segment or backup; check `storage.url`, and run `pitr check`")
	}
	return r, nil
}

// Ensure opens the lineage that f describes and adds f where nothing equal is recorded yet.
// Created is set here, from now, and always behind that of the facts before. It may run at the same time on several hosts.
func Ensure(ctx context.Context, b storage.Bucket, f Facts, now time.Time) (*Repo, error) {
	r, err := Open(ctx, b, f.SystemID)
	switch {
	case errors.Is(err, ErrNoRepository):
		r = &Repo{bucket: b, base: strconv.FormatUint(f.SystemID, 10) + "/"}
	case err != nil:
		return nil, err
	default:
		if r.facts.sameAs(f) {
			return r, nil
		}
	}
	f.Format, f.Encryption, f.Created = Format, "none", now.UTC().Truncate(time.Second)
	if before := r.facts.Created; !f.Created.After(before) && !before.IsZero() {
		f.Created = before.Add(time.Second)
	}
	data, err := MarshalDocument(f)
	if err != nil {
		return nil, err
	}
	if err := r.CreateSame(ctx, factsPrefix+DigestOf(data).String(), data); err != nil {
		return nil, fmt.Errorf("create the repository: %w", err)
	}
	r.facts = f
	return r, nil
}

// Systems lists the system identifiers that a bucket holds anything of, in ascending order.
func Systems(ctx context.Context, b storage.Bucket) ([]uint64, error) {
	var ids []uint64
	after := ""
	for {
		next := ""
		for o, err := range b.List(ctx, "", after) {
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", b, err)
			}
			first, _, ok := strings.Cut(o.Key, "/")
			if id, err := strconv.ParseUint(first, 10, 64); ok && err == nil {
				ids = append(ids, id)
			}
			// Go on behind everything of this component ('0' follows '/').
			next = first + "0"
			break
		}
		if next == "" {
			slices.Sort(ids)
			return slices.Compact(ids), nil
		}
		after = next
	}
}

// Facts returns what the lineage says of itself.
func (r *Repo) Facts() Facts { return r.facts }

// SystemID is the lineage's system identifier.
func (r *Repo) SystemID() uint64 { return r.facts.SystemID }

// Capabilities are the bucket's.
func (r *Repo) Capabilities() storage.Capabilities { return r.bucket.Capabilities() }

// Where is the address of key for messages.
func (r *Repo) Where(key string) string {
	return strings.TrimSuffix(r.bucket.String(), "/") + "/" + r.base + key
}

// The operations of storage.Bucket, on keys below the lineage, with the same promises.

// Create stores a new object.
func (r *Repo) Create(ctx context.Context, key string, body io.Reader) error {
	return r.bucket.Create(ctx, r.base+key, body)
}

// Get reads an object.
func (r *Repo) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	return r.bucket.Get(ctx, r.base+key)
}

// GetRange reads n bytes of an object from off on.
func (r *Repo) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	return r.bucket.GetRange(ctx, r.base+key, off, n)
}

// ReadRange fills buf with the bytes of an object from off on.
func (r *Repo) ReadRange(ctx context.Context, key string, off int64, buf []byte) error {
	body, err := r.GetRange(ctx, key, off, int64(len(buf)))
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.ReadFull(body, buf); err != nil {
		return fmt.Errorf("read %s: %w", r.Where(key), err)
	}
	return nil
}

// Stat tells an object's size and age.
func (r *Repo) Stat(ctx context.Context, key string) (storage.Object, error) {
	o, err := r.bucket.Stat(ctx, r.base+key)
	o.Key = strings.TrimPrefix(o.Key, r.base)
	return o, err
}

// List gives the objects whose keys begin with prefix and follow after, in key order.
func (r *Repo) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		if after != "" {
			after = r.base + after
		}
		for o, err := range r.bucket.List(ctx, r.base+prefix, after) {
			o.Key = strings.TrimPrefix(o.Key, r.base)
			if !yield(o, err) || err != nil {
				return
			}
		}
	}
}

// Settle makes an object durable that was found and not created here: see storage.Settle.
func (r *Repo) Settle(ctx context.Context, key string) error {
	return storage.Settle(ctx, r.bucket, r.base+key)
}

// Delete removes objects; absent ones are ignored.
func (r *Repo) Delete(ctx context.Context, keys ...string) error {
	full := make([]string, len(keys))
	for i, k := range keys {
		full[i] = r.base + k
	}
	return r.bucket.Delete(ctx, full...)
}
