package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const (
	// s3Chunk is the size of a buffer, and of the first parts of a large object. The least that S3 takes is 5 MiB.
	s3Chunk = 8 << 20
	// s3Buffers is how many of them a Create holds: one is filled while the others are on their way. What fits into all
	// of them goes in one request, so that no segment of WAL needs more.
	s3Buffers = 3
	// s3First is what a Create begins with, since most objects are small.
	s3First = 64 << 10
	// s3MaxParts is how many parts an object can have.
	s3MaxParts = 10_000
	// s3Settle is how long it may take to find out what became of a request, or to take an upload back; s3SettleEnded the
	// same where ctx has ended and somebody waits for that.
	s3Settle      = 20 * time.Second
	s3SettleEnded = 5 * time.Second
	// s3Mark names the metadata in which an object holds what only its Create knows.
	s3Mark = "pitr-create"
)

// partChunks is the size of part n, counted from 1, in chunks. An object may be as large as 5 TiB and have 10,000 parts, and
// nobody knows how long it will be. So parts grow with the square of their number: up to 5 GiB they are one chunk each, up
// to 40 GiB less than 10; only an object of terabytes needs parts, and so memory, of a gigabyte and more.
func partChunks(n int) int { return 1 + n*n/500_000 }

// s3Create is one Create.
type s3Create struct {
	*s3Bucket
	key  string
	mark string // tells this object from those that others may create under the key
}

func (s *s3Bucket) Create(ctx context.Context, key string, r io.Reader) error {
	c := &s3Create{s3Bucket: s, key: key, mark: rand.Text()}
	if err := c.create(ctx, r); err != nil {
		return s.failed("create", key, err)
	}
	return nil
}

func (c *s3Create) create(ctx context.Context, r io.Reader) error {
	if err := c.check(ctx, c.key); err != nil {
		return err
	}
	first := make([]byte, s3First)
	n, end, err := fill(ctx, r, first)
	if err != nil {
		return err
	}
	if end {
		return c.put(ctx, &s3Body{chunks: [][]byte{first[:n]}})
	}
	memory := &s3Memory{pool: &c.chunks, free: make(chan *[]byte, partChunks(s3MaxParts)+s3Buffers)}
	defer memory.release()
	// The first chunks, after which it is known whether the object is small.
	var head [][]byte
	for !end && len(head) < s3Buffers {
		chunk, err := memory.take(ctx, s3Buffers)
		if err != nil {
			return err
		}
		have := 0
		if len(head) == 0 {
			have = copy(*chunk, first)
		}
		if n, end, err = fill(ctx, r, (*chunk)[have:]); err != nil {
			return err
		}
		head = append(head, (*chunk)[:have+n])
	}
	if end {
		return c.put(ctx, &s3Body{chunks: head})
	}
	return c.multipart(ctx, r, head, memory)
}

// fill reads until buf is full, r ends, or ctx does.
func fill(ctx context.Context, r io.Reader, buf []byte) (n int, end bool, err error) {
	for empty := 0; n < len(buf); {
		if err := ctx.Err(); err != nil {
			return n, false, err
		}
		m, err := r.Read(buf[n:min(len(buf), n+copyChunk)])
		n += m
		if err == io.EOF {
			return n, true, ctx.Err()
		}
		if err != nil {
			return n, false, fmt.Errorf("read the content: %w", err)
		}
		if empty++; m > 0 {
			empty = 0
		}
		if empty == 100 {
			return n, false, fmt.Errorf("read the content: %w", io.ErrNoProgress)
		}
	}
	return n, false, ctx.Err()
}

// put stores the object by one request.
func (c *s3Create) put(ctx context.Context, body *s3Body) error {
	for try := 1; ; try++ {
		condition, err := c.condition(ctx)
		if err != nil {
			return err
		}
		body.at = 0
		in := &s3.PutObjectInput{
			Bucket: &c.bucket, Key: c.name(c.key), IfNoneMatch: condition, Metadata: map[string]string{s3Mark: c.mark},
			Body: body, ContentLength: aws.Int64(body.size()), ContentType: aws.String("application/octet-stream"), ChecksumCRC32C: crc32c(body.sum(0)),
			ServerSideEncryption: types.ServerSideEncryption(c.config.SSE), SSEKMSKeyId: optional(c.config.KMSKeyID),
			StorageClass: types.StorageClass(c.config.StorageClass), Tagging: c.config.tagging(),
		}
		if mode, until := c.config.lock(); mode != "" {
			in.ObjectLockMode, in.ObjectLockRetainUntilDate = types.ObjectLockMode(mode), &until
		}
		_, err = c.client.PutObject(ctx, in)
		if condition != nil && c.unconditional(err) || try < s3Races && c.raced(ctx, err) {
			continue
		}
		return c.settle(ctx, err)
	}
}

