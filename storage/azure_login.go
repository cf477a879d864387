package storage

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"pitr/internal/hint"
)

// azureLogin is who asks the service, and where. Exactly one of key, sas and token is set.
type azureLogin struct {
	account  string
	endpoint string // of the blob service, without a "/" at the end

	key   *blob.SharedKeyCredential
	sas   *azureSecret
	token azcore.TokenCredential

	renew *azureSecret // the file that key was read from; nil where it came from the environment
	kind  string       // of credential, for messages
}

// findAzureLogin takes what c says, and what it leaves open from the environment that Azure's own tools use: a connection
// string, a key, a shared access signature, or else the identities that the SDK knows how to find.
func findAzureLogin(c AzureConfig, options azcore.ClientOptions) (*azureLogin, error) {
	l := &azureLogin{account: c.Account, endpoint: c.Endpoint}
	var key, sas string
	switch {
	case c.KeyFile != "":
		l.renew, l.kind = &azureSecret{path: c.KeyFile}, "the account key in "+c.KeyFile
		var err error
		if key, err = l.renew.read(); err != nil {
			return nil, fmt.Errorf("azure.key_file: %w", err)
		}
	case c.SASFile != "":
		l.sas, l.kind = &azureSecret{path: c.SASFile, clean: cleanSAS}, "the shared access signature in "+c.SASFile
		if _, err := l.sas.read(); err != nil {
			return nil, fmt.Errorf("azure.sas_file: %w", err)
		}
	case c.ManagedIdentity != "":
	case os.Getenv("AZURE_STORAGE_CONNECTION_STRING") != "":
		var err error
		if key, sas, err = l.connectionString(os.Getenv("AZURE_STORAGE_CONNECTION_STRING")); err != nil {
			return nil, fmt.Errorf("azure: AZURE_STORAGE_CONNECTION_STRING: %w", err)
		}
		l.kind = "the credential in AZURE_STORAGE_CONNECTION_STRING"
	case os.Getenv("AZURE_STORAGE_KEY") != "":
		key, l.kind = os.Getenv("AZURE_STORAGE_KEY"), "the account key in AZURE_STORAGE_KEY"
	case os.Getenv("AZURE_STORAGE_ACCESS_KEY") != "":
		key, l.kind = os.Getenv("AZURE_STORAGE_ACCESS_KEY"), "the account key in AZURE_STORAGE_ACCESS_KEY"
	case os.Getenv("AZURE_STORAGE_SAS_TOKEN") != "":
		sas, l.kind = os.Getenv("AZURE_STORAGE_SAS_TOKEN"), "the shared access signature in AZURE_STORAGE_SAS_TOKEN"
	}
	if err := l.place(); err != nil {
		return nil, err
	}
	var err error
	switch {
	case key != "":
		if l.key, err = blob.NewSharedKeyCredential(l.account, key); err != nil {
			return nil, hint.Wrap(fmt.Errorf("azure: %s is not one", l.kind), "an account key is 88 characters of base64: az storage account keys list --account-name %s", l.account)
		}
	case sas != "":
		if sas, err = cleanSAS(sas); err != nil {
			return nil, fmt.Errorf("azure: %s: %w", l.kind, err)
		}
		l.sas = &azureSecret{text: sas}
	case l.sas == nil:
		return l, l.identity(c.ManagedIdentity, options)
	}
	return l, nil
}

// place completes account and endpoint.
func (l *azureLogin) place() error {
	l.account = cmp.Or(l.account, os.Getenv("AZURE_STORAGE_ACCOUNT"))
	l.endpoint = cmp.Or(l.endpoint, os.Getenv("AZURE_STORAGE_SERVICE_ENDPOINT"))
	if err := checkAzureEndpoint(l.endpoint); err != nil {
		return fmt.Errorf("azure.endpoint: %w", err)
	}
	if l.account == "" && l.endpoint != "" {
		// The usual form is https://ACCOUNT.blob.SUFFIX.
		if u, err := url.Parse(l.endpoint); err == nil {
			if account, rest, _ := strings.Cut(u.Hostname(), "."); strings.HasPrefix(rest, "blob.") {
				l.account = account
			}
		}
	}
	if l.account == "" {
		return hint.Wrap(errors.New("azure.account: is not set"), "set storage.azure.account to the name of the storage account, or AZURE_STORAGE_ACCOUNT in the environment")
	}
	if l.endpoint == "" {
		l.endpoint = "https://" + l.account + ".blob.core.windows.net"
	}
	l.endpoint = strings.TrimSuffix(l.endpoint, "/")
	return nil
}

// connectionString reads what the portal shows as "Connection string". Its errors hold nothing of it.
func (l *azureLogin) connectionString(text string) (key, sas string, err error) {
	parts := make(map[string]string)
	for part := range strings.SplitSeq(text, ";") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok && part != "" {
			return "", "", errors.New("is not a list of NAME=VALUE, separated by semicolons")
		}
		parts[name] = value
	}
	account := parts["AccountName"]
	if l.account != "" && account != "" && l.account != account {
		return "", "", hint.Wrap(fmt.Errorf("is for account %s, but azure.account is %s", account, l.account), "unset the variable, or give the credential of %s in storage.azure.key_file or sas_file", l.account)
	}
	l.account = cmp.Or(l.account, account)
	endpoint := parts["BlobEndpoint"]
	if endpoint == "" && account != "" {
		endpoint = cmp.Or(parts["DefaultEndpointsProtocol"], "https") + "://" + account + ".blob." + cmp.Or(parts["EndpointSuffix"], "core.windows.net")
	}
	l.endpoint = cmp.Or(l.endpoint, endpoint)
	key, sas = parts["AccountKey"], parts["SharedAccessSignature"]
	if key == "" && sas == "" {
		return "", "", errors.New("has neither AccountKey nor SharedAccessSignature")
	}
	return key, sas, nil
}

