package storage_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"pitr/internal/hint"
	"pitr/storage"
	"pitr/storage/storagetest/azureserver"
)

// everyOperation calls each method and gives the errors by its name.
func everyOperation(t *testing.T, b storage.Bucket) map[string]error {
	t.Helper()
	errs := map[string]error{}
	_, errs["get"] = b.Get(t.Context(), "some/key")
	_, errs["range"] = b.GetRange(t.Context(), "some/key", 0, 10)
	_, errs["nothing"] = b.GetRange(t.Context(), "some/key", 0, 0)
	_, errs["stat"] = b.Stat(t.Context(), "some/key")
	errs["create"] = b.Create(t.Context(), "some/key", strings.NewReader("x"))
	errs["create large"] = b.Create(t.Context(), "some/key", strings.NewReader(strings.Repeat("x", 9<<20)))
	errs["delete"] = b.Delete(t.Context(), "some/key")
	errs["delete two"] = b.Delete(t.Context(), "some/key", "other/key")
	_, errs["list"] = keys(b)
	return errs
}

// checkErrors wants each error to name the store, to hold no secret, to carry a hint, and to be temporary or not.
func checkErrors(t *testing.T, b storage.Bucket, errs map[string]error, temporary bool, secrets ...string) {
	t.Helper()
	for op, err := range errs {
		switch {
		case err == nil:
			t.Errorf("%s: no error", op)
			continue
		case errors.Is(err, storage.ErrNotFound), errors.Is(err, storage.ErrExists):
			t.Errorf("%s: %v, which says something else", op, err)
		case storage.Temporary(err) != temporary:
			t.Errorf("%s: %v: temporary: %v, want %v", op, err, !temporary, temporary)
		case hint.Of(err) == "":
			t.Errorf("%s: %v: no hint", op, err)
		case !strings.Contains(err.Error(), b.String()):
			t.Errorf("%s: %v does not name %s", op, err, b)
		case strings.ContainsAny(err.Error(), "\r\n"):
			t.Errorf("%s: more than one line: %v", op, err)
		}
		for _, secret := range append(secrets, "sig=", "SharedKey ") {
			if strings.Contains(err.Error()+hint.Of(err), secret) {
				t.Errorf("%s: a secret is in the text: %v; %s", op, err, hint.Of(err))
			}
		}
	}
}

