package storage_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pitr/storage"
	"pitr/storage/storagetest/azureserver"
)

// middle stands between driver and server. What meddle answers, with true, does not reach the server.
type middle struct {
	url    string
	proxy  *httputil.ReverseProxy
	meddle atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	asked  atomic.Int64
}

func between(t *testing.T, endpoint string) *middle {
	t.Helper()
	u, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	// Signatures are over the path as it was sent.
	m := &middle{proxy: &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = u.Scheme, u.Host },
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.asked.Add(1)
		if f := m.meddle.Load(); f != nil && (*f)(w, r) {
			return
		}
		m.proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	m.url = server.URL + u.Path
	return m
}

func (m *middle) does(f func(http.ResponseWriter, *http.Request) bool) { m.meddle.Store(&f) }
func (m *middle) nothing()                                             { m.meddle.Store(nil) }

// unheard passes a request on, and drops the answer with the connection.
func (m *middle) unheard(r *http.Request) {
	m.proxy.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// azureLab is a server with something in between.
func azureLab(t *testing.T) (*azureserver.Server, *middle, func(t *testing.T) storage.Config) {
	t.Helper()
	server := azureserver.Start(t)
	m := between(t, server.Endpoint)
	return server, m, func(t *testing.T) storage.Config {
		t.Helper()
		m.nothing()
		c := server.Config(t)
		c.Azure.Endpoint = m.url
		return c
	}
}

func blockRequest(r *http.Request) bool {
	return r.Method == "PUT" && r.URL.Query().Get("comp") == "block"
}
func commitRequest(r *http.Request) bool { return r.URL.Query().Get("comp") == "blocklist" }

func isPut(r *http.Request) bool { return r.Method == "PUT" && r.URL.RawQuery == "" }

func TestAzureFaults(t *testing.T) {
	server, m, config := azureLab(t)
	small := strings.Repeat("content ", 1000)
	large := string(randomBytes(9 << 20))

	// The answer to the put that decides is lost: the object itself tells whose it is.
	for name, content := range map[string]string{"small": small, "large": large} {
		decides := func(r *http.Request) bool { return isPut(r) || commitRequest(r) }
		t.Run("answer lost/"+name, func(t *testing.T) {
			b := openConfig(t, config(t))
			m.does(func(w http.ResponseWriter, r *http.Request) bool {
				if decides(r) {
					m.unheard(r)
				}
				return false
			})
			create(t, b, "key", content)
			if got, err := read(b, "key"); err != nil || got != content {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
		t.Run("refusal lost/"+name, func(t *testing.T) {
			b := openConfig(t, config(t))
			create(t, b, "key", "of another")
			looks := 0
			m.does(func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case r.Method == "HEAD" && name == "large" && looks == 0:
					// The look before the blocks does not find it yet.
					looks++
					w.Header().Set("x-ms-error-code", "BlobNotFound")
					w.WriteHeader(http.StatusNotFound)
					return true
				case decides(r):
					m.unheard(r)
				}
				return false
			})
			err := b.Create(t.Context(), "key", strings.NewReader(content))
			if !errors.Is(err, storage.ErrExists) {
				t.Errorf("error is %v, want ErrExists", err)
			}
		})
		t.Run("sent twice by something between/"+name, func(t *testing.T) {
			b := openConfig(t, config(t))
			m.does(func(w http.ResponseWriter, r *http.Request) bool {
				if !decides(r) {
					return false
				}
				body, _ := io.ReadAll(r.Body)
				for _, w := range []http.ResponseWriter{httptest.NewRecorder(), w} {
					r.Body = io.NopCloser(bytes.NewReader(body))
					m.proxy.ServeHTTP(w, r)
				}
				return true
			})
			create(t, b, "key", content)
		})
		t.Run("never arrived/"+name, func(t *testing.T) {
			b := openConfig(t, config(t))
			m.does(func(w http.ResponseWriter, r *http.Request) bool {
				if decides(r) {
					panic(http.ErrAbortHandler)
				}
				return false
			})
			err := b.Create(t.Context(), "key", strings.NewReader(content))
			if !storage.Temporary(err) || errors.Is(err, storage.ErrExists) {
				t.Errorf("error is %v, want a temporary one", err)
			}
			wantKeys(t, b)
		})
	}

	t.Run("large objects race", func(t *testing.T) {
		// Whoever commits first drops the uncommitted blocks of the others.
		b := openConfig(t, config(t))
		for round := range 4 {
			key := fmt.Sprintf("race/%d", round)
			var wg sync.WaitGroup
			var won atomic.Int32
			var winner atomic.Int64
			for i := range 6 {
				wg.Go(func() {
					err := b.Create(t.Context(), key, bytes.NewReader(bytes.Repeat([]byte{byte(i)}, 9<<20)))
					if err == nil {
						won.Add(1)
						winner.Store(int64(i))
					} else if !errors.Is(err, storage.ErrExists) {
						t.Errorf("a loser's error is %v", err)
					}
				})
			}
			wg.Wait()
			got, err := read(b, key)
			if err != nil || won.Load() != 1 || got != strings.Repeat(string([]byte{byte(winner.Load())}), 9<<20) {
				t.Errorf("%d winners, %d bytes, %v", won.Load(), len(got), err)
			}
		}
	})

	t.Run("blocks dropped by another writer", func(t *testing.T) {
		// One that then was deleted: the object is free, and another try gets it. The emulator keeps the blocks.
		b := openConfig(t, config(t))
		refused := 0
		m.does(func(w http.ResponseWriter, r *http.Request) bool {
			if !commitRequest(r) || refused > 1 {
				return false
			}
			refused++
			w.Header().Set("x-ms-error-code", "InvalidBlockList")
			w.WriteHeader(http.StatusBadRequest)
			return true
		})
		err := b.Create(t.Context(), "key", strings.NewReader(large))
		if err == nil || !storage.Temporary(err) {
			t.Fatalf("error is %v, want a temporary one", err)
		}
		wantKeys(t, b)
		if err := storage.Retry(b, quick).Create(t.Context(), "key", strings.NewReader(large)); err != nil {
			t.Fatal(err)
		}
		if got, err := read(b, "key"); err != nil || got != large || refused != 2 {
			t.Errorf("%d bytes, %v, after %d refusals", len(got), err, refused)
		}
	})

	t.Run("storm", func(t *testing.T) {
		// Of eight requests one is told to slow down, one is cut off after it was done.
		b := storage.Retry(openConfig(t, config(t)), quick)
		m.does(func(w http.ResponseWriter, r *http.Request) bool {
			switch rand.IntN(8) {
			case 0:
				w.Header().Set("x-ms-error-code", "ServerBusy")
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			case 1:
				m.unheard(r)
			}
			return false
		})
		var want []string
		for i := range 12 {
			key := fmt.Sprintf("k/%02d", i)
			content := small
			if i%4 == 0 {
				content = large
			}
			if err := b.Create(t.Context(), key, strings.NewReader(content)); err != nil {
				t.Fatal(err)
			}
			if got, err := read(b, key); err != nil || got != content {
				t.Fatalf("%s: %d bytes, %v", key, len(got), err)
			}
			want = append(want, key)
		}
		wantKeys(t, b, want...)
		if err := b.Delete(t.Context(), want...); err != nil {
			t.Fatal(err)
		}
		wantKeys(t, b)
	})

	t.Run("content broken off", func(t *testing.T) {
		plain := openConfig(t, config(t))
		create(t, plain, "key", large)
		var cuts atomic.Int64
		m.does(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != "GET" || cuts.Add(1) > 3 {
				return false
			}
			rec := httptest.NewRecorder()
			m.proxy.ServeHTTP(rec, r)
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
			panic(http.ErrAbortHandler)
		})
		got, err := read(plain, "key")
		if !storage.Temporary(err) || errors.Is(err, io.ErrUnexpectedEOF) || len(got) >= len(large) {
			t.Errorf("%d bytes, error %v; want a temporary one that nobody takes for a short object", len(got), err)
		}
		if got, err := read(storage.Retry(plain, quick), "key"); err != nil || got != large {
			t.Errorf("with Retry %d bytes, %v", len(got), err)
		}
	})

	t.Run("content damaged on the way back", func(t *testing.T) {
		b := openConfig(t, config(t))
		create(t, b, "small", small)
		create(t, b, "large", large)
		m.does(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != "GET" {
				return false
			}
			rec := httptest.NewRecorder()
			m.proxy.ServeHTTP(rec, r)
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			rec.Body.Bytes()[rec.Body.Len()/2] ^= 1
			w.Write(rec.Body.Bytes())
			return true
		})
		for _, key := range []string{"small", "large"} {
			_, err := read(storage.Retry(b, quick), key)
			if err == nil || !strings.Contains(err.Error(), "does not match its MD5") {
				t.Errorf("%s: %v", key, err)
			}
			r, err := b.GetRange(t.Context(), key, 100, 5000)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(r); err == nil || !strings.Contains(err.Error(), "does not match its MD5") {
				t.Errorf("range of %s: %v", key, err)
			}
			r.Close()
		}
	})

	t.Run("content damaged on the way there", func(t *testing.T) {
		b := openConfig(t, config(t))
		m.does(func(w http.ResponseWriter, r *http.Request) bool {
			if isPut(r) || blockRequest(r) {
				body, _ := io.ReadAll(r.Body)
				body[len(body)/2] ^= 1
				r.Body = io.NopCloser(bytes.NewReader(body))
			}
			return false
		})
		for _, content := range []string{small, large} {
			if err := b.Create(t.Context(), "key", strings.NewReader(content)); err == nil || errors.Is(err, storage.ErrExists) {
				t.Errorf("error is %v", err)
			}
		}
		m.nothing()
		wantKeys(t, b)
	})

	t.Run("requests", func(t *testing.T) {
		// What a small object costs: one request to store it, one to read it, one to delete a lot.
		b := openConfig(t, config(t))
		count := func(what string, want int64, f func()) {
			t.Helper()
			before := m.asked.Load()
			f()
			if got := m.asked.Load() - before; got != want {
				t.Errorf("%s: %d requests, want %d", what, got, want)
			}
		}
		count("create", 1, func() { create(t, b, "small", small) })
		count("get", 1, func() { read(b, "small") })
		count("create of 9 MiB", 1+3+1, func() { create(t, b, "large", large) })
		count("create of a large one that is there", 1, func() { b.Create(t.Context(), "large", strings.NewReader(large)) })
		var many []string
		for i := range 300 {
			many = append(many, fmt.Sprintf("many/%d", i))
		}
		for _, key := range many[:3] {
			create(t, b, key, "x")
		}
		count("delete of 300", 2, func() {
			if err := b.Delete(t.Context(), many...); err != nil {
				t.Error(err)
			}
		})
		wantKeys(t, b, "large", "small")
	})

	t.Run("batches refused", func(t *testing.T) {
		b := openConfig(t, config(t))
		create(t, b, "a", "x")
		create(t, b, "b", "x")
		m.does(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("comp") == "batch" {
				http.Error(w, "no", http.StatusNotImplemented)
				return true
			}
			return false
		})
		if err := b.Delete(t.Context(), "a", "none", "b"); err != nil {
			t.Fatal(err)
		}
		wantKeys(t, b)
	})

	t.Run("snapshots", func(t *testing.T) {
		c := config(t)
		b := openConfig(t, c)
		for _, key := range []string{"a", "b", "c"} {
			create(t, b, key, "x")
			if _, err := server.Client(t, strings.TrimPrefix(c.URL, "azure://")).NewBlobClient(key).CreateSnapshot(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		}
		wantKeys(t, b, "a", "b", "c")
		if err := b.Delete(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := b.Delete(t.Context(), "b", "c"); err != nil {
			t.Fatal(err)
		}
		wantKeys(t, b)
	})

	t.Run("memory", func(t *testing.T) {
		// 256 MiB of unknown length pass through a few blocks. The server forgets them at once.
		b := openConfig(t, config(t))
		m.does(func(w http.ResponseWriter, r *http.Request) bool {
			if !blockRequest(r) {
				return false
			}
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusCreated)
			return true
		})
		var most uint64
		watch := watched{io.LimitReader(rand.NewChaCha8([32]byte{7}), 256<<20), func() {
			var s runtime.MemStats
			runtime.ReadMemStats(&s)
			most = max(most, s.HeapInuse)
		}}
		runtime.GC()
		var base runtime.MemStats
		runtime.ReadMemStats(&base)
		if err := b.Create(t.Context(), "key", watch); err == nil {
			t.Error("the commit of blocks that never came succeeded")
		}
		if used := most - min(most, base.HeapInuse); used > 64<<20 {
			t.Errorf("Create used %d MiB", used>>20)
		}
	})
}

// watched calls see now and then.
type watched struct {
	io.Reader
	see func()
}

func (w watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if n > 0 && p[0] < 16 {
		w.see()
	}
	return n, err
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{9}).Read(b)
	return b
}
