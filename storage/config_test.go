package storage_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"pitr/internal/hint"
	"pitr/storage"
)

func TestConfigKeys(t *testing.T) {
	const text = `url: file:///x
s3: {endpoint: a, region: b, path_style: true, access_key_id: c, secret_access_key_file: d, ca_file: e}
azure: {account: f, key_file: g, sas_file: h, endpoint: i}
swift: {auth_url: j, username: k, password_file: l, tenant: m, domain: n, region: o}
`
	var got storage.Config
	if err := yaml.UnmarshalWithOptions([]byte(text), &got, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	want := storage.Config{
		URL:   "file:///x",
		S3:    storage.S3Config{Endpoint: "a", Region: "b", PathStyle: true, AccessKeyID: "c", SecretAccessKeyFile: "d", CAFile: "e"},
		Azure: storage.AzureConfig{Account: "f", KeyFile: "g", SASFile: "h", Endpoint: "i"},
		Swift: storage.SwiftConfig{AuthURL: "j", Username: "k", PasswordFile: "l", Tenant: "m", Domain: "n", Region: "o"},
	}
	if got != want {
		t.Errorf("read %+v, want %+v", got, want)
	}
}

func TestConfigValidate(t *testing.T) {
	for _, c := range []struct{ url, text, advice string }{
		{"file:///var/lib/pitr/repo", "", ""},
		{"file:///with%20space/50%25/%3F%23", "", ""},
		{"", "url: is not set", "write file:///absolute/path"},
		{"/var/lib/pitr", "url: has no scheme", "write file:///absolute/path"},
		{"ftp://host/x", `url: scheme "ftp" is not known`, "write file:///absolute/path"},
		{"file://var/lib/pitr", "url: a file:// URL names no host or user", "write file:///absolute/path, with three slashes"},
		{"file://u:SECRET@/x", "url: a file:// URL names no host or user", "write file:///absolute/path, with three slashes"},
		{"file:relative", "url: the path is not absolute", "write file:///absolute/path"},
		{"file:///", "url: the root directory cannot be a store", "name a directory of its own"},
		{"file:///x/..", "url: the root directory cannot be a store", "name a directory of its own"},
		{"file:///a?b", `url: "?" or "#" in a file:// URL`, "write them %3F and %23 where they are part of the path"},
		{"file:///a#b", `url: "?" or "#" in a file:// URL`, "write them %3F and %23 where they are part of the path"},
		{"file:///a%00b", "url: the path contains a NUL", "write file:///absolute/path"},
		{"file:///50%off", `url: invalid URL escape "%of"`, "write file:///absolute/path; a percent sign in a path is written %25"},
		{"s3://k:SECRET@bucket:port/", "url: invalid port \":port\" after host", "write file:///absolute/path; a percent sign in a path is written %25"},
	} {
		t.Run(c.url, func(t *testing.T) {
			err := storage.Config{URL: c.url}.Validate()
			if c.text == "" {
				if err != nil {
					t.Errorf("error is %v", err)
				}
				return
			}
			wantText(t, err, c.text, c.advice)
			if strings.Contains(err.Error()+hint.Of(err), "SECRET") {
				t.Error("the secret is in the text")
			}
			_, err = storage.Open(t.Context(), storage.Config{URL: c.url})
			wantText(t, err, "storage."+c.text, c.advice)
		})
	}
}

func TestURLRoundTrip(t *testing.T) {
	dir := t.TempDir() + "/50% of #1? é"
	b := open(t, dir)
	create(t, b, "a", "x")
	again, err := storage.Open(t.Context(), storage.Config{URL: b.String()})
	if err != nil {
		t.Fatal(err)
	}
	wantKeys(t, again, "a")
	if again.String() != b.String() {
		t.Errorf("%s became %s", b, again)
	}
}

func TestTemporary(t *testing.T) {
	plain := errors.New("plain")
	marked := storage.MarkTemporary(plain)
	if storage.Temporary(plain) || storage.Temporary(nil) || !storage.Temporary(marked) {
		t.Error("a mark is seen where there is none, or not where there is one")
	}
	if marked.Error() != "plain" || !errors.Is(marked, plain) {
		t.Errorf("the mark changed the error to %v", marked)
	}
	if storage.MarkTemporary(nil) != nil {
		t.Error("a mark made an error of nothing")
	}
	if storage.Temporary(storage.MarkTemporary(t.Context().Err())) {
		t.Error("no error is temporary")
	}
}
