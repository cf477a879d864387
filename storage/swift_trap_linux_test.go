package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pitr/internal/hint"
	"pitr/storage"
)

const swiftLarge = 40 << 20 // three segments

func swiftBytes(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func swiftContainer(b storage.Bucket) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(b.String(), "swift://"), "/")
	return name
}

// inContainer is how many objects the container holds, segments included, by the server's own count.
func (s swiftTests) inContainer(t *testing.T, b storage.Bucket) int {
	t.Helper()
	_, h := s.server.Do(t, http.MethodGet, "/"+swiftContainer(b)+"?format=json", nil)
	n, err := strconv.Atoi(h.Get("X-Container-Object-Count"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (s swiftTests) wantObjects(t *testing.T, b storage.Bucket, want int) {
	t.Helper()
	if got := s.inContainer(t, b); got != want {
		t.Errorf("the container holds %d objects, want %d", got, want)
	}
}

func wantContent(t *testing.T, b storage.Bucket, key string, want []byte) {
	t.Helper()
	r, err := b.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes came back for %d, or other ones: %v", key, len(got), len(want), err)
	}
}

// The library's own call would delete the object that is there.
func (s swiftTests) largeStays(t *testing.T) {
	b := s.fresh(t, "")
	first := swiftBytes(1, swiftLarge)
	if err := b.Create(t.Context(), "pack/1", bytes.NewReader(first)); err != nil {
		t.Fatal(err)
	}
	s.wantObjects(t, b, 4)
	for _, size := range []int{swiftLarge, 1000} {
		if err := b.Create(t.Context(), "pack/1", bytes.NewReader(swiftBytes(2, size))); !errors.Is(err, storage.ErrExists) {
			t.Errorf("error is %v, want ErrExists", err)
		}
	}
	wantContent(t, b, "pack/1", first)
	s.wantObjects(t, b, 4)
	wantKeys(t, b, "pack/1")

	// Across the seam of two segments, and over the end.
	r, err := b.GetRange(t.Context(), "pack/1", 16<<20-10, 20)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, first[16<<20-10:16<<20+10]) {
		t.Errorf("the range came as %d bytes, %v", len(got), err)
	}
	o, err := b.Stat(t.Context(), "pack/1")
	if err != nil || o.Size != swiftLarge {
		t.Errorf("Stat = %v, %v", o, err)
	}
	for l, err := range b.List(t.Context(), "", "") {
		if err != nil || l.Size != swiftLarge {
			t.Errorf("List = %v, %v", l, err)
		}
	}
	// Exactly a number of segments, and exactly what still is one piece.
	for _, size := range []int{32 << 20, 16 << 20, 16<<20 + 1} {
		key := fmt.Sprint("exact/", size)
		want := swiftBytes(3, size)
		if err := b.Create(t.Context(), key, bytes.NewReader(want)); err != nil {
			t.Fatal(err)
		}
		wantContent(t, b, key, want)
	}
	s.wantObjects(t, b, 4+3+1+3)
	if err := b.Delete(t.Context(), "pack/1", "exact/33554432", "exact/16777216", "exact/16777217", "none"); err != nil {
		t.Fatal(err)
	}
	s.wantObjects(t, b, 0)
}

func (s swiftTests) nothingLeft(t *testing.T) {
	b := s.fresh(t, "/p")
	broken := errors.New("broken")
	err := b.Create(t.Context(), "k", io.MultiReader(bytes.NewReader(swiftBytes(1, swiftLarge)), errorReader{broken}))
	if !errors.Is(err, broken) {
		t.Errorf("error is %v", err)
	}
	s.wantObjects(t, b, 0)
	ctx, cancel := context.WithCancel(t.Context())
	err = b.Create(ctx, "k", io.MultiReader(bytes.NewReader(swiftBytes(1, swiftLarge)), callReader(cancel)))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	s.wantObjects(t, b, 0)
}

type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }

type callReader func()

func (c callReader) Read([]byte) (int, error) {
	c()
	return 0, io.EOF
}

func (s swiftTests) sweep(t *testing.T) {
	b := s.fresh(t, "/p")
	kept := swiftBytes(1, swiftLarge)
	for _, key := range []string{"a/kept", "a/lost"} {
		if err := b.Create(t.Context(), key, bytes.NewReader(kept)); err != nil {
			t.Fatal(err)
		}
	}
	// As if a process had been killed before it put the manifest.
	if status, _ := s.server.Do(t, http.MethodDelete, "/"+swiftContainer(b)+"/p/a/lost", nil); status != http.StatusNoContent {
		t.Fatalf("status %d", status)
	}
	s.wantObjects(t, b, 4+3)
	for olderThan, want := range map[time.Duration]int{24 * time.Hour: 0, time.Minute: 0} {
		if n, err := storage.Sweep(t.Context(), b, olderThan); n != want || err != nil {
			t.Errorf("swept %d objects, %v", n, err)
		}
	}
	if n, err := storage.Sweep(t.Context(), storage.Retry(b, quick), -time.Minute); n != 3 || err != nil {
		t.Errorf("swept %d objects, want 3: %v", n, err)
	}
	s.wantObjects(t, b, 4)
	wantContent(t, b, "a/kept", kept)
}

