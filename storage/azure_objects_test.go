package storage_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"pitr/storage/storagetest/azureserver"
)

// What the configuration wants on objects is on small and on large ones.
func TestAzureAttributes(t *testing.T) {
	server := azureserver.Start(t)
	c := server.Config(t)
	name := strings.TrimPrefix(c.URL, "azure://")
	c.URL += "/some/where"
	c.Azure.AccessTier = "Cool"
	c.Azure.Tags = map[string]string{"team": "db", "cost center": "42"}
	b := openConfig(t, c)
	for _, size := range []int{10, 9 << 20} {
		key := fmt.Sprint(size)
		create(t, b, key, string(randomBytes(size)))
		at := server.Client(t, name).NewBlobClient("some/where/" + key)
		p, err := at.GetProperties(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if p.AccessTier == nil || *p.AccessTier != string(blob.AccessTierCool) {
			t.Errorf("tier is %v", p.AccessTier)
		}
		if len(p.ContentMD5) != 16 || p.ContentType == nil || *p.ContentType != "application/octet-stream" {
			t.Errorf("MD5 %x, type %v", p.ContentMD5, p.ContentType)
		}
		tags, err := at.GetTags(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, tag := range tags.BlobTagSet {
			got[*tag.Key] = *tag.Value
		}
		if len(got) != 2 || got["team"] != "db" || got["cost center"] != "42" {
			t.Errorf("tags are %v", got)
		}
	}
}

// What the emulator does not know is at least asked for, with every request that it belongs to.
func TestAzureProtection(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]http.Header{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		io.Copy(io.Discard, r.Body)
		asked[r.Method+" "+r.URL.Query().Get("comp")] = r.Header
		if r.Method == "HEAD" {
			w.Header().Set("x-ms-error-code", "BlobNotFound")
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}))
	defer server.Close()
	c := fakeAzure(t, server.URL, "azure://ccc")
	c.Azure.EncryptionScope, c.Azure.ImmutableDays, c.Azure.ImmutableLocked, c.Azure.AccessTier = "scope1", 30, true, "cold"
	b := openConfig(t, c)
	create(t, b, "small", "x")
	create(t, b, "large", string(randomBytes(9<<20)))
	for request, whole := range map[string]bool{"PUT ": true, "PUT blocklist": true, "PUT block": false} {
		h := asked[request]
		if h.Get("x-ms-encryption-scope") != "scope1" || h.Get("Content-Md5") == "" && request != "PUT blocklist" {
			t.Errorf("%s: %v", request, h)
		}
		until, err := time.Parse(http.TimeFormat, h.Get("x-ms-immutability-policy-until-date"))
		ahead := time.Until(until)
		if whole != (err == nil) || whole && (ahead < 29*24*time.Hour || ahead > 31*24*time.Hour || !strings.EqualFold(h.Get("x-ms-immutability-policy-mode"), "locked")) {
			t.Errorf("%s: immutable until %v, %v", request, until, h)
		}
		if whole && (h.Get("If-None-Match") != "*" || h.Get("x-ms-access-tier") != "Cold" || h.Get("x-ms-blob-content-md5") == "") {
			t.Errorf("%s: %v", request, h)
		}
	}
}

// Blobs of others, in names that no key has, don't disturb.
func TestAzureForeignBlobs(t *testing.T) {
	server := azureserver.Start(t)
	c := server.Config(t)
	direct := server.Client(t, strings.TrimPrefix(c.URL, "azure://"))
	for _, name := range []string{"other", "p/.hidden", "p/a//b", "p/dir/", "p0", "p/a b", "p/é"} {
		if _, err := direct.NewBlockBlobClient(name).Upload(t.Context(), streaming.NopCloser(strings.NewReader("x")), nil); err != nil {
			t.Fatal(err)
		}
	}
	c.URL += "/p"
	wantKeys(t, openConfig(t, c), "é")
}

// Many callers use few connections again and again.
func TestAzureConnections(t *testing.T) {
	server := azureserver.Start(t)
	var opened atomic.Int64
	u, _ := url.Parse(server.Endpoint)
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = u.Scheme, u.Host }})
	front.Config.ConnState = countNew(&opened)
	front.Start()
	t.Cleanup(front.Close)
	c := server.Config(t)
	c.Azure.Endpoint = front.URL + u.Path
	b := openConfig(t, c)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 10 {
				key := fmt.Sprintf("%d/%d", w, i)
				if err := b.Create(t.Context(), key, strings.NewReader(key)); err != nil {
					t.Error(err)
				}
				if got, err := read(b, key); err != nil || got != key {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	if n := opened.Load(); n > 16+4 {
		t.Errorf("%d connections for 16 callers", n)
	}
}
