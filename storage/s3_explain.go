package storage

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"pitr/internal/hint"
)

// s3Action is what a request needs to be allowed.
type s3Action string

const (
	s3Get    s3Action = "s3:GetObject, and s3:ListBucket, without which S3 denies what is not there"
	s3Put    s3Action = "s3:PutObject and s3:AbortMultipartUpload"
	s3List   s3Action = "s3:ListBucket"
	s3Delete s3Action = "s3:DeleteObject"
	s3Sweep  s3Action = "s3:ListBucketMultipartUploads and s3:AbortMultipartUpload"
)

// s3IsDirectory is the code by which versitygw says that an object's name is a directory's.
const s3IsDirectory = "ExistingObjectIsDirectory"

// opaque keeps the text of an error and nothing else. What libraries wrap says too much: a time-out of theirs is not an
// end of our context, and a body that broke off is not an object that was too short.
func opaque(err error) error { return errors.New(err.Error()) }

// s3Failure is a store's refusal.
type s3Failure struct {
	code, message string
	status        int
	request       string // its identifier, for the store's own log
	region        string // where the bucket is
}

func (f s3Failure) Error() string {
	var text strings.Builder
	text.WriteString(f.code)
	if message := strings.Join(strings.Fields(f.message), " "); message != "" && message != f.code {
		fmt.Fprintf(&text, ": %.300s", message)
	}
	switch {
	case f.status != 0 && f.request != "":
		fmt.Fprintf(&text, " (HTTP %d, request %s)", f.status, f.request)
	case f.status != 0:
		fmt.Fprintf(&text, " (HTTP %d)", f.status)
	}
	return text.String()
}

// s3Answer gives HTTP status and S3 code of an answer that is an error, 0 where there was no answer.
func s3Answer(err error) (status int, code string) {
	if response, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		status = response.HTTPStatusCode()
	}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		code = api.ErrorCode()
	}
	return status, code
}

// explain makes of an error of the SDK one of ours: with its meaning, whether it passes, and what can be done about it.
func (s *s3Bucket) explain(ctx context.Context, action s3Action, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if refused, ok := errors.AsType[s3NoCredentials](err); ok {
		return refused.error
	}
	response, answered := errors.AsType[*awshttp.ResponseError](err)
	api, coded := errors.AsType[smithy.APIError](err)
	switch {
	case answered && response.HTTPStatusCode() >= 300, coded:
		f := s3Failure{}
		if coded {
			f.code, f.message = api.ErrorCode(), api.ErrorMessage()
		}
		if answered {
			f.status, f.request = response.HTTPStatusCode(), response.ServiceRequestID()
			if response.Response != nil {
				f.region = response.Response.Header.Get("x-amz-bucket-region")
			}
		}
		if f.code == "" || f.code == "UnknownError" {
			f.code, f.message = "error", http.StatusText(f.status)
		}
		return s.judge(ctx, action, f)
	case strings.HasPrefix(err.Error(), "checksum did not match"):
		// All bytes were handed out already: to go on reading, as Retry does, would find the end and call it right.
		return hint.Wrap(opaque(err), "the object was damaged in the store or on the way; try again, and look at the network if it comes again")
	}
	return s.unreachable(err)
}