func (s swiftTests) renewed(t *testing.T) {
	b := s.fresh(t, "")
	create(t, b, "small", "x")
	s.server.ForgetTokens(t)
	wantKeys(t, b, "small")
	s.server.ForgetTokens(t)
	create(t, b, "next", "x")
	// In the middle of a backup: between two segments.
	data := swiftBytes(1, swiftLarge)
	forget := func() { s.server.ForgetTokens(t) }
	r := io.MultiReader(bytes.NewReader(data[:20<<20]), callReader(forget), bytes.NewReader(data[20<<20:]), callReader(forget))
	if err := b.Create(t.Context(), "large", r); err != nil {
		t.Fatal(err)
	}
	wantContent(t, b, "large", data)
}

func (s swiftTests) noContainer(t *testing.T) {
	b := s.fresh(t, "")
	wantKeys(t, b)
	_, err := b.Get(t.Context(), "key")
	if !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("error is %v", err)
	}
	name := swiftContainer(b)
	wantText(t, err, "get key in swift://"+name+": not found: there is no container "+name,
		"if something should be there, look at the container's name in storage.url, and at tenant and region in storage.swift; the first write creates the container")
	if err := b.Delete(t.Context(), "key"); err != nil {
		t.Error(err)
	}
	if status, _ := s.server.Do(t, http.MethodGet, "/"+name+"?format=json", nil); status != http.StatusNotFound {
		t.Errorf("reading has created the container: status %d", status)
	}
	create(t, b, "key", "x")
	wantKeys(t, b, "key")
}

func (s swiftTests) vanishes(t *testing.T) {
	b := s.fresh(t, "")
	create(t, b, "key", "x")
	if err := b.Delete(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	if status, _ := s.server.Do(t, http.MethodDelete, "/"+swiftContainer(b), nil); status != http.StatusNoContent {
		t.Fatalf("status %d", status)
	}
	_, getErr := b.Get(t.Context(), "key")
	_, statErr := b.Stat(t.Context(), "key")
	var listErr error
	for _, listErr = range b.List(t.Context(), "", "") {
	}
	_, sweepErr := storage.Sweep(t.Context(), b, 0)
	for op, err := range map[string]error{
		"get": getErr, "stat": statErr, "list": listErr, "sweep": sweepErr,
		"create": b.Create(t.Context(), "key", strings.NewReader("x")), "delete": b.Delete(t.Context(), "key"),
		"large": b.Create(t.Context(), "large", bytes.NewReader(swiftBytes(1, swiftLarge))),
	} {
		if !errors.Is(err, storage.ErrVanished) || errors.Is(err, storage.ErrNotFound) || hint.Of(err) == "" {
			t.Errorf("%s: error is %v", op, err)
		}
	}
}

func (s swiftTests) policy(t *testing.T) {
	c := s.server.Config("with_policy")
	c.Swift.StoragePolicy = "silver"
	b := s.open(t, c)
	create(t, b, "key", "x")
	if _, h := s.server.Do(t, http.MethodGet, "/with_policy?format=json", nil); h.Get("X-Storage-Policy") != "silver" {
		t.Errorf("the container's policy is %q", h.Get("X-Storage-Policy"))
	}
	c = s.server.Config("without_policy")
	c.Swift.StoragePolicy = "platinum"
	err := s.open(t, c).Create(t.Context(), "key", strings.NewReader("x"))
	if err == nil || hint.Of(err) != `look whether the server has the policy of storage.swift.storage_policy, "platinum"` || storage.Temporary(err) {
		t.Errorf("error is %v, hint %s", err, hint.Of(err))
	}
}

func (s swiftTests) open(t *testing.T, c storage.Config) storage.Bucket {
	t.Helper()
	b, err := storage.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// through opens a bucket behind a proxy in front of the server. before may answer itself, and say so; after changes the
// answer.
func (s swiftTests) through(t *testing.T, before func(http.ResponseWriter, *http.Request) bool, after func(*http.Response) error) storage.Bucket {
	t.Helper()
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: s.server.Host()})
			r.Out.Host = r.In.Host // then the storage URL leads here again
		},
		ModifyResponse: after,
		FlushInterval:  -1,
		// net/http's own client mishandles refusals in place of 100 Continue, which is not what is tested here.
		Transport:    &http.Transport{DisableKeepAlives: true},
		ErrorLog:     log.New(io.Discard, "", 0),
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if before == nil || !before(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(front.Close)
	c := s.server.Config("through_" + strings.TrimPrefix(front.URL, "http://127.0.0.1:"))
	c.Swift.AuthURL = front.URL + "/auth/v1.0"
	return s.open(t, c)
}

