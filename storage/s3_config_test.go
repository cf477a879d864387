package storage_test

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pitr/internal/hint"
	"pitr/storage"
	"pitr/storage/storagetest/s3server"
)

func TestS3OverTLS(t *testing.T) {
	server := s3server.Start(t)
	front := httptest.NewUnstartedServer(newS3Proxy(t, server))
	front.Config.ErrorLog = log.New(io.Discard, "", 0) // that the client refuses the certificate is wanted
	front.StartTLS()
	t.Cleanup(front.Close)
	c := server.Bucket(t, "tls", "p")
	c.S3.Endpoint = front.URL
	err := openBucket(t, c).Create(t.Context(), "a", strings.NewReader("x"))
	if err == nil || storage.Temporary(err) || !strings.Contains(hint.Of(err), "storage.s3.ca_file") {
		t.Errorf("without the authority: %v, hint %q", err, hint.Of(err))
	}
	c.S3.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if _, err := storage.Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), "storage.s3.ca_file: open "+c.S3.CAFile) {
		t.Errorf("without the file: %v", err)
	}
	if err := os.WriteFile(c.S3.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	b := openBucket(t, c)
	create(t, b, "a", "x")
	if err := b.Create(t.Context(), "large", io.LimitReader(zeros{}, 30<<20)); err != nil {
		t.Error(err)
	}
	wantKeys(t, b, "a", "large")
}

// TestS3EnvironmentAndRenewal: the ecosystem's own variables and files are honoured, and a key that is changed while the
// bucket is open is taken up.
func TestS3EnvironmentAndRenewal(t *testing.T) {
	server := s3server.Start(t)
	c := server.Bucket(t, "environment", "")
	secret, err := os.ReadFile(c.S3.SecretAccessKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	profile := filepath.Join(dir, "credentials")
	text := fmt.Sprintf("[backup]\naws_access_key_id = %s\naws_secret_access_key = %s\n", c.S3.AccessKeyID, secret)
	if err := os.WriteFile(profile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("environment", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", c.S3.AccessKeyID)
		t.Setenv("AWS_SECRET_ACCESS_KEY", strings.TrimSpace(string(secret)))
		t.Setenv("AWS_ENDPOINT_URL_S3", server.Endpoint)
		t.Setenv("AWS_REGION", "us-east-1")
		b := openBucket(t, storage.Config{URL: c.URL, S3: storage.S3Config{PathStyle: true}})
		create(t, b, "a", "x")
	})
	t.Run("profile", func(t *testing.T) {
		t.Setenv("AWS_SHARED_CREDENTIALS_FILE", profile)
		t.Setenv("AWS_PROFILE", "backup")
		b := openBucket(t, storage.Config{URL: c.URL, S3: storage.S3Config{PathStyle: true, Endpoint: server.Endpoint}})
		wantKeys(t, b, "a")
	})
	t.Run("nothing", func(t *testing.T) {
		t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
		t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(dir, "none"))
		t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "none"))
		b := openBucket(t, storage.Config{URL: c.URL, S3: storage.S3Config{PathStyle: true, Endpoint: server.Endpoint}})
		_, err := b.Stat(t.Context(), "a")
		if err == nil || storage.Temporary(err) || !strings.HasPrefix(hint.Of(err), "set storage.s3.access_key_id") {
			t.Errorf("error is %v, hint %q", err, hint.Of(err))
		}
	})
	t.Run("renewed", func(t *testing.T) {
		c.S3.SecretAccessKeyFile = filepath.Join(dir, "secret")
		write := func(text string) {
			if err := os.WriteFile(c.S3.SecretAccessKeyFile, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("old")
		b := openBucket(t, c)
		if _, err := b.Stat(t.Context(), "a"); err == nil || storage.Temporary(err) {
			t.Fatalf("with a wrong key: %v", err)
		}
		write(string(secret))
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				if _, err := storage.Retry(b, quick).Stat(t.Context(), "a"); err != nil {
					t.Errorf("after the key was changed: %v", err)
				}
			})
		}
		group.Wait()
	})
}

