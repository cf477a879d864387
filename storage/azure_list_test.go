package storage_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"pitr/storage"
)

// listed answers listings of a container as the service does that can begin in the middle; the emulator can't.
type listed struct {
	names     []string
	startFrom bool // knows it
	refuses   bool // says 400 to it
	page      int
	queries   []url.Values
}

func (l *listed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	l.queries = append(l.queries, q)
	if l.refuses && q.Has("startFrom") {
		w.Header().Set("x-ms-error-code", "UnsupportedQueryParameter")
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var some []string
	more := ""
	for _, name := range l.names {
		if !strings.HasPrefix(name, q.Get("prefix")) || l.startFrom && name < q.Get("startFrom") || name <= q.Get("marker") {
			continue
		}
		if len(some) == l.page {
			more = some[l.page-1]
			break
		}
		some = append(some, name)
	}
	fmt.Fprint(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>`)
	for _, name := range some {
		fmt.Fprintf(w, `<Blob><Name>%s</Name><Properties><Content-Length>1</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>`, name)
	}
	fmt.Fprintf(w, `</Blobs><NextMarker>%s</NextMarker></EnumerationResults>`, more)
}

func TestAzureListFromTheMiddle(t *testing.T) {
	var names []string
	for _, dir := range []string{"a", "b", "c"} {
		for i := range 20 {
			names = append(names, fmt.Sprintf("p/%s/%02d", dir, i))
		}
	}
	for name, l := range map[string]*listed{
		"known":   {names: names, page: 7, startFrom: true},
		"ignored": {names: names, page: 7},
		"refused": {names: names, page: 7, refuses: true},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(l)
			defer server.Close()
			b := openConfig(t, fakeAzure(t, server.URL, "azure://ccc/p"))
			for _, c := range []struct {
				prefix, after string
				want          []string
			}{
				{"b/", "b/15", names[36:40]},
				{"b/", "b/19", nil},
				{"", "b/15", names[36:]},
				{"b/", "a/00", names[20:40]},
				{"b/", "c", nil},
				{"c/", "c/", names[40:]},
			} {
				l.queries = nil
				var got []string
				for o, err := range b.List(t.Context(), c.prefix, c.after) {
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, "p/"+o.Key)
				}
				if !slices.Equal(got, c.want) {
					t.Errorf("List(%q, %q) = %q, want %q", c.prefix, c.after, got, c.want)
				}
				if l.startFrom && strings.HasPrefix(c.after, c.prefix) && len(l.queries) > len(c.want)/7+1 {
					t.Errorf("List(%q, %q) took %d requests", c.prefix, c.after, len(l.queries))
				}
				for _, q := range l.queries {
					if q.Has("startFrom") && q.Has("prefix") {
						t.Errorf("asked for both startFrom and prefix: %v", q)
					}
				}
			}
			if !l.startFrom {
				for _, err := range b.List(t.Context(), "b/", "b/15") {
					if err != nil {
						t.Fatal(err)
					}
				}
				if q := l.queries[len(l.queries)-1]; q.Has("startFrom") {
					t.Error("asked again for what the service can't do")
				}
			}
		})
	}
}

// A container in an account with a hierarchical namespace lists "a/b" before "a.b".
func TestAzureListOutOfOrder(t *testing.T) {
	server := httptest.NewServer(&listed{names: []string{"a/b", "a.b"}, page: 10})
	defer server.Close()
	b := openConfig(t, fakeAzure(t, server.URL, "azure://ccc"))
	got, err := keys(b)
	wantText(t, err, `list azure://ccc: the container lists "a.b" after "a/b", which is not the order of bytes`,
		"a storage account with a hierarchical namespace does that: use an account without one")
	if !slices.Equal(got, []string{"a/b"}) || storage.Temporary(err) {
		t.Errorf("%q were listed; temporary: %v", got, storage.Temporary(err))
	}
}
