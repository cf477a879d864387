package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// s3Bucket is a bucket in Amazon S3 or in what speaks its language. The object KEY is the object PREFIX/KEY there.
//
// An object appears by one request: a PUT, or the completion of a multipart upload, either of them conditional on the key
// being free. In a bucket with versions, Delete leaves the versions to the bucket's own life cycle rules.
type s3Bucket struct {
	client      *s3.Client
	slow        aws.HTTPClient // for requests that a store may work on for minutes
	credentials *s3Credentials
	bucket      string
	prefix      string // ends in "/" unless empty
	region      string
	config      S3Config

	seen atomic.Bool // the bucket has been there

	// exclusive: whether the store knows conditional writes. One that does not says so at the first Create.
	exclusive atomic.Int32

	chunks sync.Pool // of *[]byte, s3Chunk long
}

func openS3(ctx context.Context, u *url.URL, c S3Config) (Bucket, error) {
	s := &s3Bucket{
		bucket: u.Host,
		config: c,
		chunks: sync.Pool{New: func() any { b := make([]byte, s3Chunk); return &b }},
	}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		s.prefix = prefix + "/"
	}
	loaded, err := c.loadAWS(ctx)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s, err)
	}
	s.region = loaded.Region
	cache, ok := loaded.Credentials.(*aws.CredentialsCache)
	if !ok {
		cache = aws.NewCredentialsCache(loaded.Credentials)
	}
	s.credentials = &s3Credentials{cache: cache}
	s.slow = loaded.HTTPClient
	if client, ok := loaded.HTTPClient.(*awshttp.BuildableClient); ok {
		s.slow = client.WithTransportOptions(s3Transport(s3SlowStall))
	}
	s.client = s3.NewFromConfig(loaded, func(o *s3.Options) {
		o.Credentials = s.credentials
		o.HTTPSignerV4 = new(s3Signer)
		o.Retryer = aws.NopRetryer{} // see Retry
		o.UsePathStyle = c.PathStyle
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
		// A wrong clock is reported, not worked around: what the server writes into its WAL comes from the same one.
		o.DisableClockSkewCorrection = true
		// Waiting for a permission to send costs a second on each store that never gives one.
		o.ContinueHeaderThresholdBytes = -1
		o.DisableLogOutputChecksumValidationSkipped = true
	})
	return s, nil
}

func (s *s3Bucket) String() string {
	return (&url.URL{Scheme: "s3", Host: s.bucket, Path: strings.TrimSuffix("/"+s.prefix, "/")}).String()
}

// Capabilities: Amazon S3 lists what was written at once since December 2020, and so do the others that are known.
func (s *s3Bucket) Capabilities() Capabilities {
	return Capabilities{CreateIfAbsent: s.exclusive.Load() != exclusiveNo, StrongList: true}
}

// failed puts operation and key before an error.
func (s *s3Bucket) failed(op, key string, err error) error {
	if key == "" {
		return fmt.Errorf("%s %s: %w", op, s, err)
	}
	return fmt.Errorf("%s %s in %s: %w", op, key, s, err)
}

func (s *s3Bucket) check(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return CheckKey(key)
}

// name is the name of the object in the bucket.
func (s *s3Bucket) name(key string) *string { return aws.String(s.prefix + key) }

func (s *s3Bucket) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	r, err := s.get(ctx, key)
	if err != nil {
		return nil, s.failed("get", key, err)
	}
	return r, nil
}

func (s *s3Bucket) get(ctx context.Context, key string) (io.ReadCloser, error) {
	if err := s.check(ctx, key); err != nil {
		return nil, err
	}
	// The SDK compares the content with the store's checksum, where there is one, and says so at the end.
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: s.name(key), ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		return nil, s.explain(ctx, s3Get, err)
	}
	s.seen.Store(true)
	return &s3Reader{ctx: ctx, s: s, key: key, body: out.Body}, nil
}

func (s *s3Bucket) GetRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := s.getRange(ctx, key, off, n)
	if err != nil {
		return nil, s.failed("get", key, err)
	}
	return r, nil
}