// judge says what a refusal means.
func (s *s3Bucket) judge(ctx context.Context, action s3Action, f s3Failure) error {
	switch f.code {
	case "NoSuchKey", "NotFound":
		s.seen.Store(true)
		return ErrNotFound
	case "NoSuchBucket":
		if s.seen.Load() {
			return hint.Wrap(fmt.Errorf("%w: %w", ErrVanished, f), "the bucket %s was there and is gone: find out who removed it", s.bucket)
		}
		return hint.Wrap(f, "create the bucket %s, or correct storage.url, storage.s3.endpoint and the keys, which decide whose buckets are seen", s.bucket)
	case "InvalidAccessKeyId", "XAdminUserNotFound", "InvalidClientTokenId":
		return s.credentials.renewed(ctx, f, "the store does not know the access key: correct storage.s3.access_key_id, or AWS_ACCESS_KEY_ID where that is empty; look also at storage.s3.endpoint")
	case "SignatureDoesNotMatch":
		return s.credentials.renewed(ctx, f, "the secret key does not belong to the access key: correct the file storage.s3.secret_access_key_file, or AWS_SECRET_ACCESS_KEY where that is not set")
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken":
		return s.credentials.renewed(ctx, f, "the temporary credentials have expired: put new ones into the environment, or use a role, which is renewed by itself")
	case "RequestTimeTooSkewed", "RequestExpired", "AccessDeniedClockSkew":
		return hint.Wrap(f, "the clock of this machine (now %s) and the store's are too far apart: set it, and keep it right with NTP", time.Now().UTC().Format(time.RFC3339))
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "MovedPermanently", "TemporaryRedirect", "IllegalLocationConstraintException", "InvalidRegion", "IncorrectEndpoint":
		return s.wrongRegion(f)
	case "AccessDenied", "Forbidden", "AllAccessDisabled", "AccountProblem", "UnauthorizedAccess":
		return s.denied(action, f)
	case s3IsDirectory, "ObjectParentIsFile":
		return fmt.Errorf("%w (%w)", errConflict, f)
	case "InvalidObjectState":
		return hint.Wrap(f, "the object was moved to an archive class: bring it back with S3's RestoreObject, and take the rule out of the bucket's life cycle")
	case "InvalidStorageClass":
		return hint.Wrap(f, "this store has no class %q: correct storage.s3.storage_class", s.config.StorageClass)
	case "BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch":
		return MarkTemporary(hint.Wrap(f, "the content was damaged on the way to the store: if it happens again, look at the network and the memory of this machine"))
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage":
		return hint.Wrap(f, "free space in the store or enlarge it, or shorten backup.retention and run pitr prune")
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled", "BandwidthLimitExceeded", "TooManyRequests", "ServiceUnavailable", "Busy":
		return MarkTemporary(hint.Wrap(f, "the store asks for fewer requests: lower archive.workers and backup.workers if this goes on"))
	case "InternalError", "InternalServerError", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "PriorRequestNotComplete", "NoSuchUpload":
		return MarkTemporary(f)
	}
	switch f.status {
	case http.StatusNotImplemented, http.StatusMethodNotAllowed:
		return hint.Wrap(f, "this store can't do what pitr needs (%s): ask its maker, or choose another one", action)
	case http.StatusInsufficientStorage:
		return hint.Wrap(f, "free space in the store or enlarge it, or shorten backup.retention and run pitr prune")
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusTooEarly:
		return MarkTemporary(f)
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect:
		return s.wrongRegion(f)
	case http.StatusUnauthorized, http.StatusForbidden:
		return s.denied(action, f)
	}
	switch {
	case strings.HasPrefix(f.code, "KMS."):
		return hint.Wrap(f, "the key %q of storage.s3.kms_key_id must exist, be enabled and be in the bucket's region", s.config.KMSKeyID)
	case f.status >= 500:
		return MarkTemporary(f)
	}
	return f
}

func (s *s3Bucket) wrongRegion(f s3Failure) error {
	region := f.region
	if _, said, ok := strings.Cut(f.message, "; expecting "); ok && region == "" {
		region = strings.Trim(said, "'\"")
	}
	if region == "" || region == s.region {
		return hint.Wrap(f, "the bucket %s is not in region %s, or not at this endpoint: correct storage.s3.region and storage.s3.endpoint", s.bucket, s.region)
	}
	return hint.Wrap(f, "the bucket %s is in region %s, not %s: set storage.s3.region to %s", s.bucket, region, s.region, region)
}

func (s *s3Bucket) denied(action s3Action, f s3Failure) error {
	needs := string(action)
	if action == s3Put {
		if len(s.config.Tags) > 0 {
			needs += ", s3:PutObjectTagging"
		}
		if s.config.ObjectLock != "" {
			needs += ", s3:PutObjectRetention"
		}
		if strings.HasPrefix(s.config.SSE, "aws:kms") {
			needs += ", and on the key kms:GenerateDataKey and kms:Decrypt"
		}
	}
	return hint.Wrap(f, "allow this access key on the bucket %s: %s", s.bucket, needs)
}

