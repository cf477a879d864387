package storage

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/logging"

	"pitr/internal/hint"
)

// S3Config is for s3://BUCKET/PREFIX: Amazon S3 and what speaks its language. What is empty comes from AWS_* and the
// profile; credentials also from a web identity, a container's or an instance's role. Roles are renewed before they expire.
type S3Config struct {
	Endpoint            string `yaml:"endpoint"`               // https://host:port of another store than Amazon's
	Region              string `yaml:"region"`                 // empty, here and in the environment: us-east-1
	PathStyle           bool   `yaml:"path_style"`             // https://endpoint/BUCKET/ instead of https://BUCKET.endpoint/
	AccessKeyID         string `yaml:"access_key_id"`          // goes with SecretAccessKeyFile
	SecretAccessKeyFile string `yaml:"secret_access_key_file"` // read anew every minute, so that a key can be changed
	CAFile              string `yaml:"ca_file"`                // PEM; trusted beside the system's authorities

	// What each new object gets.
	SSE            string            `yaml:"sse"`              // AES256 (SSE-S3), aws:kms or aws:kms:dsse; empty: as the bucket says
	KMSKeyID       string            `yaml:"kms_key_id"`       // for aws:kms; empty: the account's own key for S3
	StorageClass   string            `yaml:"storage_class"`    // STANDARD_IA, ...; empty: STANDARD
	Tags           map[string]string `yaml:"tags"`             // at most 10
	ObjectLock     string            `yaml:"object_lock"`      // governance or compliance; the bucket must have been made for it
	ObjectLockDays int               `yaml:"object_lock_days"` // how long an object can't be removed
}

const s3URLHint = "write s3://BUCKET or s3://BUCKET/PREFIX"

// maxS3Prefix leaves maxKey of the 1,024 bytes that a key in S3 can have, and the "/" between.
const maxS3Prefix = 1024 - maxKey - 1

func checkS3(u *url.URL, c S3Config) error {
	if err := checkS3URL(u); err != nil {
		return err
	}
	return c.validate()
}

func checkS3URL(u *url.URL) error {
	prefix := strings.Trim(u.Path, "/")
	switch {
	case u.User != nil:
		return hint.Wrap(errors.New("url: an s3:// URL names no user"), s3URLHint+"; keys go into s3.access_key_id and s3.secret_access_key_file")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return hint.Wrap(errors.New(`url: "?" or "#" in an s3:// URL`), "write them %%3F and %%23 where they are part of the prefix")
	case u.Opaque != "" || u.Host == "":
		return hint.Wrap(errors.New("url: names no bucket"), s3URLHint)
	case u.Port() != "":
		return hint.Wrap(errors.New("url: an s3:// URL names a bucket, not a host and port"), s3URLHint+"; the host goes into s3.endpoint")
	case len(u.Host) < 3 || len(u.Host) > 255 || strings.ContainsFunc(u.Host, notInBucketName):
		return hint.Wrap(fmt.Errorf("url: no bucket can have the name %q", u.Host), "a bucket's name has at least three of a-z, 0-9, \"-\" and \".\"")
	case prefix == "":
		return nil
	case len(prefix) > maxS3Prefix:
		return fmt.Errorf("url: the prefix is longer than %d bytes", maxS3Prefix)
	}
	if err := CheckKey(prefix); err != nil {
		return fmt.Errorf("url: the prefix: %w", err)
	}
	return nil
}

func notInBucketName(r rune) bool {
	return r >= unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-._", r)
}