var errLost = errors.New("the answer is lost")

func isObject(r *http.Request) bool { return strings.Count(r.URL.Path, "/") > 3 }

// lostAnswers: what is there decides.
func (s swiftTests) lostAnswers(t *testing.T) {
	var lose atomic.Bool
	b := s.through(t, nil, func(r *http.Response) error {
		if lose.Load() && r.Request.Method == http.MethodPut && isObject(r.Request) && !strings.Contains(r.Request.URL.Path, ".segments") {
			return errLost
		}
		return nil
	})
	create(t, b, "first", "x")
	lose.Store(true)
	create(t, b, "small", "stored, but the answer is lost")
	if err := b.Create(t.Context(), "small", strings.NewReader("other")); !errors.Is(err, storage.ErrExists) {
		t.Errorf("a refusal that looks like a broken connection: %v, want ErrExists", err)
	}
	data := swiftBytes(1, swiftLarge)
	if err := b.Create(t.Context(), "large", bytes.NewReader(data)); err != nil {
		t.Errorf("a large object whose answer is lost: %v", err)
	}
	wantContent(t, b, "large", data)
	wantKeys(t, b, "first", "large", "small")
}

// trouble: what passes is called temporary, and what does not is not; nothing half is visible.
func (s swiftTests) trouble(t *testing.T) {
	var status atomic.Int32
	var cut, flip atomic.Bool
	b := s.through(t, func(w http.ResponseWriter, r *http.Request) bool {
		if status.Load() > 0 && isObject(r) {
			w.WriteHeader(int(status.Load()))
			return true
		}
		return false
	}, func(r *http.Response) error {
		if r.Request.Method != http.MethodGet || !isObject(r.Request) {
			return nil
		}
		body := r.Body
		if cut.Load() {
			r.Body = struct {
				io.Reader
				io.Closer
			}{&cutReader{body, 100_000}, body}
		}
		if flip.Load() {
			text, err := io.ReadAll(body)
			if err != nil {
				return err
			}
			text[len(text)/2] ^= 1
			r.Body = io.NopCloser(bytes.NewReader(text))
		}
		return nil
	})
	data := swiftBytes(1, 300_000)
	if err := b.Create(t.Context(), "k", bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	for code, temporary := range map[int]bool{400: false, 403: false, 408: true, 413: false, 429: true, 498: true, 500: true, 501: false, 502: true, 503: true, 504: true, 507: true, 301: false} {
		status.Store(int32(code))
		_, err := b.Stat(t.Context(), "k")
		createErr := b.Create(t.Context(), "new", strings.NewReader("x"))
		for _, err := range []error{err, createErr} {
			if err == nil || storage.Temporary(err) != temporary || !strings.Contains(err.Error(), strconv.Itoa(code)) {
				t.Errorf("%d: error is %v, temporary: %v", code, err, storage.Temporary(err))
			}
		}
	}
	status.Store(0)
	wantKeys(t, b, "k")

	cut.Store(true)
	_, err := fetchAll(t, b, "k")
	if !storage.Temporary(err) || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a content that breaks off: %v", err)
	}
	if got, err := fetchAll(t, storage.Retry(b, quick), "k"); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read on after it broke off: %d bytes, %v", len(got), err)
	}
	cut.Store(false)
	flip.Store(true)
	if _, err := fetchAll(t, b, "k"); err == nil || !strings.Contains(err.Error(), "checksum") || storage.Temporary(err) {
		t.Errorf("a damaged content: %v", err)
	}
	flip.Store(false)
	large := swiftBytes(2, swiftLarge)
	if err := b.Create(t.Context(), "large", bytes.NewReader(large)); err != nil {
		t.Fatal(err)
	}
	flip.Store(true)
	if _, err := fetchAll(t, b, "large"); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("a damaged large content: %v", err)
	}
}

// cutReader breaks off after so many bytes, if there are more.
type cutReader struct {
	r    io.Reader
	left int
}

