package storage

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"pitr/internal/hint"
)

const (
	azureDialTimeout = 15 * time.Second
	azureHandshake   = 15 * time.Second
	azureStall       = 90 * time.Second // without a byte, in either direction
	azureIdle        = 45 * time.Second // less than azureStall: then it is Go that drops an idle connection
	azureConnections = 64               // kept for use again
)

// openAzure makes the bucket, and asks the service nothing: each segment that the server archives is a process of its own.
func openAzure(c AzureConfig, u *url.URL) (Bucket, error) {
	transport, err := azureTransport(c.CAFile)
	if err != nil {
		return nil, err
	}
	options := azcore.ClientOptions{
		Transport: &http.Client{Transport: transport},
		Retry:     policy.RetryOptions{MaxRetries: -1},
		Telemetry: policy.TelemetryOptions{ApplicationID: "pitr"},
	}
	login, err := findAzureLogin(c, options)
	if err != nil {
		return nil, err
	}
	client, err := login.connect(u.Host, options)
	if err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	a := &azure{container: u.Host, login: login, client: client, as: c.attributes()}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		a.prefix = prefix + "/"
	}
	return a, nil
}

func (c AzureConfig) attributes() azureAttributes {
	as := azureAttributes{tags: c.Tags, days: c.ImmutableDays, locked: c.ImmutableLocked}
	for _, tier := range azureTiers() {
		if strings.EqualFold(c.AccessTier, string(tier)) {
			as.tier = &tier
		}
	}
	if c.EncryptionScope != "" {
		as.scope = &blob.CPKScopeInfo{EncryptionScope: &c.EncryptionScope}
	}
	return as
}

// azureTiers are those whose objects can be read at once.
func azureTiers() []blob.AccessTier {
	return []blob.AccessTier{blob.AccessTierHot, blob.AccessTierCool, blob.AccessTierCold}
}

const azureURLHint = "write azure://CONTAINER/PREFIX; the account goes into storage.azure.account"

func checkAzureURL(u *url.URL) error {
	wrong := func(what string) error { return hint.Wrap(errors.New("url: "+what), azureURLHint) }
	switch {
	case u.User != nil, u.Port() != "":
		return wrong("an azure:// URL names no user or port")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return hint.Wrap(errors.New(`url: "?" or "#" in an azure:// URL`), "a shared access signature goes into the file that storage.azure.sas_file names")
	case u.Host == "" || u.Opaque != "":
		return wrong("the container is missing")
	case len(u.Host) < 3, len(u.Host) > 63, strings.Contains(u.Host, "--"), !containerName(u.Host):
		return hint.Wrap(fmt.Errorf("url: %q cannot be a container", u.Host), "a container has 3 to 63 lower-case letters, digits and single hyphens, with no hyphen first or last")
	}
	prefix := strings.Trim(u.Path, "/")
	if prefix == "" {
		return nil
	}
	if len(prefix) > 255 {
		return wrong("the prefix is longer than 255 bytes")
	}
	if strings.ContainsFunc(prefix, func(c rune) bool { return c < ' ' || c == 0x7f || c == '\\' }) {
		return wrong("the prefix has a control character or backslash, which no name of a blob can have")
	}
	if err := CheckKey(prefix); err != nil {
		return hint.Wrap(fmt.Errorf("url: the prefix: %w", err), azureURLHint)
	}
	return nil
}

func containerName(name string) bool {
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && (c != '-' || i == 0 || i == len(name)-1) {
			return false
		}
	}
	return true
}