func (s *s3Bucket) getRange(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := s.check(ctx, key); err != nil {
		return nil, err
	}
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("%d bytes from %d: negative", n, off)
	}
	if n == 0 { // which no request can say
		if _, err := s.head(ctx, key); err != nil {
			return nil, err
		}
		return &s3Reader{ctx: ctx, s: s, key: key, body: http.NoBody}, nil
	}
	last := int64(math.MaxInt64)
	if off <= math.MaxInt64-n {
		last = off + n - 1
	}
	out, err := s.client.GetObject(ctx,
		&s3.GetObjectInput{Bucket: &s.bucket, Key: s.name(key), Range: aws.String(fmt.Sprintf("bytes=%d-%d", off, last))},
		func(o *s3.Options) {
			// Some stores send the checksum of the whole object along with a part of it.
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		})
	switch status, code := s3Answer(err); {
	case err == nil:
	case status == http.StatusRequestedRangeNotSatisfiable || code == "InvalidRange":
		s.seen.Store(true)
		return &s3Reader{ctx: ctx, s: s, key: key, body: http.NoBody, need: n}, nil
	default:
		return nil, s.explain(ctx, s3Get, err)
	}
	s.seen.Store(true)
	if from := aws.ToString(out.ContentRange); !strings.HasPrefix(from, fmt.Sprintf("bytes %d-", off)) {
		if aws.ToInt64(out.ContentLength) != 0 {
			out.Body.Close()
			return nil, fmt.Errorf("asked for bytes from %d on, the store sends %q", off, from)
		}
		// An empty object: some stores take every range of it for right.
	}
	return &s3Reader{ctx: ctx, s: s, key: key, body: out.Body, need: n}, nil
}

// s3Reader is an object, or a part of one, on its way.
type s3Reader struct {
	ctx  context.Context
	s    *s3Bucket
	key  string
	body io.ReadCloser
	need int64 // bytes that must come before the end
}

func (r *s3Reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, r.s.failed("get", r.key, err)
	}
	n, err := r.body.Read(p)
	r.need -= int64(n)
	switch {
	case err == io.EOF && r.need > 0:
		return n, r.s.failed("get", r.key, io.ErrUnexpectedEOF)
	case err != nil && err != io.EOF:
		return n, r.s.failed("get", r.key, r.s.explain(r.ctx, s3Get, err))
	}
	return n, err
}

func (r *s3Reader) Close() error { return r.body.Close() }

func (s *s3Bucket) Stat(ctx context.Context, key string) (Object, error) {
	if err := s.check(ctx, key); err != nil {
		return Object{}, s.failed("stat", key, err)
	}
	o, err := s.head(ctx, key)
	if err != nil {
		return Object{}, s.failed("stat", key, err)
	}
	return o, nil
}

// head describes an object. The answer to a HEAD has no body that could say whether it is the object that is missing or
// the bucket, or what is wrong with the key: if it is bad, one byte of the object is asked for instead.
func (s *s3Bucket) head(ctx context.Context, key string) (Object, error) {
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.bucket, Key: s.name(key)})
	if err == nil {
		s.seen.Store(true)
		return Object{key, aws.ToInt64(out.ContentLength), aws.ToTime(out.LastModified)}, nil
	}
	if status, _ := s3Answer(err); status < 300 || status >= 500 {
		return Object{}, s.explain(ctx, s3Get, err)
	}
	got, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: s.name(key), Range: aws.String("bytes=0-0")},
		func(o *s3.Options) { o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired })
	if err != nil {
		return Object{}, s.explain(ctx, s3Get, err)
	}
	defer got.Body.Close()
	s.seen.Store(true)
	size := aws.ToInt64(got.ContentLength)
	if _, total, ok := strings.Cut(aws.ToString(got.ContentRange), "/"); ok {
		if size, err = strconv.ParseInt(total, 10, 64); err != nil {
			return Object{}, fmt.Errorf("the store gives no size: Content-Range %q", aws.ToString(got.ContentRange))
		}
	}
	return Object{key, size, aws.ToTime(got.LastModified)}, nil
}

