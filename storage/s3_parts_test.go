package storage

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"testing/iotest"
)

// TestS3PartSizes: the limits are those of "Amazon S3 multipart upload limits" in its user guide.
func TestS3PartSizes(t *testing.T) {
	var size, at10GiB int64
	for n := 1; n <= s3MaxParts; n++ {
		part := int64(partChunks(n)) * s3Chunk
		if part < 5<<20 || part > 5<<30 {
			t.Fatalf("part %d has %d bytes", n, part)
		}
		if size += part; size >= 10<<30 && at10GiB == 0 {
			at10GiB = part
		}
	}
	if size < 5<<40 {
		t.Errorf("all parts together have %d bytes, less than 5 TiB", size)
	}
	if at10GiB > 32<<20 {
		t.Errorf("an object of 10 GiB needs parts of %d bytes", at10GiB)
	}
}

func TestS3Body(t *testing.T) {
	want := []byte("abcdefghij")
	body := &s3Body{chunks: [][]byte{want[:3], {}, want[3:4], want[4:]}}
	if err := iotest.TestReader(body, want); err != nil {
		t.Error(err)
	}
	if body.size() != 10 {
		t.Errorf("size is %d", body.size())
	}
	if whole := (&s3Body{chunks: [][]byte{want}}); whole.sum(0) != body.sum(0) {
		t.Error("the checksum depends on the buffers")
	}
}

// TestS3Memory cuts an object into parts that nobody takes: reading must stop, and go on with what is given back.
func TestS3Memory(t *testing.T) {
	memory := &s3Memory{pool: &sync.Pool{New: func() any { b := make([]byte, 10); return &b }}, free: make(chan *[]byte, 100)}
	content := bytes.Repeat([]byte("0123456789"), 20)
	content = append(content, "end"...)
	sent := make(chan *s3Body, 100)
	var got []byte
	var size int64
	done := make(chan error)
	go func() {
		var err error
		size, _, err = cut(context.Background(), bytes.NewReader(content), nil, memory, func(_ int, b *s3Body) { sent <- b })
		close(sent)
		done <- err
	}()
	for body := range sent {
		part, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, part...)
		memory.give(body.chunks)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) || size != int64(len(content)) {
		t.Errorf("%d bytes were sent for %d, or other ones", len(got), len(content))
	}
	if len(memory.all) > s3Buffers {
		t.Errorf("%d buffers were used", len(memory.all))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := cut(ctx, bytes.NewReader(content), nil, memory, func(int, *s3Body) {}); err != context.Canceled {
		t.Errorf("after a cancel: %v", err)
	}
}