func (c S3Config) validate() error {
	if c.Endpoint != "" {
		// The text itself stays out of the error, like a URL's: see parse.
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil ||
			u.RawQuery != "" || u.Fragment != "" {
			return hint.Wrap(errors.New("s3.endpoint: is not the address of a server"), "write https://HOST or https://HOST:PORT")
		}
	}
	switch {
	case c.AccessKeyID != "" && c.SecretAccessKeyFile == "":
		return hint.Wrap(errors.New("s3.secret_access_key_file: is not set, though s3.access_key_id is"),
			"name the file with the secret key, or leave both empty to use AWS_* or the role of this machine")
	case c.AccessKeyID == "" && c.SecretAccessKeyFile != "":
		return hint.Wrap(errors.New("s3.access_key_id: is not set, though s3.secret_access_key_file is"),
			"write the identifier that belongs to the secret key")
	}
	switch c.SSE {
	case "", "AES256", "aws:kms", "aws:kms:dsse":
	default:
		return hint.Wrap(fmt.Errorf("s3.sse: %q is not known", c.SSE), "write AES256, aws:kms or aws:kms:dsse, or leave it empty")
	}
	if c.KMSKeyID != "" && !strings.HasPrefix(c.SSE, "aws:kms") {
		return hint.Wrap(errors.New("s3.kms_key_id: is used only with s3.sse aws:kms"), "set s3.sse to aws:kms")
	}
	switch c.StorageClass {
	case "GLACIER", "DEEP_ARCHIVE":
		return hint.Wrap(fmt.Errorf("s3.storage_class: objects of class %s can't be read back at once", c.StorageClass),
			"use STANDARD_IA or GLACIER_IR, from which a restore can begin at any time")
	}
	if strings.ContainsFunc(c.StorageClass, func(r rune) bool { return r != '_' && (r < 'A' || r > 'Z') && (r < '0' || r > '9') }) {
		return hint.Wrap(fmt.Errorf("s3.storage_class: %q is not the name of one", c.StorageClass), "write it as the store does: STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING, GLACIER_IR")
	}
	if len(c.Tags) > 10 {
		return errors.New("s3.tags: an object can have at most 10")
	}
	for k, v := range c.Tags {
		if k == "" || len(k) > 128 || len(v) > 256 || strings.HasPrefix(k, "aws:") {
			return hint.Wrap(fmt.Errorf("s3.tags: %q can't be one", k), "a name has 1 to 128 characters and does not begin with aws:, a value has at most 256")
		}
	}
	return c.validateLock()
}

func (c S3Config) validateLock() error {
	switch c.ObjectLock {
	case "":
		if c.ObjectLockDays != 0 {
			return hint.Wrap(errors.New("s3.object_lock_days: is used only with s3.object_lock"), "set s3.object_lock to governance or compliance")
		}
	case "governance", "compliance":
		if c.ObjectLockDays < 1 || c.ObjectLockDays > 36500 {
			return hint.Wrap(fmt.Errorf("s3.object_lock_days: %d is not between 1 and 36500", c.ObjectLockDays), "say for how many days nothing may be removed")
		}
	default:
		return hint.Wrap(fmt.Errorf("s3.object_lock: %q is not known", c.ObjectLock), "write governance or compliance, or leave it empty")
	}
	return nil
}

const (
	// s3Dial and s3Handshake are how long it may take to reach the server.
	s3Dial      = 10 * time.Second
	s3Handshake = 10 * time.Second
	// s3Stall is how long a connection may stand still, in the middle of a body or before an answer.
	s3Stall = 60 * time.Second
	// s3SlowStall is the same for requests after which a store may work for minutes before it answers: it puts the parts
	// of a large object together.
	s3SlowStall = 15 * time.Minute
	// s3Idle is how many connections are kept for the next requests: what a restore and the archiver use at once.
	s3Idle = 64
	// s3KeyFor is how long a secret key is used before its file is read again.
	s3KeyFor = time.Minute
)

