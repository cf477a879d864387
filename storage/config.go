package storage

import (
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
	URL   string      `yaml:"url"` // file:///absolute/path; what is special in URLs is written as %XX there
	S3    S3Config    `yaml:"s3"`
	Azure AzureConfig `yaml:"azure"`
	Swift SwiftConfig `yaml:"swift"`
}

// S3Config is for s3://BUCKET/PREFIX.
type S3Config struct {
	Endpoint            string `yaml:"endpoint"`
	Region              string `yaml:"region"`
	PathStyle           bool   `yaml:"path_style"`
	AccessKeyID         string `yaml:"access_key_id"`
	SecretAccessKeyFile string `yaml:"secret_access_key_file"`
	CAFile              string `yaml:"ca_file"`
}

// AzureConfig is for azure://CONTAINER/PREFIX.
type AzureConfig struct {
	Account  string `yaml:"account"`
	KeyFile  string `yaml:"key_file"`
	SASFile  string `yaml:"sas_file"`
	Endpoint string `yaml:"endpoint"`
}

// SwiftConfig is for swift://CONTAINER/PREFIX.
type SwiftConfig struct {
	AuthURL      string `yaml:"auth_url"`
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
	Tenant       string `yaml:"tenant"`
	Domain       string `yaml:"domain"`
	Region       string `yaml:"region"`
}

// Validate checks what can be checked without looking at the store, and of the sections only the one that the URL's
// scheme uses. The error begins with the key, within the section `storage`, that is wrong.
func (c Config) Validate() error {
	_, err := c.parse()
	return err
}

// Open opens the bucket that c describes, and creates nothing: the last directory of a file:// URL, and what the store needs
// for itself, are made by the first Create. The bucket holds nothing open: there is no Close.
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
	}
	return nil, unknownScheme(u.Scheme)
}

const urlHint = "write file:///absolute/path"

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
	case "":
		return nil, hint.Wrap(errors.New("url: has no scheme"), urlHint)
	}
	return nil, unknownScheme(u.Scheme)
}

func checkFileURL(u *url.URL) error {
	switch {
	case u.User != nil, u.Host != "":
		return hint.Wrap(errors.New("url: a file:// URL names no host or user"), urlHint+", with three slashes")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return hint.Wrap(errors.New(`url: "?" or "#" in a file:// URL`), "write them %%3F and %%23 where they are part of the path")
	case !strings.HasPrefix(u.Path, "/"):
		return hint.Wrap(errors.New("url: the path is not absolute"), urlHint)
	case filepath.Clean(u.Path) == "/":
		return hint.Wrap(errors.New("url: the root directory cannot be a store"), "name a directory of its own")
	case strings.ContainsRune(u.Path, 0):
		return hint.Wrap(errors.New("url: the path contains a NUL"), urlHint)
	}
	return nil
}

// fileURL is the URL that parse takes back to path.
func fileURL(path string) string { return (&url.URL{Scheme: "file", Path: path}).String() }
