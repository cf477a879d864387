package storage_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"pitr/internal/hint"
	"pitr/storage"
	"pitr/storage/storagetest/azureserver"
)

func countNew(n *atomic.Int64) func(net.Conn, http.ConnState) {
	return func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			n.Add(1)
		}
	}
}

// noAzureEnvironment hides what the environment of the tests may hold.
func noAzureEnvironment(t *testing.T) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "AZURE_") || strings.HasPrefix(name, "IDENTITY_") || strings.HasPrefix(name, "MSI_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
}

func secretFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fakeAzure is the configuration of a store at an address where anything may be.
func fakeAzure(t *testing.T, endpoint, url string) storage.Config {
	t.Helper()
	key := base64.StdEncoding.EncodeToString([]byte("SECRETSECRETSECRETSECRETSECRETSE"))
	return storage.Config{URL: url, Azure: storage.AzureConfig{Account: "acct", KeyFile: secretFile(t, key), Endpoint: endpoint}}
}

func signature(t *testing.T, server *azureserver.Server, c storage.Config, permissions sas.ContainerPermissions, end time.Time) string {
	t.Helper()
	credential, err := blob.NewSharedKeyCredential(azureserver.Account, server.Key())
	if err != nil {
		t.Fatal(err)
	}
	q, err := sas.BlobSignatureValues{
		Version: sas.Version, ContainerName: strings.TrimPrefix(c.URL, "azure://"), Permissions: permissions.String(),
		StartTime: end.Add(-time.Hour * 24).UTC(), ExpiryTime: end.UTC(),
	}.SignWithSharedKey(credential)
	if err != nil {
		t.Fatal(err)
	}
	return q.Encode()
}

// use stores, lists, reads and deletes.
func use(t *testing.T, b storage.Bucket) {
	t.Helper()
	for _, key := range []string{"a", "b c", "d/e"} {
		create(t, b, key, key)
		if got, err := read(b, key); err != nil || got != key {
			t.Fatalf("%q, %v", got, err)
		}
	}
	create(t, b, "large", string(randomBytes(9<<20)))
	wantKeys(t, b, "a", "b c", "d/e", "large")
	if err := b.Delete(t.Context(), "a", "b c", "large"); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(t.Context(), "d/e"); err != nil {
		t.Fatal(err)
	}
	wantKeys(t, b)
}

var allRights = sas.ContainerPermissions{Read: true, Add: true, Create: true, Write: true, Delete: true, List: true}

// Every way to log in with a key or signature works for every operation.
func TestAzureLogins(t *testing.T) {
	server := azureserver.Start(t)
	tomorrow := time.Now().Add(24 * time.Hour)
	endpoint := server.Endpoint
	for _, c := range []struct {
		name  string
		login func(t *testing.T, c *storage.Config)
	}{
		{"key file", func(*testing.T, *storage.Config) {}},
		{"signature file", func(t *testing.T, c *storage.Config) {
			c.Azure.KeyFile, c.Azure.SASFile = "", secretFile(t, signature(t, server, *c, allRights, tomorrow)+"\n")
		}},
		{"signature file as a URL", func(t *testing.T, c *storage.Config) {
			c.Azure.KeyFile, c.Azure.SASFile = "", secretFile(t, endpoint+"?"+signature(t, server, *c, allRights, tomorrow))
		}},
		{"key in the environment", func(t *testing.T, c *storage.Config) {
			c.Azure = storage.AzureConfig{}
			t.Setenv("AZURE_STORAGE_ACCOUNT", azureserver.Account)
			t.Setenv("AZURE_STORAGE_KEY", server.Key())
			t.Setenv("AZURE_STORAGE_SERVICE_ENDPOINT", endpoint)
		}},
		{"access key in the environment", func(t *testing.T, c *storage.Config) {
			c.Azure.KeyFile = ""
			t.Setenv("AZURE_STORAGE_ACCESS_KEY", server.Key())
		}},
		{"signature in the environment", func(t *testing.T, c *storage.Config) {
			c.Azure.KeyFile = ""
			t.Setenv("AZURE_STORAGE_SAS_TOKEN", "?"+signature(t, server, *c, allRights, tomorrow))
		}},
		{"connection string", func(t *testing.T, c *storage.Config) {
			c.Azure = storage.AzureConfig{}
			t.Setenv("AZURE_STORAGE_CONNECTION_STRING", "DefaultEndpointsProtocol=http;AccountName="+azureserver.Account+";AccountKey="+server.Key()+";BlobEndpoint="+endpoint+";")
		}},
		{"connection string with a signature", func(t *testing.T, c *storage.Config) {
			s := signature(t, server, *c, allRights, tomorrow)
			c.Azure = storage.AzureConfig{}
			t.Setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName="+azureserver.Account+";BlobEndpoint="+endpoint+";SharedAccessSignature="+s)
		}},
		{"a file before the environment", func(t *testing.T, c *storage.Config) {
			t.Setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=other;AccountKey=b3RoZXI=")
			t.Setenv("AZURE_STORAGE_KEY", "b3RoZXI=")
			t.Setenv("AZURE_STORAGE_ACCOUNT", "other")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			noAzureEnvironment(t)
			config := server.Config(t)
			c.login(t, &config)
			use(t, openConfig(t, config))
		})
	}
}