// check looks for what can't be right; errors begin with the key.
func (c AzureConfig) check() error {
	wrong := func(key, what, advice string) error {
		return hint.Wrap(fmt.Errorf("azure.%s: %s", key, what), "%s", advice)
	}
	if c.Account != "" && !regexp.MustCompile(`^[a-z0-9]{3,24}$`).MatchString(c.Account) {
		return wrong("account", fmt.Sprintf("%q cannot be a storage account", c.Account), "its name has 3 to 24 lower-case letters and digits")
	}
	if err := checkAzureEndpoint(c.Endpoint); err != nil {
		return fmt.Errorf("azure.endpoint: %w", err)
	}
	if c.KeyFile != "" && c.SASFile != "" {
		return wrong("sas_file", "is set, and key_file too", "keep one of them")
	}
	if c.ManagedIdentity != "" {
		switch {
		case c.KeyFile != "" || c.SASFile != "":
			return wrong("managed_identity", "is set, and key_file or sas_file too", "keep one of them")
		case strings.HasPrefix(c.Endpoint, "http://"):
			return wrong("managed_identity", "needs an endpoint with https", "tokens are never sent in the clear: write https:// in storage.azure.endpoint, or use key_file")
		}
	}
	if c.AccessTier != "" && c.attributes().tier == nil {
		return wrong("access_tier", fmt.Sprintf("%q is not known", c.AccessTier), "write hot, cool or cold, or leave it empty for the account's default; what is in the archive tier can't be read for hours")
	}
	if c.ImmutableDays < 0 || c.ImmutableDays > 146_000 {
		return wrong("immutable_days", fmt.Sprintf("%d is not between 0 and 146000", c.ImmutableDays), "it is for how many days nobody can delete or change an object; 0: no such protection")
	}
	if c.ImmutableLocked && c.ImmutableDays == 0 {
		return wrong("immutable_locked", "is set, but immutable_days is not", "set storage.azure.immutable_days as well")
	}
	return checkAzureTags(c.Tags)
}

// checkAzureTags holds tags to the rules for blob index tags: at most 10, names of 1 to 128 and values of up to 256
// letters, digits and a few signs.
func checkAzureTags(tags map[string]string) error {
	allowed := regexp.MustCompile(`^[a-zA-Z0-9 +./:=_-]*$`)
	const advice = "an object has at most 10 tags, with names of 1 to 128 and values of up to 256 letters, digits, spaces and + - . / : = _"
	if len(tags) > 10 {
		return hint.Wrap(fmt.Errorf("azure.tags: %d are too many", len(tags)), advice)
	}
	for name, value := range tags {
		if name == "" || len(name) > 128 || len(value) > 256 || !allowed.MatchString(name) || !allowed.MatchString(value) {
			return hint.Wrap(fmt.Errorf("azure.tags: %q: %q cannot be a tag", name, value), advice)
		}
	}
	return nil
}

func checkAzureEndpoint(endpoint string) error {
	const advice = "write https://ACCOUNT.blob.core.windows.net, or what your cloud has in its place; for an emulator http://HOST:PORT/ACCOUNT"
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return hint.Wrap(errors.New("is not a URL"), advice) // which may hold a secret
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "":
		return hint.Wrap(errors.New("is not a URL with https or http"), advice)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return hint.Wrap(errors.New(`holds a user, "?" or "#"`), "a shared access signature goes into the file that storage.azure.sas_file names")
	}
	return nil
}

// azureTransport connects directly or by the proxy that the environment names, gives up on what does not answer, and lets
// a long transfer take as long as it moves. The certificates in caFile are trusted besides those of the system.
func azureTransport(caFile string) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("azure.ca_file: %w", err)
		}
		if config.RootCAs, err = x509.SystemCertPool(); err != nil {
			config.RootCAs = x509.NewCertPool()
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, hint.Wrap(fmt.Errorf("azure.ca_file: %s holds no certificate", caFile), "it must be in PEM form: -----BEGIN CERTIFICATE-----")
		}
	}
	dialer := &net.Dialer{Timeout: azureDialTimeout}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &movingConn{conn, azureStall}, nil
		},
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   azureHandshake,
		ResponseHeaderTimeout: azureStall,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       azureIdle,
		MaxIdleConns:          azureConnections,
		MaxIdleConnsPerHost:   azureConnections,
	}, nil
}

// movingConn is a connection that fails when nothing moves for too long: a peer that is alive but silent would otherwise
// keep a transfer for ever.
type movingConn struct {
	net.Conn
	stall time.Duration
}

func (c *movingConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write gives the answer its time too: the Read for it has been waiting since before the request.
func (c *movingConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// azureReader is a request's content as the SDK wants it.
func azureReader(content []byte) io.ReadSeekCloser {
	return streaming.NopCloser(bytes.NewReader(content))
}