// What a real server says to the mistakes that people make.
func TestAzureMistakes(t *testing.T) {
	noAzureEnvironment(t)
	server := azureserver.Start(t)
	closed := closedPort(t)
	tls := azureserver.StartTLS(t)
	tomorrow, yesterday := time.Now().Add(24*time.Hour), time.Now().Add(-24*time.Hour).Truncate(time.Second)
	for _, c := range []struct {
		name      string
		change    func(t *testing.T, c *storage.Config) (secret string)
		temporary bool
		stat      string // the error of Stat
		hint      string
	}{
		{"wrong key", func(t *testing.T, c *storage.Config) string {
			c.Azure.KeyFile = secretFile(t, "d3Jvbmc=")
			return "d3Jvbmc="
		}, false, "stat some/key in URL: 403 AuthorizationFailure",
			"account pitrtest refuses the account key in KEYFILE: compare it with az storage account keys list --account-name pitrtest, and look at the account's firewall"},
		{"no such container", func(t *testing.T, c *storage.Config) string {
			c.URL = "azure://nowhere"
			return ""
		}, false, "stat some/key in URL: 404 ContainerNotFound",
			"account pitrtest has no container nowhere: correct storage.url, or create it: az storage container create --account-name pitrtest --name nowhere"},
		{"wrong account", func(t *testing.T, c *storage.Config) string {
			c.Azure.Account = "another"
			c.Azure.Endpoint = strings.Replace(c.Azure.Endpoint, azureserver.Account, "another", 1)
			return ""
		}, false, "", ""},
		{"signature without rights", func(t *testing.T, c *storage.Config) string {
			text := signature(t, server, *c, sas.ContainerPermissions{Add: true}, tomorrow)
			c.Azure.KeyFile, c.Azure.SASFile = "", secretFile(t, text)
			return text[strings.Index(text, "sig=")+4:][:20]
		}, false, "", ""},
		{"signature that has ended", func(t *testing.T, c *storage.Config) string {
			text := signature(t, server, *c, allRights, yesterday)
			c.Azure.KeyFile, c.Azure.SASFile = "", secretFile(t, text)
			return text[strings.Index(text, "sig=")+4:][:20]
		}, false, "", "the shared access signature in SASFILE ended at " + yesterday.UTC().Format(time.RFC3339) + ": put a new one in its place"},
		{"nobody there", func(t *testing.T, c *storage.Config) string {
			c.Azure.Endpoint = "http://" + closed + "/pitrtest"
			return ""
		}, true, "stat some/key in URL: dial tcp " + closed + ": connect: connection refused",
			"http://" + closed + "/pitrtest does not answer as it should: look at the network, the firewall and the proxy (HTTPS_PROXY)"},
		{"nobody there, with a signature", func(t *testing.T, c *storage.Config) string {
			c.Azure.Endpoint = "http://" + closed + "/pitrtest"
			text := signature(t, server, *c, allRights, tomorrow)
			c.Azure.KeyFile, c.Azure.SASFile = "", secretFile(t, text)
			return text[strings.Index(text, "sig=")+4:][:20]
		}, true, "stat some/key in URL: dial tcp " + closed + ": connect: connection refused",
			"http://" + closed + "/pitrtest does not answer as it should: look at the network, the firewall and the proxy (HTTPS_PROXY)"},
		{"https where http is spoken", func(t *testing.T, c *storage.Config) string {
			c.Azure.Endpoint = strings.Replace(c.Azure.Endpoint, "http://", "https://", 1)
			return ""
		}, false, "stat some/key in URL: http: server gave HTTP response to HTTPS client", "ENDPOINT speaks no https: correct storage.azure.endpoint"},
		{"unknown certificate", func(t *testing.T, c *storage.Config) string {
			*c = tls.Config(t)
			c.Azure.CAFile = ""
			return ""
		}, false, "stat some/key in URL: tls: failed to verify certificate: x509: certificate signed by unknown authority",
			"the certificate of ENDPOINT is not trusted: name its authority's in storage.azure.ca_file, and look whether a proxy stands between"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := server.Config(t)
			secret := c.change(t, &config)
			b := openConfig(t, config)
			errs := everyOperation(t, b)
			secrets := []string{server.Key()}
			if secret != "" {
				secrets = append(secrets, secret)
			}
			checkErrors(t, b, errs, c.temporary, secrets...)
			replace := strings.NewReplacer("URL", config.URL, "KEYFILE", config.Azure.KeyFile, "SASFILE", config.Azure.SASFile, "ENDPOINT", config.Azure.Endpoint)
			if c.stat != "" {
				wantText(t, errs["stat"], replace.Replace(c.stat), replace.Replace(c.hint))
			} else if c.hint != "" && hint.Of(errs["stat"]) != replace.Replace(c.hint) {
				t.Errorf("hint is %s, want %s", hint.Of(errs["stat"]), replace.Replace(c.hint))
			}
			t.Logf("%v\nHINT: %s", errs["create"], hint.Of(errs["create"]))
		})
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A container that goes while it is in use is not one in which nothing is.
func TestAzureVanished(t *testing.T) {
	server := azureserver.Start(t)
	c := server.Config(t)
	b := openConfig(t, c)
	create(t, b, "some/key", "x")
	name := strings.TrimPrefix(c.URL, "azure://")
	if _, err := server.Client(t, name).Delete(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	errs := everyOperation(t, b)
	checkErrors(t, b, errs, false)
	for op, err := range errs {
		if !errors.Is(err, storage.ErrVanished) {
			t.Errorf("%s: %v, want ErrVanished", op, err)
		}
	}
	wantText(t, errs["stat"], "stat some/key in "+c.URL+": the store has vanished: 404 ContainerNotFound",
		"container "+name+" of account pitrtest was there before: find out who deleted it; az storage container restore brings it back where soft delete is on")
}

// What the emulator can't be made to say. The texts are those of Azure's documentation.
func TestAzureAnswers(t *testing.T) {
	noAzureEnvironment(t)
	const message = "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>%s</Code><Message>What went wrong.\nRequestId:1\nTime:now</Message><AuthenticationErrorDetail>SECRETDETAIL</AuthenticationErrorDetail></Error>"
	for _, c := range []struct {
		status    int
		code      string
		date      time.Duration // of the service's clock, from ours
		temporary bool
		text      string // of List, after the URL
		hint      string
	}{
		{403, "AuthenticationFailed", 0, false, "403 AuthenticationFailed: What went wrong",
			"account acct refuses the account key in KEYFILE: compare it with az storage account keys list --account-name acct, and look at the account's firewall"},
		{403, "AuthenticationFailed", 20 * time.Minute, false, "403 AuthenticationFailed: What went wrong",
			"the clock of this host is 20m0s behind the service's: set it (timedatectl set-ntp true)"},
		{403, "AuthenticationFailed", -20 * time.Minute, false, "403 AuthenticationFailed: What went wrong",
			"the clock of this host is 20m0s ahead of the service's: set it (timedatectl set-ntp true)"},
		{403, "AuthorizationPermissionMismatch", 0, false, "403 AuthorizationPermissionMismatch: What went wrong",
			"the account key in KEYFILE may not do this in container ccc of account acct: look at the account's rules"},
		{403, "KeyBasedAuthenticationNotPermitted", 0, false, "403 KeyBasedAuthenticationNotPermitted: What went wrong",
			"account acct refuses keys and signatures made with them: use storage.azure.managed_identity"},
		{409, "ContainerBeingDeleted", 0, false, "409 ContainerBeingDeleted: What went wrong",
			"account acct has no container ccc: correct storage.url, or create it: az storage container create --account-name acct --name ccc"},
		{409, "BlobImmutableDueToPolicy", 0, false, "409 BlobImmutableDueToPolicy: What went wrong",
			"a retention policy or legal hold of container ccc keeps the object: shorten storage.azure.immutable_days, or lengthen backup.retention"},
		{409, "BlobArchived", 0, false, "409 BlobArchived: What went wrong",
			"the blob was moved to the archive tier: bring it back with az storage blob set-tier --tier Hot, which takes hours, and take the container out of that lifecycle rule"},
		{400, "InvalidHeaderValue", 0, false, "400 InvalidHeaderValue: What went wrong",
			"the service at ENDPOINT does not know a part of the request: look whether access_tier, tags, encryption_scope and immutable_days fit the account; azurite needs --skipApiVersionCheck"},
		{503, "ServerBusy", 0, true, "503 ServerBusy: What went wrong",
			"the service is overloaded or limits account acct: look at Azure's status page and the account's metrics"},
		{500, "OperationTimedOut", 0, true, "500 OperationTimedOut: What went wrong",
			"the service is overloaded or limits account acct: look at Azure's status page and the account's metrics"},
		{429, "", 0, true, "429 Too Many Requests: What went wrong", "the service at ENDPOINT is overloaded or out of order: look at Azure's status page and the account's metrics"},
		{502, "", 0, true, "502 Bad Gateway: What went wrong", "the service at ENDPOINT is overloaded or out of order: look at Azure's status page and the account's metrics"},
	} {
		t.Run(fmt.Sprint(c.status, c.code, c.date), func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Date", time.Now().Add(c.date).UTC().Format(http.TimeFormat))
				w.Header().Set("x-ms-error-code", c.code)
				w.Header().Set("Content-Type", "application/xml")
				w.WriteHeader(c.status)
				fmt.Fprintf(w, message, c.code)
			}))
			defer server.Close()
			config := fakeAzure(t, server.URL, "azure://ccc")
			b := openConfig(t, config)
			errs := everyOperation(t, b)
			checkErrors(t, b, errs, c.temporary, "SECRET", "U0VDUkVU")
			replace := strings.NewReplacer("KEYFILE", config.Azure.KeyFile, "ENDPOINT", server.URL)
			wantText(t, errs["list"], "list azure://ccc: "+c.text, replace.Replace(c.hint))
		})
	}
}

