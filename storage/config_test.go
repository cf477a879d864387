package storage_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"pitr/internal/hint"
	"pitr/storage"
)

const writeURL = "write file:///absolute/path, s3://BUCKET/PREFIX, azure://CONTAINER/PREFIX or swift://CONTAINER/PREFIX"

func TestConfigKeys(t *testing.T) {
	const text = `url: file:///x
s3: {endpoint: a, region: b, path_style: true, access_key_id: c, secret_access_key_file: d, ca_file: e,
  sse: p, kms_key_id: q, storage_class: r, tags: {s: t}, object_lock: u, object_lock_days: 5}
azure: {account: f, key_file: g, sas_file: h, endpoint: i, managed_identity: p, ca_file: q, access_tier: r, tags: {s: t}, encryption_scope: u, immutable_days: 1, immutable_locked: true}
swift: {auth_url: j, username: k, password_file: l, tenant: m, domain: n, region: o, auth_version: 3, user_id: p, tenant_id: q,
  tenant_domain: r, application_credential_id: s, application_credential_name: t, application_credential_secret_file: u,
  trust_id: v, endpoint_type: w, storage_policy: x, ca_file: y}
`
	var got storage.Config
	if err := yaml.UnmarshalWithOptions([]byte(text), &got, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	want := storage.Config{
		URL: "file:///x",
		S3: storage.S3Config{Endpoint: "a", Region: "b", PathStyle: true, AccessKeyID: "c", SecretAccessKeyFile: "d", CAFile: "e",
			SSE: "p", KMSKeyID: "q", StorageClass: "r", Tags: map[string]string{"s": "t"}, ObjectLock: "u", ObjectLockDays: 5},
		Azure: storage.AzureConfig{Account: "f", KeyFile: "g", SASFile: "h", Endpoint: "i", ManagedIdentity: "p", CAFile: "q",
			AccessTier: "r", Tags: map[string]string{"s": "t"}, EncryptionScope: "u", ImmutableDays: 1, ImmutableLocked: true},
		Swift: storage.SwiftConfig{AuthURL: "j", Username: "k", PasswordFile: "l", Tenant: "m", Domain: "n", Region: "o",
			AuthVersion: 3, UserID: "p", TenantID: "q", TenantDomain: "r", ApplicationCredentialID: "s", ApplicationCredentialName: "t",
			ApplicationCredentialSecretFile: "u", TrustID: "v", EndpointType: "w", StoragePolicy: "x", CAFile: "y"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, want %+v", got, want)
	}
}

func TestConfigValidate(t *testing.T) {
	for _, c := range []struct{ url, text, advice string }{
		{"file:///var/lib/pitr/repo", "", ""},
		{"file:///with%20space/50%25/%3F%23", "", ""},
		{"", "url: is not set", writeURL},
		{"/var/lib/pitr", "url: has no scheme", writeURL},
		{"ftp://host/x", `url: scheme "ftp" is not known`, writeURL},
		{"file://var/lib/pitr", "url: a file:// URL names no host or user", "write file:///absolute/path, with three slashes"},
		{"file://u:SECRET@/x", "url: a file:// URL names no host or user", "write file:///absolute/path, with three slashes"},
		{"file:relative", "url: the path is not absolute", "write file:///absolute/path"},
		{"file:///", "url: the root directory cannot be a store", "name a directory of its own"},
		{"file:///x/..", "url: the root directory cannot be a store", "name a directory of its own"},
		{"file:///a?b", `url: "?" or "#" in a file:// URL`, "write them %3F and %23 where they are part of the path"},
		{"file:///a#b", `url: "?" or "#" in a file:// URL`, "write them %3F and %23 where they are part of the path"},
		{"file:///a%00b", "url: the path contains a NUL", "write file:///absolute/path"},
		{"file:///50%off", `url: invalid URL escape "%of"`, writeURL + "; a percent sign in a path is written %25"},
		{"s3://k:SECRET@bucket:port/", "url: invalid port \":port\" after host", writeURL + "; a percent sign in a path is written %25"},
		{"swift://container", "", ""},
		{"swift://My_Container/some/prefix/", "", ""},
		{"swift:container", "url: no container is named", "write swift://CONTAINER/PREFIX"},
		{"swift:///prefix", "url: no container is named", "write swift://CONTAINER/PREFIX"},
		{"swift://u:SECRET@c/p", "url: a swift:// URL names no user", "write swift://CONTAINER/PREFIX; user and password belong to storage.swift"},
		{"swift://c:8080/p", "url: a swift:// URL names no port", "write swift://CONTAINER/PREFIX; the server is found through storage.swift.auth_url"},
		{"swift://c/p?q", `url: "?" or "#" in a swift:// URL`, "write them %3F and %23 where they are part of the prefix"},
		{"swift://c/a//b", `url: invalid key "a//b": a component is empty`, ""},
		{"swift://c/.segments", `url: invalid key ".segments": a component begins with a dot`, ""},
		{"swift://c/" + strings.Repeat("x", 201), "url: the prefix is longer than 200 bytes", ""},
		{"swift://" + strings.Repeat("c", 257), "url: the container's name is longer than 256 bytes", ""},
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