func (c *cutReader) Read(p []byte) (int, error) {
	if c.left == 0 {
		if _, err := io.ReadFull(c.r, make([]byte, 1)); err != nil {
			return 0, err
		}
		return 0, errLost
	}
	n, err := c.r.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func fetchAll(t *testing.T, b storage.Bucket, key string) ([]byte, error) {
	t.Helper()
	r, err := b.Get(t.Context(), key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// errors are those of the real server.
func (s swiftTests) errors(t *testing.T) {
	wrong := t.TempDir() + "/wrong"
	if err := os.WriteFile(wrong, []byte("SECRET\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := s.fresh(t, "")
	create(t, good, "key", "x")
	container := swiftContainer(good)
	c := s.server.Config(container)
	closed := httptest.NewServer(nil)
	closed.Close()
	tls := httptest.NewTLSServer(http.NotFoundHandler())
	defer tls.Close()
	base := strings.TrimSuffix(s.server.AuthURL, "/auth/v1.0")
	for _, e := range []struct {
		name         string
		change       func(*storage.SwiftConfig)
		text, advice string
		temporary    bool
	}{
		{"wrong password", func(c *storage.SwiftConfig) { c.PasswordFile = wrong },
			"log in at " + s.server.AuthURL + " as user test:tester: the server refuses user or password (401)",
			"look at storage.swift.username, which is ACCOUNT:USER in version 1 (or $OS_USERNAME, $ST_USER), and the password in " + wrong, false},
		{"denied", func(c *storage.SwiftConfig) {
			c.Username, c.PasswordFile = s.server.Reader, s.server.ReaderPasswordFile
		},
			"the server says 403 Forbidden",
			"user test:reader may not do this: give it a role that may read, write and delete in container " + container + " (such as swiftoperator or member), or let the container's ACLs allow it", false},
		{"wrong place", func(c *storage.SwiftConfig) { c.AuthURL = base + "/nothing/v1.0" }, "", "", false},
		{"nobody there", func(c *storage.SwiftConfig) { c.AuthURL = closed.URL + "/auth/v1.0" },
			"log in at " + closed.URL + "/auth/v1.0 as user test:tester: dial tcp " + strings.TrimPrefix(closed.URL, "http://") + ": connect: connection refused",
			"the server of swift://" + container + " could not be reached, or the connection broke: look at it, at the network, and at proxies in the environment", true},
		{"unknown authority", func(c *storage.SwiftConfig) { c.AuthURL = tls.URL + "/auth/v1.0" },
			"log in at " + tls.URL + "/auth/v1.0 as user test:tester: tls: failed to verify certificate: x509: certificate signed by unknown authority",
			"name the certificate of the server's authority in storage.swift.ca_file", false},
		{"password file missing", func(c *storage.SwiftConfig) { c.PasswordFile = wrong + "/none" },
			"storage.swift.password_file: open " + wrong + "/none: not a directory", "let the user that pitr runs as read this file", false},
	} {
		t.Run(e.name, func(t *testing.T) {
			c := c
			e.change(&c.Swift)
			b := s.open(t, c)
			_, err := b.Stat(t.Context(), "key")
			if err == nil {
				t.Fatal("no error")
			}
			if e.text != "" {
				text, _, _ := strings.Cut(err.Error(), " (transaction ")
				if text != "stat key in swift://"+container+": "+e.text || hint.Of(err) != e.advice {
					t.Errorf("error is\n%s\n%s, want\n%s\n%s", text, hint.Of(err), e.text, e.advice)
				}
			}
			createErr := b.Create(t.Context(), "new", strings.NewReader("x"))
			for _, err := range []error{err, createErr} {
				if err == nil || storage.Temporary(err) != e.temporary || hint.Of(err) == "" || errors.Is(err, storage.ErrNotFound) || strings.Contains(err.Error()+hint.Of(err), "SECRET") {
					t.Errorf("error is %v, temporary: %v, hint: %s", err, storage.Temporary(err), hint.Of(err))
				}
			}
		})
	}
	wantKeys(t, good, "key")
}

// noBulk: a server without the middleware takes the request for one that changes the account, and says yes.
func (s swiftTests) noBulk(t *testing.T) {
	var bulk atomic.Int32
	b := s.through(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		bulk.Add(1)
		w.WriteHeader(http.StatusNoContent)
		return true
	}, nil)
	var keys []string
	for i := range 12 {
		keys = append(keys, fmt.Sprintf("k%02d", i))
		create(t, b, keys[i], "x")
	}
	for _, half := range [][]string{keys[:6], keys[6:]} {
		if err := b.Delete(t.Context(), half...); err != nil {
			t.Fatal(err)
		}
	}
	wantKeys(t, b)
	if bulk.Load() != 1 {
		t.Errorf("%d bulk deletes, want 1", bulk.Load())
	}
}