// s3Batch is how many keys one request can delete, and how many one listing gives.
const s3Batch = 1000

// Delete sends all keys but the last in batches, in which the store keeps no order, and then the last.
func (s *s3Bucket) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := s.check(ctx, key); err != nil {
			return s.failed("delete", key, err)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	last := keys[len(keys)-1]
	batch := make([]types.ObjectIdentifier, 0, min(s3Batch, len(keys)-1))
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := s.deleteBatch(ctx, batch)
		batch = batch[:0]
		return err
	}
	for _, key := range keys[:len(keys)-1] {
		if batch = append(batch, types.ObjectIdentifier{Key: s.name(key)}); len(batch) == s3Batch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return s.deleteOne(ctx, last)
}

func (s *s3Bucket) deleteOne(ctx context.Context, key string) error {
	_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: s.name(key)})
	if err = s.explain(ctx, s3Delete, err); err != nil && !errors.Is(err, ErrNotFound) {
		return s.failed("delete", key, err)
	}
	s.seen.Store(true)
	return nil
}

func (s *s3Bucket) deleteBatch(ctx context.Context, batch []types.ObjectIdentifier) error {
	out, err := s.client.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &s.bucket, Delete: &types.Delete{Objects: batch, Quiet: aws.Bool(true)}})
	if status, _ := s3Answer(err); status == http.StatusNotImplemented || status == http.StatusMethodNotAllowed {
		for _, o := range batch {
			if err := s.deleteOne(ctx, strings.TrimPrefix(*o.Key, s.prefix)); err != nil {
				return err
			}
		}
		return nil
	}
	if err != nil {
		first := strings.TrimPrefix(*batch[0].Key, s.prefix)
		return s.failed("delete", fmt.Sprintf("%s and what follows, %d objects,", first, len(batch)), s.explain(ctx, s3Delete, err))
	}
	s.seen.Store(true)
	for _, e := range out.Errors {
		err := s.judge(ctx, s3Delete, s3Failure{code: aws.ToString(e.Code), message: aws.ToString(e.Message)})
		if errors.Is(err, ErrNotFound) {
			continue
		}
		return s.failed("delete", strings.TrimPrefix(aws.ToString(e.Key), s.prefix), err)
	}
	return nil
}

// Sweep aborts multipart uploads that were begun and never completed: see Sweeper. Their parts cost money, and no listing
// shows them.
func (s *s3Bucket) Sweep(ctx context.Context, olderThan time.Duration) (removed int, err error) {
	limit := time.Now().Add(-olderThan)
	in := &s3.ListMultipartUploadsInput{Bucket: &s.bucket, Prefix: &s.prefix, EncodingType: types.EncodingTypeUrl}
	for {
		out, err := s.client.ListMultipartUploads(ctx, in)
		if err != nil {
			return removed, s.failed("sweep", "", s.explain(ctx, s3Sweep, err))
		}
		s.seen.Store(true)
		for _, u := range out.Uploads {
			name, err := s3Decode(out.EncodingType, aws.ToString(u.Key))
			if err != nil {
				return removed, s.failed("sweep", "", err)
			}
			if !strings.HasPrefix(name, s.prefix) || u.Initiated == nil || u.Initiated.After(limit) {
				continue
			}
			_, err = s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &s.bucket, Key: &name, UploadId: u.UploadId})
			if status, _ := s3Answer(err); status == http.StatusNotFound {
				continue // by somebody else
			}
			if err != nil {
				return removed, s.failed("sweep", strings.TrimPrefix(name, s.prefix), s.explain(ctx, s3Sweep, err))
			}
			removed++
		}
		if !aws.ToBool(out.IsTruncated) {
			return removed, nil
		}
		marker, err := s3Decode(out.EncodingType, aws.ToString(out.NextKeyMarker))
		if err != nil || marker == "" {
			return removed, s.failed("sweep", "", errors.New("the store cuts its listing short and does not say how to go on"))
		}
		in.KeyMarker, in.UploadIdMarker = &marker, out.NextUploadIdMarker
	}
}