// unreachable says what a request that got no answer failed of.
func (s *s3Bucket) unreachable(err error) error {
	// What SDK and HTTP client put around an error, the operation and the URL, is said anyway.
	request, sending := errors.AsType[*url.Error](err)
	if sending {
		err = request.Err
	}
	garbled, ok := errors.AsType[*smithy.DeserializationError](err)
	if ok {
		return MarkTemporary(hint.Wrap(fmt.Errorf("the answer can't be understood: %w", opaque(garbled.Err)), "look at what stands between this machine and the store, and at storage.s3.endpoint"))
	}
	plain := opaque(err)
	if wrong, ok := errors.AsType[*net.DNSError](err); ok && wrong.IsNotFound {
		return hint.Wrap(plain, "there is no host %s: correct storage.s3.endpoint or storage.s3.region, or set storage.s3.path_style if the endpoint knows no host names with buckets in them", wrong.Name)
	}
	certificate, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	if untrusted {
		err = certificate.Err
	}
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &authority):
		return hint.Wrap(plain, "put the certificate of the authority that signed the store's one into a file, and name it in storage.s3.ca_file")
	case errors.As(err, &host):
		return hint.Wrap(plain, "the store's certificate is for another name: correct storage.s3.endpoint, or set storage.s3.path_style")
	case errors.As(err, &invalid):
		return hint.Wrap(plain, "the store's certificate must be renewed, or the clock of this machine set")
	case untrusted:
		return plain
	case errors.As(err, &record), strings.Contains(plain.Error(), "server gave HTTP response to HTTPS client"):
		return hint.Wrap(plain, "the server does not speak TLS: write storage.s3.endpoint with http://, if that is meant")
	case sending, broken(err):
		return MarkTemporary(hint.Wrap(plain, "the store can't be reached, or the connection broke: look at the network, and at the host and port of storage.s3.endpoint"))
	}
	return plain
}

// broken says whether a connection broke.
func broken(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe)
}

// s3NoCredentials is why a request could not be signed.
type s3NoCredentials struct{ error }

// s3Credentials keeps the credentials until they expire, or are refused.
type s3Credentials struct {
	cache *aws.CredentialsCache

	mu       sync.Mutex
	last     aws.Credentials // those that were used at last
	replaced time.Time       // when they took the place of others
}

func (c *s3Credentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	got, err := c.cache.Retrieve(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		return got, c.refuse(err)
	}
	if got.AccessKeyID != c.last.AccessKeyID || got.SecretAccessKey != c.last.SecretAccessKey || got.SessionToken != c.last.SessionToken {
		if c.last.HasKeys() {
			c.replaced = time.Now()
		}
		c.last = got
	}
	return got, nil
}

// refuse says why there are no credentials. Where there were some before, whoever gives them may do so again.
func (c *s3Credentials) refuse(err error) error {
	if said, ok := errors.AsType[s3NoCredentials](err); ok {
		return said
	}
	refused := hint.Wrap(fmt.Errorf("no credentials: %w", opaque(err)),
		"set storage.s3.access_key_id and storage.s3.secret_access_key_file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE for this process, or give this machine a role")
	if c.last.HasKeys() {
		refused = MarkTemporary(refused)
	}
	return s3NoCredentials{refused}
}

// s3Fresh is how long after credentials were renewed a refusal may still be of the old ones.
const s3Fresh = time.Minute

// renewed takes refused credentials out of use. If others take their place, or just did, the refusal passes.
func (c *s3Credentials) renewed(ctx context.Context, f s3Failure, advice string) error {
	err := hint.Wrap(f, "%s", advice)
	c.cache.Invalidate()
	if _, retrieveErr := c.Retrieve(ctx); retrieveErr != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.replaced.IsZero() && time.Since(c.replaced) < s3Fresh {
		return MarkTemporary(err)
	}
	return err
}
