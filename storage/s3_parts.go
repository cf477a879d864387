package storage

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"
)

// parts sends the parts and completes the upload. The content is read on the calling goroutine alone.
func (c *s3Create) parts(ctx context.Context, upload *string, r io.Reader, head [][]byte, memory *s3Memory) error {
	var mu sync.Mutex
	var done []types.CompletedPart
	group, groupCtx := errgroup.WithContext(ctx)
	send := func(number int, body *s3Body) {
		group.Go(func() error {
			sum := crc32c(body.sum(0))
			out, err := c.client.UploadPart(groupCtx, &s3.UploadPartInput{
				Bucket: &c.bucket, Key: c.name(c.key), UploadId: upload, PartNumber: aws.Int32(int32(number)),
				Body: body, ContentLength: aws.Int64(body.size()), ChecksumCRC32C: sum,
			})
			if err != nil {
				return c.explain(groupCtx, s3Put, err)
			}
			mu.Lock()
			done = append(done, types.CompletedPart{PartNumber: aws.Int32(int32(number)), ETag: out.ETag, ChecksumCRC32C: sum})
			mu.Unlock()
			memory.give(body.chunks)
			return nil
		})
	}
	size, sum, err := cut(groupCtx, r, head, memory, send)
	// A part that failed is the reason why the cutting ended, and not the other way round.
	if failed := group.Wait(); failed != nil && ctx.Err() == nil {
		return failed
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	slices.SortFunc(done, func(a, b types.CompletedPart) int { return int(*a.PartNumber - *b.PartNumber) })
	return c.complete(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &c.bucket, Key: c.name(c.key), UploadId: upload, MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
		ChecksumCRC32C: crc32c(sum), ChecksumType: types.ChecksumTypeFullObject, MpuObjectSize: &size,
	})
}

// complete makes the object of its parts.
func (c *s3Create) complete(ctx context.Context, in *s3.CompleteMultipartUploadInput) error {
	for {
		condition, err := c.condition(ctx)
		if err != nil {
			return err
		}
		in.IfNoneMatch = condition
		_, err = c.client.CompleteMultipartUpload(ctx, in, func(o *s3.Options) { o.HTTPClient = c.slow })
		if condition != nil && c.unconditional(err) {
			continue
		}
		return c.settle(ctx, err)
	}
}

// cut gives what was read already, and then the rest of r, to send in parts that are numbered from 1, and returns the size
// and the CRC-32C of the whole.
func cut(ctx context.Context, r io.Reader, head [][]byte, memory *s3Memory, send func(int, *s3Body)) (size int64, sum uint32, err error) {
	next := func(number int, body *s3Body) {
		size += body.size()
		sum = body.sum(sum)
		send(number, body)
	}
	for i, chunk := range head {
		next(i+1, &s3Body{chunks: [][]byte{chunk}})
	}
	for number, end := len(head)+1, false; !end; number++ {
		body := new(s3Body)
		want := partChunks(number)
		for !end && len(body.chunks) < want {
			chunk, err := memory.take(ctx, max(s3Buffers, want))
			if err != nil {
				return 0, 0, err
			}
			var n int
			if n, end, err = fill(ctx, r, *chunk); err != nil {
				return 0, 0, err
			}
			if n > 0 {
				body.chunks = append(body.chunks, (*chunk)[:n])
			}
		}
		if len(body.chunks) == 0 {
			break
		}
		if number > s3MaxParts {
			return 0, 0, fmt.Errorf("the content is too large for one object: %d bytes, and it goes on", size)
		}
		next(number, body)
	}
	return size, sum, nil
}

// s3Memory is the buffers of one Create. They are taken by one goroutine.
type s3Memory struct {
	pool *sync.Pool
	all  []*[]byte
	free chan *[]byte // large enough for all of them
}

// take gives a buffer; of those that were not given back there are at most so many.
func (m *s3Memory) take(ctx context.Context, most int) (*[]byte, error) {
	select {
	case chunk := <-m.free:
		return chunk, nil
	default:
	}
	if len(m.all) < most {
		chunk := m.pool.Get().(*[]byte)
		m.all = append(m.all, chunk)
		return chunk, nil
	}
	select {
	case chunk := <-m.free:
		return chunk, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// give takes buffers back.
func (m *s3Memory) give(chunks [][]byte) {
	for _, chunk := range chunks {
		whole := chunk[:cap(chunk)]
		m.free <- &whole
	}
}

// release gives all of them to other Creates. Nobody may use one any more.
func (m *s3Memory) release() {
	for _, chunk := range m.all {
		m.pool.Put(chunk)
	}
}

// s3Body is the content of a request, in buffers.
type s3Body struct {
	chunks [][]byte
	at     int64
}

func (b *s3Body) size() (n int64) {
	for _, chunk := range b.chunks {
		n += int64(len(chunk))
	}
	return n
}

// sum goes on with a CRC-32C.
func (b *s3Body) sum(sum uint32) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli) // made once, and not at the start of the program
	for _, chunk := range b.chunks {
		sum = crc32.Update(sum, table, chunk)
	}
	return sum
}

func (b *s3Body) Read(p []byte) (n int, err error) {
	at := b.at
	for _, chunk := range b.chunks {
		if at < int64(len(chunk)) {
			m := copy(p[n:], chunk[at:])
			n += m
			at += int64(m)
		}
		at -= int64(len(chunk))
		if at < 0 {
			break // p is full
		}
	}
	b.at += int64(n)
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (b *s3Body) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.at
	case io.SeekEnd:
		offset += b.size()
	}
	if offset < 0 {
		return 0, errors.New("seek to before the beginning")
	}
	b.at = offset
	return offset, nil
}

// crc32c writes a CRC-32C as S3 wants it: big-endian, in base64.
func crc32c(sum uint32) *string {
	return aws.String(base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum)))
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// tagging writes the tags as a header.
func (c S3Config) tagging() *string {
	tags := url.Values{}
	for k, v := range c.Tags {
		tags.Set(k, v)
	}
	return optional(tags.Encode())
}

// lock says until when a new object can't be removed; mode is empty where it can.
func (c S3Config) lock() (mode string, until time.Time) {
	return strings.ToUpper(c.ObjectLock), time.Now().AddDate(0, 0, c.ObjectLockDays)
}
