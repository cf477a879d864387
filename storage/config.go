package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"pitr/internal/hint"
)

// Config says where the bucket is and how to get in. Secrets are in files, never in the URL. What a store's own section
// leaves empty is taken from the usual environment of that store.
type Config struct {
	URL   string      `yaml:"url"` // file:///absolute/path s3://BUCKET/PREFIX, azure:// or swift://CONTAINER/PREFIX; what is special in URLs is written as %XX there
	S3    S3Config    `yaml:"s3"`
	Azure AzureConfig `yaml:"azure"`
	Swift SwiftConfig `yaml:"swift"`
}

// AzureConfig is for azure://CONTAINER/PREFIX. Of the credentials at most one is set; where none is, the environment is
// asked: AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY (or _ACCESS_KEY), AZURE_STORAGE_SAS_TOKEN, and then
// what the Azure SDK calls its default chain.
type AzureConfig struct {
	Account         string `yaml:"account"`          // empty: AZURE_STORAGE_ACCOUNT, or the endpoint's
	KeyFile         string `yaml:"key_file"`         // holds an account key; read again when it changes
	SASFile         string `yaml:"sas_file"`         // holds a shared access signature; read again when it changes
	ManagedIdentity string `yaml:"managed_identity"` // "system", or the client ID or resource ID of a user-assigned one
	Endpoint        string `yaml:"endpoint"`         // empty: https://ACCOUNT.blob.core.windows.net
	CAFile          string `yaml:"ca_file"`          // certificates trusted besides the system's

	AccessTier      string            `yaml:"access_tier"`      // hot, cool or cold; empty: the account's default
	Tags            map[string]string `yaml:"tags"`             // blob index tags of each object
	EncryptionScope string            `yaml:"encryption_scope"` // that the service encrypts with; empty: the container's default
	ImmutableDays   int               `yaml:"immutable_days"`   // for which nobody can delete or change an object; 0: none
	ImmutableLocked bool              `yaml:"immutable_locked"` // that protection can't be shortened by anybody
}

// SwiftConfig is for swift://CONTAINER/PREFIX. A name of a user, and of a tenant, needs its domain; an ID needs none.
type SwiftConfig struct {
	AuthURL      string `yaml:"auth_url"`
	AuthVersion  int    `yaml:"auth_version"` // 1, 2 or 3; 0: as auth_url says, and 3 where it says nothing
	Username     string `yaml:"username"`
	UserID       string `yaml:"user_id"`
	PasswordFile string `yaml:"password_file"`
	Tenant       string `yaml:"tenant"` // or project, which is the same
	TenantID     string `yaml:"tenant_id"`
	Domain       string `yaml:"domain"`        // of the user; empty: Default
	TenantDomain string `yaml:"tenant_domain"` // empty: the user's
	Region       string `yaml:"region"`        // empty: the first in the catalogue

	ApplicationCredentialID         string `yaml:"application_credential_id"`
	ApplicationCredentialName       string `yaml:"application_credential_name"` // needs username and domain, or user_id
	ApplicationCredentialSecretFile string `yaml:"application_credential_secret_file"`

	TrustID       string `yaml:"trust_id"`
	EndpointType  string `yaml:"endpoint_type"`  // public, internal or admin; empty: public
	StoragePolicy string `yaml:"storage_policy"` // of the container, where pitr creates it; empty: the server's default
	CAFile        string `yaml:"ca_file"`
}

// Validate checks what can be checked without looking at the store, and of the sections only the one that the URL's
// scheme uses. The error begins with the key, within the section `storage`, that is wrong.
func (c Config) Validate() error {
	_, err := c.parse()
	return err
}

// Open opens the bucket that c describes, and creates nothing: the last directory of a file:// URL, and what the store needs
// for itself, are made by the first Create. A store on the network is not asked. There is no Close: idle connections close
// themselves.
func Open(ctx context.Context, c Config) (Bucket, error) {
	u, err := c.parse()
	if err != nil {
		return nil, fmt.Errorf("storage.%w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	switch u.Scheme {
	case "file":
		return openFile(filepath.Clean(u.Path))
	case "s3":
		return openS3(ctx, u, c.S3)
	case "azure":
		b, err := openAzure(c.Azure, u)
		if err != nil {
			return nil, fmt.Errorf("storage.%w", err)
		}
		return b, nil
	case "swift":
		return openSwift(u, c.Swift)
	}
	return nil, unknownScheme(u.Scheme)
}

const (
	fileURLHint = "write file:///absolute/path"
	urlHint     = fileURLHint + ", s3://BUCKET/PREFIX, azure://CONTAINER/PREFIX or swift://CONTAINER/PREFIX"
)

func unknownScheme(scheme string) error {
	return hint.Wrap(fmt.Errorf("url: scheme %q is not known", scheme), urlHint)
}

func (c Config) parse() (*url.URL, error) {
	if c.URL == "" {
		return nil, hint.Wrap(errors.New("url: is not set"), urlHint)
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		// The URL itself stays out of the text: a secret put in there by mistake must not get into a log.
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return nil, hint.Wrap(fmt.Errorf("url: %w", err), urlHint+"; a percent sign in a path is written %%25")
	}
	switch u.Scheme {
	case "file":
		return u, checkFileURL(u)
	case "s3":
		return u, checkS3(u, c.S3)
	case "azure":
		return u, cmp.Or(checkAzureURL(u), c.Azure.check())
	case "swift":
		if err := checkSwiftURL(u); err != nil {
			return nil, err
		}
		return u, c.Swift.check()
	case "":
		return nil, hint.Wrap(errors.New("url: has no scheme"), urlHint)
	}
	return nil, unknownScheme(u.Scheme)
}

func checkFileURL(u *url.URL) error {
	switch {
	case u.User != nil, u.Host != "":
		return hint.Wrap(errors.New("url: a file:// URL names no host or user"), fileURLHint+", with three slashes")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return hint.Wrap(errors.New(`url: "?" or "#" in a file:// URL`), "write them %%3F and %%23 where they are part of the path")
	case !strings.HasPrefix(u.Path, "/"):
		return hint.Wrap(errors.New("url: the path is not absolute"), fileURLHint)
	case filepath.Clean(u.Path) == "/":
		return hint.Wrap(errors.New("url: the root directory cannot be a store"), "name a directory of its own")
	case strings.ContainsRune(u.Path, 0):
		return hint.Wrap(errors.New("url: the path contains a NUL"), fileURLHint)
	}
	return nil
}

// fileURL is the URL that parse takes back to path.
func fileURL(path string) string { return (&url.URL{Scheme: "file", Path: path}).String() }