// A 404 whose reason was lost on the way does not pass for a missing object while the container is not there.
func TestAzureNakedNotFound(t *testing.T) {
	there := true
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Query().Get("restype") != "container":
			w.WriteHeader(http.StatusNotFound)
		case there:
			w.WriteHeader(http.StatusOK)
		default:
			w.Header().Set("x-ms-error-code", "ContainerNotFound")
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer server.Close()
	b := openConfig(t, fakeAzure(t, server.URL, "azure://ccc"))
	for _, there = range []bool{true, false} {
		_, err := b.Stat(t.Context(), "key")
		if errors.Is(err, storage.ErrNotFound) != there {
			t.Errorf("container there: %v; error: %v", there, err)
		}
		_, err = b.Get(t.Context(), "key")
		if errors.Is(err, storage.ErrNotFound) != there {
			t.Errorf("container there: %v; error: %v", there, err)
		}
		if err := b.Delete(t.Context(), "key"); (err == nil) != there {
			t.Errorf("container there: %v; error: %v", there, err)
		}
	}
}

func TestAzureConfig(t *testing.T) {
	noAzureEnvironment(t)
	const urlHint = "write azure://CONTAINER/PREFIX; the account goes into storage.azure.account"
	const endpointHint = "write https://ACCOUNT.blob.core.windows.net, or what your cloud has in its place; for an emulator http://HOST:PORT/ACCOUNT"
	const tagsHint = "an object has at most 10 tags, with names of 1 to 128 and values of up to 256 letters, digits, spaces and + - . / : = _"
	const nameHint = "a container has 3 to 63 lower-case letters, digits and single hyphens, with no hyphen first or last"
	for _, c := range []struct {
		url          string
		azure        storage.AzureConfig
		text, advice string
	}{
		{"azure://container", storage.AzureConfig{}, "", ""},
		{"azure://container/some/pre%20fix/", storage.AzureConfig{Account: "acct1", Endpoint: "https://acct1.blob.core.chinacloudapi.cn", ManagedIdentity: "system",
			AccessTier: "cool", Tags: map[string]string{"a b": "c/d"}, EncryptionScope: "s", ImmutableDays: 30, ImmutableLocked: true}, "", ""},
		{"azure:///prefix", storage.AzureConfig{}, "url: the container is missing", urlHint},
		{"azure:container", storage.AzureConfig{}, "url: the container is missing", urlHint},
		{"azure://acct:SECRET@container", storage.AzureConfig{}, "url: an azure:// URL names no user or port", urlHint},
		{"azure://container:80/x", storage.AzureConfig{}, "url: an azure:// URL names no user or port", urlHint},
		{"azure://container/x?sig=SECRET", storage.AzureConfig{}, `url: "?" or "#" in an azure:// URL`, "a shared access signature goes into the file that storage.azure.sas_file names"},
		{"azure://Container", storage.AzureConfig{}, `url: "Container" cannot be a container`, nameHint},
		{"azure://a--b", storage.AzureConfig{}, `url: "a--b" cannot be a container`, nameHint},
		{"azure://ab", storage.AzureConfig{}, `url: "ab" cannot be a container`, nameHint},
		{"azure://abc-", storage.AzureConfig{}, `url: "abc-" cannot be a container`, nameHint},
		{"azure://container/a//b", storage.AzureConfig{}, `url: the prefix: invalid key "a//b": a component is empty`, urlHint},
		{"azure://container/a%0Ab", storage.AzureConfig{}, "url: the prefix has a control character or backslash, which no name of a blob can have", urlHint},
		{"azure://container/" + strings.Repeat("x/", 128) + "x", storage.AzureConfig{}, "url: the prefix is longer than 255 bytes", urlHint},
		{"azure://container", storage.AzureConfig{Account: "My.Account"}, `azure.account: "My.Account" cannot be a storage account`, "its name has 3 to 24 lower-case letters and digits"},
		{"azure://container", storage.AzureConfig{Endpoint: "acct.blob.core.windows.net"}, "azure.endpoint: is not a URL with https or http", endpointHint},
		{"azure://container", storage.AzureConfig{Endpoint: "https://x/?sig=SECRET"}, `azure.endpoint: holds a user, "?" or "#"`, "a shared access signature goes into the file that storage.azure.sas_file names"},
		{"azure://container", storage.AzureConfig{Endpoint: "https://SECRET%zz/"}, "azure.endpoint: is not a URL", endpointHint},
		{"azure://container", storage.AzureConfig{KeyFile: "/k", SASFile: "/s"}, "azure.sas_file: is set, and key_file too", "keep one of them"},
		{"azure://container", storage.AzureConfig{KeyFile: "/k", ManagedIdentity: "system"}, "azure.managed_identity: is set, and key_file or sas_file too", "keep one of them"},
		{"azure://container", storage.AzureConfig{Endpoint: "http://x", ManagedIdentity: "system"}, "azure.managed_identity: needs an endpoint with https",
			"tokens are never sent in the clear: write https:// in storage.azure.endpoint, or use key_file"},
		{"azure://container", storage.AzureConfig{AccessTier: "archive"}, `azure.access_tier: "archive" is not known`,
			"write hot, cool or cold, or leave it empty for the account's default; what is in the archive tier can't be read for hours"},
		{"azure://container", storage.AzureConfig{ImmutableDays: -1}, "azure.immutable_days: -1 is not between 0 and 146000", "it is for how many days nobody can delete or change an object; 0: no such protection"},
		{"azure://container", storage.AzureConfig{ImmutableLocked: true}, "azure.immutable_locked: is set, but immutable_days is not", "set storage.azure.immutable_days as well"},
		{"azure://container", storage.AzureConfig{Tags: map[string]string{"": "x"}}, `azure.tags: "": "x" cannot be a tag`, tagsHint},
		{"azure://container", storage.AzureConfig{Tags: map[string]string{"a": "ä"}}, `azure.tags: "a": "ä" cannot be a tag`, tagsHint},
		// Another scheme's section is not looked at.
		{"file:///x", storage.AzureConfig{AccessTier: "nonsense"}, "", ""},
	} {
		err := storage.Config{URL: c.url, Azure: c.azure}.Validate()
		if c.text == "" {
			if err != nil {
				t.Errorf("%s, %+v: %v", c.url, c.azure, err)
			}
			continue
		}
		wantText(t, err, c.text, c.advice)
		if err != nil && strings.Contains(err.Error()+hint.Of(err), "SECRET") {
			t.Error("the secret is in the text")
		}
	}
}

