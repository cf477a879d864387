package storage

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"pitr/internal/hint"
)

func (s *s3Bucket) List(ctx context.Context, prefix, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		if err := s.list(ctx, prefix, after, func(o Object) bool { return yield(o, nil) }); err != nil {
			yield(Object{}, s.failed("list", "", err))
		}
	}
}

// list goes through the pages until found wants no more.
func (s *s3Bucket) list(ctx context.Context, prefix, after string, found func(Object) bool) error {
	in := &s3.ListObjectsV2Input{
		Bucket: &s.bucket,
		Prefix: aws.String(s.prefix + sayable(prefix)),
		// XML parsers make line feeds of carriage returns.
		EncodingType: types.EncodingTypeUrl,
		MaxKeys:      aws.Int32(s3Batch),
	}
	if from := sayable(after); from != "" {
		in.StartAfter = aws.String(s.prefix + from)
	}
	last := ""
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		page, err := s.client.ListObjectsV2(ctx, in)
		if err != nil {
			return s.explain(ctx, s3List, err)
		}
		s.seen.Store(true)
		for i := range page.Contents {
			o := &page.Contents[i]
			name, err := s3Decode(page.EncodingType, aws.ToString(o.Key))
			if err != nil {
				return err
			}
			if name <= last {
				return hint.Wrap(fmt.Errorf("%q is listed after %q", name, last),
					"this store does not list in the order of keys, as directory buckets (S3 Express) do not: choose a general purpose bucket")
			}
			last = name
			key, ok := strings.CutPrefix(name, s.prefix)
			if !ok || key <= after || !strings.HasPrefix(key, prefix) || CheckKey(key) != nil {
				continue // what others put there, or before what could be asked for
			}
			if !found(Object{key, aws.ToInt64(o.Size), aws.ToTime(o.LastModified)}) {
				return nil
			}
		}
		if !aws.ToBool(page.IsTruncated) {
			return nil
		}
		if aws.ToString(page.NextContinuationToken) == "" {
			return errors.New("the store cuts its listing short and does not say how to go on")
		}
		in.ContinuationToken, in.StartAfter = page.NextContinuationToken, nil
	}
}

// sayable is the longest beginning of a string that a request can hold.
func sayable(text string) string {
	for i, r := range text {
		if r == 0 || i > maxKey {
			return text[:i]
		}
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(text[i:]); n == 1 {
				return text[:i]
			}
		}
	}
	return text
}

// s3Decode reads a key in a listing as the store says that it wrote it.
func s3Decode(encoding types.EncodingType, name string) (string, error) {
	if encoding != types.EncodingTypeUrl {
		return name, nil
	}
	plain, err := url.QueryUnescape(name)
	if err != nil {
		return "", fmt.Errorf("a key in the listing: %w", err)
	}
	return plain, nil
}