// s3Races is how often a Create begins again when deletions came in between.
const s3Races = 10

// raced says whether a store on a file system, such as versitygw, failed because a deletion removed the directory that the
// object was to lie in: it says that the key is a directory, and it is not.
func (c *s3Create) raced(ctx context.Context, err error) bool {
	if _, code := s3Answer(err); code != s3IsDirectory {
		return false
	}
	none := true
	listErr := c.list(ctx, c.key+"/", "", func(Object) bool { none = false; return false })
	return none && listErr == nil
}

// condition is what keeps a write from replacing an object. For a store that knows no such thing, the key is looked at
// first, which is all that can be done: see Capabilities.
func (c *s3Create) condition(ctx context.Context) (*string, error) {
	if c.exclusive.Load() != exclusiveNo {
		return aws.String("*"), nil
	}
	return nil, c.vacant(ctx)
}

// vacant returns ErrExists if the key is taken.
func (c *s3Create) vacant(ctx context.Context) error {
	switch _, err := c.head(ctx, c.key); {
	case err == nil:
		return ErrExists
	case errors.Is(err, ErrNotFound):
		return nil
	default:
		return err
	}
}

// unconditional says whether a conditional write failed because the store knows no conditions, and remembers that.
func (c *s3Create) unconditional(err error) bool {
	if status, _ := s3Answer(err); status != http.StatusNotImplemented {
		return false
	}
	return c.exclusive.CompareAndSwap(exclusiveUntried, exclusiveNo) || c.exclusive.Load() == exclusiveNo
}

// settle says what a write that ended in err has done. Servers that refuse before they have read the body, and close the
// connection, look like a broken network; and an answer can be lost. Then the object that is there tells whose it is.
func (c *s3Create) settle(ctx context.Context, err error) error {
	status, code := s3Answer(err)
	switch {
	case err == nil:
		c.seen.Store(true)
		c.exclusive.CompareAndSwap(exclusiveUntried, exclusiveYes)
		return nil
	case status == http.StatusPreconditionFailed:
		c.seen.Store(true)
		return ErrExists
	}
	failure := c.explain(ctx, s3Put, err)
	switch {
	case status < 300, status == http.StatusInternalServerError, status == http.StatusBadGateway, status == http.StatusGatewayTimeout:
	case code == "ConditionalRequestConflict", code == "OperationAborted", code == "RequestTimeout", code == "NoSuchUpload":
	default:
		return failure
	}
	if status < 300 && !errors.Is(failure, ctx.Err()) && !Temporary(failure) {
		return failure // nothing was sent
	}
	ctx, cancel := s3Afterwards(ctx)
	defer cancel()
	there, headErr := c.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &c.bucket, Key: c.name(c.key)})
	switch {
	case headErr != nil:
		return failure
	case there.Metadata[s3Mark] == c.mark:
		return nil
	}
	return ErrExists
}

// s3Afterwards is the context for what must be done though ctx may have ended.
func s3Afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	most := s3Settle
	if ctx.Err() != nil {
		most = s3SettleEnded
	}
	return context.WithTimeout(context.WithoutCancel(ctx), most)
}

// multipart stores the object by an upload in parts, of which the first are read already.
func (c *s3Create) multipart(ctx context.Context, r io.Reader, head [][]byte, memory *s3Memory) error {
	// Knowing early saves the sending; what counts is the completion.
	if err := c.vacant(ctx); err != nil {
		return err
	}
	in := &s3.CreateMultipartUploadInput{
		Bucket: &c.bucket, Key: c.name(c.key), Metadata: map[string]string{s3Mark: c.mark}, ContentType: aws.String("application/octet-stream"),
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c, ChecksumType: types.ChecksumTypeFullObject,
		ServerSideEncryption: types.ServerSideEncryption(c.config.SSE), SSEKMSKeyId: optional(c.config.KMSKeyID),
		StorageClass: types.StorageClass(c.config.StorageClass), Tagging: c.config.tagging(),
	}
	if mode, until := c.config.lock(); mode != "" {
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = types.ObjectLockMode(mode), &until
	}
	upload, err := c.client.CreateMultipartUpload(ctx, in)
	if err != nil {
		return c.explain(ctx, s3Put, err)
	}
	c.seen.Store(true)
	err = c.parts(ctx, upload.UploadId, r, head, memory)
	if err != nil {
		// What can't be taken back now, Sweep will: the error that led here says more.
		ctx, cancel := s3Afterwards(ctx)
		defer cancel()
		_, _ = c.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &c.bucket, Key: c.name(c.key), UploadId: upload.UploadId})
	}
	return err
}