func TestS3ConfigValidate(t *testing.T) {
	for _, c := range []struct {
		url    string
		s3     storage.S3Config
		text   string
		advice string
	}{
		{"s3://bucket", storage.S3Config{}, "", ""},
		{"s3://my.bucket-1/a/b%20c/", storage.S3Config{Endpoint: "https://host:9000", AccessKeyID: "a", SecretAccessKeyFile: "/f", SSE: "aws:kms", KMSKeyID: "k", StorageClass: "GLACIER_IR", ObjectLock: "compliance", ObjectLockDays: 30}, "", ""},
		{"s3:///x", storage.S3Config{}, "url: names no bucket", "write s3://BUCKET or s3://BUCKET/PREFIX"},
		{"s3:bucket", storage.S3Config{}, "url: names no bucket", "write s3://BUCKET or s3://BUCKET/PREFIX"},
		{"s3://b", storage.S3Config{}, `url: no bucket can have the name "b"`, `a bucket's name has at least three of a-z, 0-9, "-" and "."`},
		{"s3://host:9000/bucket", storage.S3Config{}, "url: an s3:// URL names a bucket, not a host and port", "write s3://BUCKET or s3://BUCKET/PREFIX; the host goes into s3.endpoint"},
		{"s3://key:SECRET@bucket/", storage.S3Config{}, "url: an s3:// URL names no user", "write s3://BUCKET or s3://BUCKET/PREFIX; keys go into s3.access_key_id and s3.secret_access_key_file"},
		{"s3://bucket/?region=x", storage.S3Config{}, `url: "?" or "#" in an s3:// URL`, "write them %3F and %23 where they are part of the prefix"},
		{"s3://bucket/a//b", storage.S3Config{}, `url: the prefix: invalid key "a//b": a component is empty`, ""},
		{"s3://bucket/" + strings.Repeat("x", 256), storage.S3Config{}, "url: the prefix is longer than 255 bytes", ""},
		{"s3://bucket", storage.S3Config{Endpoint: "host:9000"}, "s3.endpoint: is not the address of a server", "write https://HOST or https://HOST:PORT"},
		{"s3://bucket", storage.S3Config{Endpoint: "https://u:SECRET@host"}, "s3.endpoint: is not the address of a server", "write https://HOST or https://HOST:PORT"},
		{"s3://bucket", storage.S3Config{AccessKeyID: "a"}, "s3.secret_access_key_file: is not set, though s3.access_key_id is", "name the file with the secret key, or leave both empty to use AWS_* or the role of this machine"},
		{"s3://bucket", storage.S3Config{SecretAccessKeyFile: "/f"}, "s3.access_key_id: is not set, though s3.secret_access_key_file is", "write the identifier that belongs to the secret key"},
		{"s3://bucket", storage.S3Config{SSE: "aes"}, `s3.sse: "aes" is not known`, "write AES256, aws:kms or aws:kms:dsse, or leave it empty"},
		{"s3://bucket", storage.S3Config{SSE: "AES256", KMSKeyID: "k"}, "s3.kms_key_id: is used only with s3.sse aws:kms", "set s3.sse to aws:kms"},
		{"s3://bucket", storage.S3Config{StorageClass: "GLACIER"}, "s3.storage_class: objects of class GLACIER can't be read back at once", "use STANDARD_IA or GLACIER_IR, from which a restore can begin at any time"},
		{"s3://bucket", storage.S3Config{StorageClass: "cold!"}, `s3.storage_class: "cold!" is not the name of one`, "write it as the store does: STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING, GLACIER_IR"},
		{"s3://bucket", storage.S3Config{Tags: map[string]string{"aws:x": ""}}, `s3.tags: "aws:x" can't be one`, "a name has 1 to 128 characters and does not begin with aws:, a value has at most 256"},
		{"s3://bucket", storage.S3Config{ObjectLockDays: 1}, "s3.object_lock_days: is used only with s3.object_lock", "set s3.object_lock to governance or compliance"},
		{"s3://bucket", storage.S3Config{ObjectLock: "governance"}, "s3.object_lock_days: 0 is not between 1 and 36500", "say for how many days nothing may be removed"},
		{"s3://bucket", storage.S3Config{ObjectLock: "yes"}, `s3.object_lock: "yes" is not known`, "write governance or compliance, or leave it empty"},
	} {
		t.Run(c.url+" "+c.text, func(t *testing.T) {
			err := storage.Config{URL: c.url, S3: c.s3}.Validate()
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
		})
	}
}