// What Open finds wrong, looking at files and the environment.
func TestAzureOpen(t *testing.T) {
	key := "U0VDUkVU"
	for _, c := range []struct {
		name         string
		azure        func(t *testing.T) storage.AzureConfig
		env          map[string]string
		text, advice string
	}{
		{"no account", func(t *testing.T) storage.AzureConfig { return storage.AzureConfig{} }, nil, "storage.azure.account: is not set",
			"set storage.azure.account to the name of the storage account, or AZURE_STORAGE_ACCOUNT in the environment"},
		{"account of the endpoint", func(t *testing.T) storage.AzureConfig {
			return storage.AzureConfig{KeyFile: secretFile(t, key), Endpoint: "https://acct.blob.core.usgovcloudapi.net/"}
		}, nil, "", ""},
		{"no key", func(t *testing.T) storage.AzureConfig {
			return storage.AzureConfig{Account: "acct", KeyFile: "/nonexistent/key"}
		}, nil, "storage.azure.key_file: stat /nonexistent/key: no such file or directory", ""},
		{"empty key", func(t *testing.T) storage.AzureConfig {
			return storage.AzureConfig{Account: "acct", KeyFile: secretFile(t, "\n")}
		}, nil, "storage.azure.key_file: FILE is empty", "write the credential into it, and nothing else"},
		{"a password for a key", func(t *testing.T) storage.AzureConfig {
			return storage.AzureConfig{Account: "acct", KeyFile: secretFile(t, "SECRET: no base64")}
		}, nil, "storage.azure.key_file: FILE holds no account key", "an account key is 88 characters of base64, alone in the file: az storage account keys list"},
		{"a key for a signature", func(t *testing.T) storage.AzureConfig {
			return storage.AzureConfig{Account: "acct", SASFile: secretFile(t, key)}
		}, nil, "storage.azure.sas_file: FILE: is not a shared access signature", "it looks like sv=…&se=…&sp=racwdl&sig=…: az storage container generate-sas"},
		{"a bad key in the environment", func(t *testing.T) storage.AzureConfig { return storage.AzureConfig{Account: "acct"} },
			map[string]string{"AZURE_STORAGE_KEY": "SECRET!"}, "storage.azure: the account key in AZURE_STORAGE_KEY is not one",
			"an account key is 88 characters of base64: az storage account keys list --account-name acct"},
		{"a bad signature in the environment", func(t *testing.T) storage.AzureConfig { return storage.AzureConfig{Account: "acct"} },
			map[string]string{"AZURE_STORAGE_SAS_TOKEN": "SECRET!"}, "storage.azure: the shared access signature in AZURE_STORAGE_SAS_TOKEN: is not a shared access signature",
			"it looks like sv=…&se=…&sp=racwdl&sig=…: az storage container generate-sas"},
		{"a bad connection string", func(t *testing.T) storage.AzureConfig { return storage.AzureConfig{} },
			map[string]string{"AZURE_STORAGE_CONNECTION_STRING": "SECRET"}, "storage.azure: AZURE_STORAGE_CONNECTION_STRING: is not a list of NAME=VALUE, separated by semicolons", ""},
		{"a connection string without a key", func(t *testing.T) storage.AzureConfig { return storage.AzureConfig{} },
			map[string]string{"AZURE_STORAGE_CONNECTION_STRING": "AccountName=acct"}, "storage.azure: AZURE_STORAGE_CONNECTION_STRING: has neither AccountKey nor SharedAccessSignature", ""},
		{"a connection string of another account", func(t *testing.T) storage.AzureConfig { return storage.AzureConfig{Account: "acct"} },
			map[string]string{"AZURE_STORAGE_CONNECTION_STRING": "AccountName=other;AccountKey=" + key}, "storage.azure: AZURE_STORAGE_CONNECTION_STRING: is for account other, but azure.account is acct",
			"unset the variable, or give the credential of acct in storage.azure.key_file or sas_file"},
		{"no certificate", func(t *testing.T) storage.AzureConfig {
			return storage.AzureConfig{Account: "acct", KeyFile: secretFile(t, key), CAFile: secretFile(t, "none")}
		}, nil, "storage.azure.ca_file: CAFILE holds no certificate", "it must be in PEM form: -----BEGIN CERTIFICATE-----"},
		{"no credential for http", func(t *testing.T) storage.AzureConfig {
			return storage.AzureConfig{Account: "acct", Endpoint: "http://127.0.0.1:1/acct"}
		}, nil, "storage.azure: no credential for http://127.0.0.1:1/acct", "set storage.azure.key_file or sas_file: tokens of an identity are only sent over https"},
	} {
		t.Run(c.name, func(t *testing.T) {
			noAzureEnvironment(t)
			for name, value := range c.env {
				t.Setenv(name, value)
			}
			config := storage.Config{URL: "azure://container/a%20b", Azure: c.azure(t)}
			b, err := storage.Open(t.Context(), config)
			if c.text == "" {
				if err != nil {
					t.Fatal(err)
				}
				if b.String() != config.URL {
					t.Errorf("%s became %s", config.URL, b)
				}
				return
			}
			replace := strings.NewReplacer("CAFILE", config.Azure.CAFile, "FILE", config.Azure.KeyFile+config.Azure.SASFile)
			wantText(t, err, replace.Replace(c.text), c.advice)
			if strings.Contains(err.Error()+hint.Of(err), "SECRET") {
				t.Error("the secret is in the text")
			}
		})
	}
}