// loadAWS finds region and credentials. It asks nobody yet.
func (c S3Config) loadAWS(ctx context.Context) (aws.Config, error) {
	client := awshttp.NewBuildableClient()
	if c.CAFile != "" {
		roots, err := readCA(c.CAFile)
		if err != nil {
			return aws.Config{}, fmt.Errorf("storage.s3.ca_file: %w", err)
		}
		client = client.WithTransportOptions(func(tr *http.Transport) { tr.TLSClientConfig.RootCAs = roots })
	}
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithHTTPClient(client.WithTransportOptions(s3Transport(s3Stall))),
		awsconfig.WithLogger(logging.Nop{}), // it would write to stderr
	}
	if c.Region != "" {
		options = append(options, awsconfig.WithRegion(c.Region))
	}
	if c.AccessKeyID != "" {
		options = append(options, awsconfig.WithCredentialsProvider(s3KeyFile{c.AccessKeyID, c.SecretAccessKeyFile}))
	}
	loaded, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return aws.Config{}, hint.Wrap(fmt.Errorf("read the AWS environment: %w", opaque(err)),
			"look at the AWS_* variables of this process, and at the files ~/.aws/config and ~/.aws/credentials of its user")
	}
	loaded.Region = cmp.Or(loaded.Region, "us-east-1")
	return loaded, nil
}

// readCA gives the system's certificate authorities and those in a file.
func readCA(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, err
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, hint.Wrap(fmt.Errorf("%s holds no certificate", path), "it must be in PEM form: -----BEGIN CERTIFICATE-----")
	}
	return roots, nil
}

// s3Transport sets limits to all that can hang, and none to the whole of a request: an object may be large.
func s3Transport(stall time.Duration) func(*http.Transport) {
	dialer := &net.Dialer{Timeout: s3Dial, KeepAlive: 30 * time.Second}
	return func(tr *http.Transport) {
		tr.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return stallingConn{conn, stall}, nil
		}
		tr.TLSHandshakeTimeout = s3Handshake
		tr.ResponseHeaderTimeout = stall
		tr.MaxIdleConns, tr.MaxIdleConnsPerHost = s3Idle, s3Idle
		tr.IdleConnTimeout = 50 * time.Second // below what servers and their proxies usually allow
		tr.DisableCompression = true          // objects are what they are
		tr.ForceAttemptHTTP2 = false          // one connection for all transfers would be slower
		tr.ReadBufferSize, tr.WriteBufferSize = 64<<10, 64<<10
	}
}

// stallingConn fails when nothing moves on it for a while.
type stallingConn struct {
	net.Conn
	stall time.Duration
}

func (c stallingConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write also gives the reader time: the answer to a long body is waited for from its beginning on.
func (c stallingConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// s3KeyFile gives an access key whose secret half is in a file.
type s3KeyFile struct{ id, path string }

func (f s3KeyFile) Retrieve(context.Context) (aws.Credentials, error) {
	secret, err := os.ReadFile(f.path)
	if err != nil {
		return aws.Credentials{}, s3NoCredentials{hint.Wrap(fmt.Errorf("storage.s3.secret_access_key_file: %w", err), "the file must be there, and readable for user %s", whoami())}
	}
	key := strings.TrimSpace(string(secret))
	if key == "" {
		return aws.Credentials{}, s3NoCredentials{hint.Wrap(fmt.Errorf("storage.s3.secret_access_key_file: %s is empty", f.path), "write the secret key into it")}
	}
	return aws.Credentials{
		AccessKeyID: f.id, SecretAccessKey: key, Source: "storage.s3",
		CanExpire: true, Expires: time.Now().Add(s3KeyFor),
	}, nil
}

// s3Signer signs requests. The SDK's signer keeps what it derives from a secret key under the access key's identifier, and
// would sign with the old one for the rest of the day: it is replaced when the secret changes.
type s3Signer struct {
	mu     sync.Mutex
	secret string
	signer *v4.Signer
}

func (s *s3Signer) SignHTTP(ctx context.Context, credentials aws.Credentials, r *http.Request, payloadHash, service, region string, at time.Time, options ...func(*v4.SignerOptions)) error {
	s.mu.Lock()
	if s.signer == nil || s.secret != credentials.SecretAccessKey {
		s.secret = credentials.SecretAccessKey
		// S3 signs paths as they are sent: see "Signature Version 4 signing process" in its documentation.
		s.signer = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	}
	signer := s.signer
	s.mu.Unlock()
	return signer.SignHTTP(ctx, credentials, r, payloadHash, service, region, at, options...)
}
