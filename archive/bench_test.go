package archive

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// BenchmarkPush archives a segment of 16 MiB to nowhere. BenchmarkPushParts shows what it consists
// of: all that is not compression should take no more than a quarter of it.
func BenchmarkPush(b *testing.B) {
	c := wals(b, 16)
	a := c.archive(b, storagetest.Memory())
	b.SetBytes(16 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Push(context.Background(), c.path(c.segments[0]), c.control.SystemID); err != nil {
			b.Fatal(err)
		}
		if err := a.repo.Delete(context.Background(), keys(b, a.repo, "wal/")...); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPushParts(b *testing.B) {
	c := wals(b, 16)
	name := c.segments[0]
	data := c.read(b, name)
	enc, err := repo.NewEncoder(1)
	if err != nil {
		b.Fatal(err)
	}
	defer enc.Close()
	for part, f := range map[string]func() error{
		"read":     func() error { _, err := os.ReadFile(c.path(name)); return err },
		"digest":   func() error { repo.DigestOf(data); return nil },
		"check":    func() error { repo.CheckOf(data); return nil },
		"pages":    func() error { _, err := wal.CheckSegment(data, wal.Expect{Name: name, SegSize: 16 << 20}); return err },
		"index":    func() error { _, err := wal.BuildIndex(data, 1); return err },
		"compress": func() error { return compressAll(enc, data) },
	} {
		b.Run(part, func(b *testing.B) {
			b.SetBytes(16 << 20)
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func compressAll(enc *repo.Encoder, data []byte) error {
	out := make([]byte, 0, repo.Bound(frameSize))
	for len(data) > 0 {
		n := min(frameSize, len(data))
		if _, err := enc.Append(out, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func BenchmarkPushAlready(b *testing.B) {
	c := wals(b, 16)
	bucket, err := storage.Open(context.Background(), storage.Config{URL: "file://" + filepath.Join(b.TempDir(), "repo")})
	if err != nil {
		b.Fatal(err)
	}
	a := c.archive(b, bucket)
	for b.Loop() {
		if _, err := a.Push(context.Background(), c.path(c.segments[0]), c.control.SystemID); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFetch(b *testing.B) {
	c := wals(b, 16)
	a := c.archive(b, storagetest.Memory())
	c.push(b, a, c.segments[0])
	path := filepath.Join(b.TempDir(), "x")
	b.SetBytes(16 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if err := a.Fetch(context.Background(), c.segments[0], path, FetchOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

var _ io.Reader = (*objectReader)(nil)