// A credential in a file is read again when the file changes, as long as it makes sense.
func TestAzureCredentialReplaced(t *testing.T) {
	noAzureEnvironment(t)
	server := azureserver.Start(t)
	c := server.Config(t)
	expired := signature(t, server, c, allRights, time.Now().Add(-time.Hour))
	valid := signature(t, server, c, allRights, time.Now().Add(24*time.Hour))
	wrong := base64.StdEncoding.EncodeToString([]byte("another key"))
	for name, files := range map[string]struct {
		bad, good string
		config    func(*storage.AzureConfig, string)
	}{
		"signature": {expired, valid, func(c *storage.AzureConfig, path string) { c.SASFile = path }},
		"key":       {wrong, server.Key(), func(c *storage.AzureConfig, path string) { c.KeyFile = path }},
	} {
		t.Run(name, func(t *testing.T) {
			c := c
			c.Azure.KeyFile = ""
			path := secretFile(t, files.bad)
			files.config(&c.Azure, path)
			b := openConfig(t, c)
			if _, err := keys(b); err == nil {
				t.Fatal("the bad credential was good enough")
			}
			for _, text := range []string{files.good, "nonsense is not taken", ""} {
				// Replaced as tools do it: the name leads to another file.
				if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(path+".new", path); err != nil {
					t.Fatal(err)
				}
				use(t, b)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			use(t, b)
		})
	}
}

// machine is the service of a machine in Azure that gives tokens to whoever asks there (the form of App Service, which the
// SDK takes from the environment). They end so soon that each is renewed for the next request.
type machine struct {
	asked  atomic.Int64
	client atomic.Value // the identity asked for
	status atomic.Int64 // other than 0: the answer
}

func (m *machine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.asked.Add(1)
	m.client.Store(r.URL.Query().Get("client_id"))
	if status := m.status.Load(); status != 0 {
		http.Error(w, `{"error":"refused"}`, int(status))
		return
	}
	now := time.Now()
	claims, _ := json.Marshal(map[string]any{
		"aud": "https://storage.azure.com", "iss": "https://sts.windows.net/11111111-1111-1111-1111-111111111111/",
		"iat": now.Unix() - 60, "nbf": now.Unix() - 60, "exp": now.Unix() + 3,
	})
	encode := base64.RawURLEncoding.EncodeToString
	token := encode([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + encode(claims) + "." + encode([]byte("unsigned"))
	fmt.Fprintf(w, `{"access_token":%q,"expires_on":"%d","resource":"https://storage.azure.com","token_type":"Bearer"}`, token, now.Unix()+3)
}

func TestAzureManagedIdentity(t *testing.T) {
	server := azureserver.StartTLS(t)
	for name, identity := range map[string]string{"of the machine": "system", "by its client ID": "22222222-2222-2222-2222-222222222222", "found": ""} {
		t.Run(name, func(t *testing.T) {
			noAzureEnvironment(t)
			m := &machine{}
			at := httptest.NewServer(m)
			defer at.Close()
			t.Setenv("IDENTITY_ENDPOINT", at.URL)
			t.Setenv("IDENTITY_HEADER", "x")
			c := server.Config(t)
			c.Azure.KeyFile, c.Azure.ManagedIdentity = "", identity
			b := openConfig(t, c)
			use(t, b)
			before := m.asked.Load()
			if before == 0 {
				t.Error("asked for no token")
			}
			if identity != "system" {
				if got := m.client.Load(); identity != "" && got != identity {
					t.Errorf("asked for identity %v", got)
				}
				return
			}
			time.Sleep(4 * time.Second) // the token has ended
			use(t, b)
			if got := m.asked.Load(); got <= before {
				t.Errorf("asked for %d tokens, then %d: not renewed", before, got)
			}
			m.status.Store(http.StatusBadRequest)
			time.Sleep(4 * time.Second)
			_, err := keys(b)
			if err == nil || storage.Temporary(err) || !strings.Contains(err.Error(), "no token for the managed identity") || hint.Of(err) == "" {
				t.Errorf("error is %v (temporary: %v), hint %s", err, storage.Temporary(err), hint.Of(err))
			}
			if errors.Is(err, storage.ErrNotFound) {
				t.Error("it says that something is not there")
			}
		})
	}
}
