package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pitr/internal/hint"
	"pitr/storage"
	"pitr/storage/storagetest/s3server"
)

// s3Proxy is a proxy in front of a server.
type s3Proxy struct {
	URL     string
	forward *httputil.ReverseProxy

	// on may answer a request itself: then it returns true. answer may change what the server says.
	mu     sync.Mutex
	on     func(http.ResponseWriter, *http.Request) bool
	answer func(*http.Response) error
}

func (p *s3Proxy) set(on func(http.ResponseWriter, *http.Request) bool, answer func(*http.Response) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.on, p.answer = on, answer
}

func (p *s3Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	on := p.on
	p.mu.Unlock()
	if on == nil || !on(w, r) {
		p.forward.ServeHTTP(w, r)
	}
}

func newS3Proxy(t *testing.T, server *s3server.Server) *s3Proxy {
	to, err := url.Parse(server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	p := &s3Proxy{}
	p.forward = &httputil.ReverseProxy{
		// The name of the host is signed: it stays.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.Scheme, to.Host, r.In.Host
		},
		ModifyResponse: func(r *http.Response) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.answer == nil {
				return nil
			}
			return p.answer(r)
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	return p
}

// through starts a proxy, and opens a bucket of its own through it.
func through(t *testing.T, server *s3server.Server, bucket string) (*s3Proxy, storage.Config, storage.Bucket) {
	t.Helper()
	p := newS3Proxy(t, server)
	front := httptest.NewServer(p)
	t.Cleanup(front.Close)
	c := server.Bucket(t, bucket, "pre/fix")
	c.S3.Endpoint = front.URL
	return p, c, openBucket(t, c)
}

// refuse answers as S3 does.
func refuse(status int, code, message string, header ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		io.Copy(io.Discard, r.Body)
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>%s</Message></Error>`, code, message)
		}
		return true
	}
}

// cutOff closes the connection without an answer.
func cutOff(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }

// operations are all there are, on one key.
func operations(b storage.Bucket) map[string]func(context.Context) error {
	read := func(r io.ReadCloser, err error) error {
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.ReadAll(r)
		return err
	}
	return map[string]func(context.Context) error{
		"create":       func(ctx context.Context) error { return b.Create(ctx, "k/ey", strings.NewReader("x")) },
		"create large": func(ctx context.Context) error { return b.Create(ctx, "k/ey", io.LimitReader(zeros{}, 30<<20)) },
		"get":          func(ctx context.Context) error { return read(b.Get(ctx, "k/ey")) },
		"range":        func(ctx context.Context) error { return read(b.GetRange(ctx, "k/ey", 0, 1)) },
		"empty range":  func(ctx context.Context) error { return read(b.GetRange(ctx, "k/ey", 0, 0)) },
		"stat":         func(ctx context.Context) error { _, err := b.Stat(ctx, "k/ey"); return err },
		"delete":       func(ctx context.Context) error { return b.Delete(ctx, "k/ey") },
		"delete two":   func(ctx context.Context) error { return b.Delete(ctx, "k/ey", "k/ey2") },
		"sweep":        func(ctx context.Context) error { _, err := storage.Sweep(ctx, b, time.Hour); return err },
		"list": func(ctx context.Context) error {
			for _, err := range b.List(ctx, "k/ey", "") {
				return err
			}
			return nil
		},
	}
}

func TestS3Errors(t *testing.T) {
	server := s3server.Start(t)
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, []byte("VERYSECRET"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		change    func(*storage.Config)
		answer    func(http.ResponseWriter, *http.Request) bool // nil: the real server's
		advice    string
		temporary bool
	}{
		{"wrong secret key", func(c *storage.Config) { c.S3.SecretAccessKeyFile = wrong }, nil, "storage.s3.secret_access_key_file", false},
		{"unknown access key", func(c *storage.Config) { c.S3.AccessKeyID = "nobody" }, nil, "storage.s3.access_key_id", false},
		{"no such bucket", func(c *storage.Config) { c.URL = "s3://nonesuch/pre/fix" }, nil, "create the bucket nonesuch", false},
		{"wrong region", func(c *storage.Config) { c.S3.Region = "eu-north-1" }, nil, "set storage.s3.region to us-east-1", false},
		{"no secret", func(c *storage.Config) { c.S3.SecretAccessKeyFile = wrong + "none" }, nil, "the file must be there", false},
		{"nobody listens", func(c *storage.Config) { c.S3.Endpoint = "http://127.0.0.1:1" }, nil, "the store can't be reached", true},
		{"no such host", func(c *storage.Config) { c.S3.Endpoint = "http://none.invalid" }, nil, "storage.s3.endpoint", false},
		{"no TLS", func(c *storage.Config) { c.S3.Endpoint = strings.Replace(c.S3.Endpoint, "http:", "https:", 1) }, nil, "does not speak TLS", false},
		{"region told by a header", nil, refuse(301, "PermanentRedirect", "elsewhere", "x-amz-bucket-region", "ap-south-1"), "set storage.s3.region to ap-south-1", false},
		{"clock", nil, refuse(403, "RequestTimeTooSkewed", "The difference is too large"), "the clock of this machine", false},
		{"denied", nil, refuse(403, "AccessDenied", "Access Denied"), "allow this access key on the bucket", false},
		{"expired", nil, refuse(400, "ExpiredToken", "The provided token has expired"), "temporary credentials have expired", false},
		{"slow down", nil, refuse(503, "SlowDown", "Please reduce your request rate"), "lower archive.workers", true},
		{"too many requests", nil, refuse(429, "", ""), "", true},
		{"internal error", nil, refuse(500, "InternalError", "We encountered an internal error"), "", true},
		{"bad gateway", nil, refuse(502, "", ""), "", true},
		{"full", nil, refuse(507, "XMinioStorageFull", "full"), "free space", false},
		{"not implemented", nil, refuse(501, "NotImplemented", "no"), "this store can't", false},
		{"teapot", nil, refuse(418, "Teapot", "short and stout"), "", false},
		{"broken connection", nil, cutOff, "the connection broke", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, config, _ := through(t, server, "errors")
			if c.change != nil {
				c.change(&config)
			}
			b := openBucket(t, config)
			p.set(c.answer, nil)
			for name, do := range operations(b) {
				err := do(t.Context())
				switch {
				case err == nil:
					t.Errorf("%s: no error", name)
					continue
				case errors.Is(err, storage.ErrNotFound), errors.Is(err, storage.ErrExists), errors.Is(err, storage.ErrVanished):
					t.Errorf("%s: %v, which says something else", name, err)
				case !strings.Contains(err.Error(), b.String()):
					t.Errorf("%s: %v does not name the bucket", name, err)
				case name != "list" && name != "sweep" && !strings.Contains(err.Error(), "k/ey"):
					t.Errorf("%s: %v does not name the key", name, err)
				case storage.Temporary(err) != c.temporary:
					t.Errorf("%s: temporary is %v: %v", name, !c.temporary, err)
				case !strings.Contains(hint.Of(err), c.advice):
					t.Errorf("%s: the hint to %v is %q, want %q", name, err, hint.Of(err), c.advice)
				}
				for _, secret := range []string{"testsk123456", "VERYSECRET"} {
					if strings.Contains(err.Error()+hint.Of(err), secret) {
						t.Errorf("%s: a secret is in the text", name)
					}
				}
				if name == "get" {
					t.Logf("%v\nHINT: %s", err, hint.Of(err))
				}
			}
		})
	}
}

func TestS3Vanishes(t *testing.T) {
	server := s3server.Start(t)
	b := openBucket(t, server.Bucket(t, "vanishing", ""))
	create(t, b, "x", "x")
	if err := os.RemoveAll(filepath.Join(server.Data, "vanishing")); err != nil {
		t.Fatal(err)
	}
	for name, do := range operations(b) {
		if err := do(t.Context()); !errors.Is(err, storage.ErrVanished) || errors.Is(err, storage.ErrNotFound) || storage.Temporary(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestS3AnswerLost: what became of a Create whose answer was lost, the object itself tells.
func TestS3AnswerLost(t *testing.T) {
	server := s3server.Start(t)
	p, _, b := through(t, server, "lost")
	lose := func(r *http.Response) error {
		if r.Request.Method == http.MethodPut && r.Request.URL.Query().Get("partNumber") == "" || r.Request.URL.Query().Get("uploadId") != "" && r.Request.Method == http.MethodPost {
			return errors.New("lost")
		}
		return nil
	}
	small := func() io.Reader { return strings.NewReader("content") }
	large := func() io.Reader { return io.LimitReader(zeros{}, 30<<20) }
	for name, content := range map[string]func() io.Reader{"small": small, "large": large} {
		p.set(nil, lose)
		if err := b.Create(t.Context(), name, content()); err != nil {
			t.Errorf("%s: stored, and the answer lost: %v", name, err)
		}
		// The same content from somebody else is somebody else's.
		if err := b.Create(t.Context(), name, content()); !errors.Is(err, storage.ErrExists) {
			t.Errorf("%s: refused, and the answer lost: %v", name, err)
		}
		p.set(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				cutOff(w, r)
			}
			return false
		}, nil)
		err := b.Create(t.Context(), name+"2", content())
		if !storage.Temporary(err) || errors.Is(err, storage.ErrExists) {
			t.Errorf("%s: not stored, and the connection broken: %v", name, err)
		}
		p.set(nil, nil)
		if _, err := b.Stat(t.Context(), name+"2"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left := server.Uploads(t, "lost"); len(left) > 0 {
		t.Errorf("uploads are left: %q", left)
	}
}

// TestS3RefusedWhileSending: versitygw refuses before it has read the body and closes the connection, which many losers of a
// race see as a broken one.
func TestS3RefusedWhileSending(t *testing.T) {
	server := s3server.Start(t)
	b := openBucket(t, server.Bucket(t, "refused", ""))
	content := make([]byte, 1<<20)
	create(t, b, "key", "first")
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for range 20 {
				if err := b.Create(t.Context(), "key", bytes.NewReader(content)); !errors.Is(err, storage.ErrExists) {
					t.Errorf("a loser's error is %v", err)
				}
			}
		})
	}
	group.Wait()
	if got, err := read(b, "key"); got != "first" || err != nil {
		t.Errorf("the object holds %d bytes, %v", len(got), err)
	}
}

// TestS3WithoutConditions: some stores answer 501 to a conditional write.
func TestS3WithoutConditions(t *testing.T) {
	server := s3server.Start(t)
	p, _, b := through(t, server, "unconditional")
	p.set(func(w http.ResponseWriter, r *http.Request) bool {
		return r.Header.Get("If-None-Match") != "" && refuse(501, "NotImplemented", "no conditions")(w, r)
	}, nil)
	if !b.Capabilities().CreateIfAbsent {
		t.Error("nothing was tried yet")
	}
	create(t, b, "small", "x")
	if err := b.Create(t.Context(), "large", io.LimitReader(zeros{}, 30<<20)); err != nil {
		t.Fatal(err)
	}
	if b.Capabilities().CreateIfAbsent {
		t.Error("the store still promises what it can't")
	}
	for _, key := range []string{"small", "large"} {
		if err := b.Create(t.Context(), key, strings.NewReader("y")); !errors.Is(err, storage.ErrExists) {
			t.Errorf("%s: %v", key, err)
		}
	}
	wantKeys(t, b, "large", "small")
}

func TestS3DamagedOnTheWay(t *testing.T) {
	server := s3server.Start(t)
	p, _, b := through(t, server, "damaged")
	content := strings.Repeat("0123456789", 3_000_000) // in parts
	for key, content := range map[string]string{"small": content[:1000], "large": content} {
		create(t, b, key, content)

		p.set(nil, func(r *http.Response) error {
			if r.Request.Method == http.MethodGet {
				r.Body = struct {
					io.Reader
					io.Closer
				}{io.MultiReader(strings.NewReader("X"), skip(r.Body, 1)), r.Body}
			}
			return nil
		})
		_, err := read(b, key)
		if err == nil || storage.Temporary(err) || !strings.Contains(hint.Of(err), "damaged") {
			t.Errorf("%s: a wrong byte: %v", key, err)
		}
		if _, err := read(storage.Retry(b, quick), key); err == nil {
			t.Errorf("%s: a wrong byte, read again from the end: no error", key)
		}

		var cuts atomic.Int32
		short := func(r *http.Response) error {
			if r.Request.Method == http.MethodGet && cuts.Add(1)%2 == 1 {
				r.Body = struct {
					io.Reader
					io.Closer
				}{io.LimitReader(r.Body, 500), r.Body}
			}
			return nil
		}
		p.set(nil, short)
		if got, err := read(b, key); !storage.Temporary(err) || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: cut off after %d bytes: %v", key, len(got), err)
		}
		cuts.Store(0)
		if got, err := read(storage.Retry(b, quick), key); err != nil || got != content {
			t.Errorf("%s: cut off and read on: %d bytes, %v", key, len(got), err)
		}
		p.set(nil, nil)
	}
	// What is damaged on the way up is refused by the server.
	p.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(strings.NewReader("X"), skip(r.Body, 1)), r.Body}
		}
		return false
	}, nil)
	for key, content := range map[string]string{"up": "content", "up large": content} {
		if err := b.Create(t.Context(), key, strings.NewReader(content)); err == nil {
			t.Errorf("%s: damaged content was taken", key)
		}
	}
	p.set(nil, nil)
	wantKeys(t, b, "large", "small")
}

func skip(r io.Reader, n int64) io.Reader {
	io.CopyN(io.Discard, r, n)
	return r
}

func TestS3Sweep(t *testing.T) {
	server := s3server.Start(t)
	p, _, b := through(t, server, "sweeping")
	p.set(func(w http.ResponseWriter, r *http.Request) bool {
		return (r.Method == http.MethodDelete || r.Method == http.MethodPost && r.URL.Query().Has("uploadId")) &&
			refuse(503, "SlowDown", "later")(w, r)
	}, nil)
	for i := range 3 {
		if err := b.Create(t.Context(), fmt.Sprintf("left/%d 100%% + é", i), io.LimitReader(zeros{}, 30<<20)); !storage.Temporary(err) {
			t.Fatal(err)
		}
	}
	p.set(nil, nil)
	wantKeys(t, b)
	other := openBucket(t, server.Bucket(t, "sweeping", "pre/other"))
	for _, c := range []struct {
		name string
		b    storage.Bucket
		age  time.Duration
		want int
	}{{"too young", b, time.Hour, 0}, {"another prefix", other, -time.Minute, 0}, {"old enough", b, -time.Minute, 3}, {"again", b, -time.Minute, 0}} {
		if got, err := storage.Sweep(t.Context(), c.b, c.age); got != c.want || err != nil {
			t.Errorf("%s: %d were removed, %v; want %d", c.name, got, err, c.want)
		}
	}
	if left := server.Uploads(t, "sweeping"); len(left) > 0 {
		t.Errorf("uploads are left: %q", left)
	}
}

// TestS3Headers: what the configuration asks for is on each object, however it is sent.
func TestS3Headers(t *testing.T) {
	server := s3server.Start(t)
	p, c, _ := through(t, server, "headers")
	c.S3.SSE, c.S3.KMSKeyID, c.S3.StorageClass = "aws:kms", "key-1", "STANDARD_IA"
	c.S3.Tags = map[string]string{"made by": "pitr & co", "a": "b"}
	c.S3.ObjectLock, c.S3.ObjectLockDays = "governance", 3
	b := openBucket(t, c)
	want := map[string]string{
		"X-Amz-Server-Side-Encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "key-1",
		"X-Amz-Storage-Class": "STANDARD_IA", "X-Amz-Tagging": "a=b&made+by=pitr+%26+co", "X-Amz-Object-Lock-Mode": "GOVERNANCE",
	}
	for name, size := range map[string]int64{"small": 10, "large": 30 << 20} {
		var got http.Header
		p.set(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut || r.Method == http.MethodPost {
				got = r.Header.Clone()
				return refuse(400, "InvalidArgument", "seen")(w, r)
			}
			return false
		}, nil)
		if err := b.Create(t.Context(), name, io.LimitReader(zeros{}, size)); err == nil {
			t.Fatal("no error")
		}
		for _, key := range slices.Sorted(maps.Keys(want)) {
			if got.Get(key) != want[key] {
				t.Errorf("%s: %s is %q, want %q", name, key, got.Get(key), want[key])
			}
		}
		until, err := time.Parse(time.RFC3339, got.Get("X-Amz-Object-Lock-Retain-Until-Date"))
		if left := time.Until(until); err != nil || left < 71*time.Hour || left > 73*time.Hour {
			t.Errorf("%s: locked until %v, %v", name, until, err)
		}
	}
}

// TestS3InFewBuffers: an object of any size goes through as little memory as three parts of it, and with several
// requests under way.
func TestS3InFewBuffers(t *testing.T) {
	server := s3server.Start(t)
	p, _, b := through(t, server, "memory")
	var now, most atomic.Int32
	p.set(func(w http.ResponseWriter, r *http.Request) bool {
		if !r.URL.Query().Has("partNumber") {
			return false
		}
		for n := now.Add(1); ; {
			if seen := most.Load(); n <= seen || most.CompareAndSwap(seen, n) {
				break
			}
		}
		defer now.Add(-1)
		io.Copy(io.Discard, r.Body)
		time.Sleep(time.Millisecond)
		w.Header().Set("ETag", `"x"`)
		return true
	}, nil)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var peak uint64
	content := io.LimitReader(s3Watched{zeros{}, func() {
		runtime.ReadMemStats(&after)
		peak = max(peak, after.HeapInuse)
	}}, 1<<30)
	if err := b.Create(t.Context(), "large", content); err == nil {
		t.Error("no parts were stored, and their completion is no error")
	}
	if limit := before.HeapInuse + 64<<20; peak > limit {
		t.Errorf("%d MiB were in use", (peak-before.HeapInuse)>>20)
	}
	if n := most.Load(); n < 2 || n > 3 {
		t.Errorf("at most %d parts were on their way at once", n)
	}
}

// s3Watched calls seen now and then.
type s3Watched struct {
	io.Reader
	seen func()
}

func (w s3Watched) Read(p []byte) (int, error) {
	if rand.IntN(100) == 0 {
		w.seen()
	}
	return w.Reader.Read(p)
}