// identity makes the credential that gets tokens, and renews them, for an identity of the machine, or for the first that the
// SDK finds: in the environment, of the workload, of the machine, of the Azure CLI.
func (l *azureLogin) identity(managed string, options azcore.ClientOptions) (err error) {
	if !strings.HasPrefix(l.endpoint, "https://") {
		return hint.Wrap(fmt.Errorf("azure: no credential for %s", l.endpoint), "set storage.azure.key_file or sas_file: tokens of an identity are only sent over https")
	}
	// The SDK's own waiting for the machine's identity service stays: that is asked rarely, and begins late after a start.
	options.Retry = policy.RetryOptions{}
	if managed == "" {
		l.kind = "the identity found in the environment"
		l.token, err = azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: options})
	} else {
		l.kind = "the managed identity " + managed
		opts := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: options}
		switch {
		case managed == "system":
			l.kind = "the managed identity of this machine"
		case strings.HasPrefix(managed, "/"):
			opts.ID = azidentity.ResourceID(managed)
		default:
			opts.ID = azidentity.ClientID(managed)
		}
		l.token, err = azidentity.NewManagedIdentityCredential(opts)
	}
	if err != nil {
		return fmt.Errorf("azure.managed_identity: %w", err)
	}
	return nil
}

// connect makes the client of a container.
func (l *azureLogin) connect(name string, options azcore.ClientOptions) (*container.Client, error) {
	options.PerCallPolicies = append(options.PerCallPolicies, l)
	opts := &container.ClientOptions{ClientOptions: options}
	at := l.endpoint + "/" + name
	switch {
	case l.key != nil:
		return container.NewClientWithSharedKeyCredential(at, l.key, opts)
	case l.token != nil:
		return container.NewClient(at, l.token, opts)
	}
	return container.NewClientWithNoCredential(at, opts)
}

// batchClient gives the client whose credential the parts of a batch get: they pass no policy.
func (l *azureLogin) batchClient(c *container.Client) (*container.Client, error) {
	if l.sas == nil {
		return c, nil
	}
	sas, err := l.sas.read()
	if err != nil {
		return nil, err
	}
	return container.NewClientWithNoCredential(c.URL()+"?"+sas, nil)
}

// Do is the policy that every request passes: a credential in a file that has changed is renewed, and a shared access
// signature added.
func (l *azureLogin) Do(r *policy.Request) (*http.Response, error) {
	switch {
	case l.renew != nil:
		key, err := l.renew.read()
		if err != nil {
			return nil, err
		}
		if err := l.key.SetAccountKey(key); err != nil {
			return nil, fmt.Errorf("%s is not one", l.kind)
		}
	case l.sas != nil:
		sas, err := l.sas.read()
		if err != nil {
			return nil, err
		}
		u := r.Raw().URL
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += sas
	}
	return r.Next()
}

// expired is when the shared access signature ended, if it has.
func (l *azureLogin) expired() (time.Time, bool) {
	if l.sas == nil {
		return time.Time{}, false
	}
	text, err := l.sas.read()
	if err != nil {
		return time.Time{}, false
	}
	values, err := url.ParseQuery(text)
	if err != nil {
		return time.Time{}, false
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z", time.DateOnly} {
		if end, err := time.Parse(layout, values.Get("se")); err == nil {
			return end, end.Before(time.Now())
		}
	}
	return time.Time{}, false
}

// azureSecret is a secret in a file, which is read again when it has changed.
type azureSecret struct {
	path  string // empty: text never changes
	clean func(string) (string, error)

	mu   sync.Mutex
	text string
	info os.FileInfo // of the file that text was read from
}

func (s *azureSecret) read() (string, error) {
	if s.path == "" {
		return s.text, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := os.Stat(s.path)
	if err == nil && s.info != nil && os.SameFile(info, s.info) && info.ModTime().Equal(s.info.ModTime()) && info.Size() == s.info.Size() {
		return s.text, nil
	}
	var text string
	if err == nil {
		text, err = s.load()
	}
	if err != nil {
		if s.info != nil {
			return s.text, nil // it is just being replaced; if it stays so, what was read is refused some day
		}
		return "", err
	}
	s.text, s.info = text, info
	return text, nil
}

func (s *azureSecret) load() (string, error) {
	data, err := os.ReadFile(s.path)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return "", hint.Wrap(fmt.Errorf("%s is empty", s.path), "write the credential into it, and nothing else")
	}
	if s.clean != nil {
		if text, err = s.clean(text); err != nil {
			return "", fmt.Errorf("%s: %w", s.path, err)
		}
	} else if _, err := base64.StdEncoding.DecodeString(text); err != nil {
		return "", hint.Wrap(fmt.Errorf("%s holds no account key", s.path), "an account key is 88 characters of base64, alone in the file: az storage account keys list")
	}
	return text, nil
}

// cleanSAS takes a shared access signature as the tools print it: alone, after "?", or in a URL.
func cleanSAS(text string) (string, error) {
	if _, query, ok := strings.Cut(text, "?"); ok {
		text = query
	}
	values, err := url.ParseQuery(text)
	if err != nil || values.Get("sig") == "" || values.Get("sv") == "" {
		return "", hint.Wrap(errors.New("is not a shared access signature"), "it looks like sv=…&se=…&sp=racwdl&sig=…: az storage container generate-sas")
	}
	return text, nil
}
