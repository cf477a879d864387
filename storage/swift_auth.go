package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	client "github.com/ncw/swift/v2"

	"pitr/internal/hint"
)

// swiftLoginTimeout is how long a server may take to give a token.
const swiftLoginTimeout = 60 * time.Second

// swiftLogin is how to get in: what the configuration says, completed from the environment that OpenStack's own tools
// read.
type swiftLogin struct {
	url     string
	version int

	user, userID, domain, domainID string
	secret                         swiftSecret
	app, appID                     string // of the application credential: secret is its secret

	tenant, tenantID, tenantDomain, tenantDomainID string
	trustID, region, endpoint                      string

	storageURL, token string // got elsewhere: there is nothing to log in with
}

// swiftSecret is where a secret is: a file that is read each time, so that it can be changed, or a variable.
type swiftSecret struct{ key, file, variable string }

func (p swiftSecret) read() (string, error) {
	if p.file == "" {
		return os.Getenv(p.variable), nil
	}
	text, err := os.ReadFile(p.file)
	if err != nil {
		return "", hint.Wrap(fmt.Errorf("storage.swift.%s: %w", p.key, err), "let the user that pitr runs as read this file")
	}
	secret := strings.TrimRight(string(text), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("storage.swift.%s: %s is empty", p.key, p.file)
	}
	return secret, nil
}

func (p swiftSecret) String() string { return cmp.Or(p.file, "$"+p.variable) }

// swiftEnv is the first of the variables that is set, and its name.
func swiftEnv(names ...string) (value, name string) {
	for _, name := range names {
		if v := os.Getenv(name); v != "" {
			return v, name
		}
	}
	return "", ""
}

func swiftEnvOf(names ...string) string {
	v, _ := swiftEnv(names...)
	return v
}

func (c SwiftConfig) caFile() string { return cmp.Or(c.CAFile, os.Getenv("OS_CACERT")) }

// check finds what is wrong with the section, whatever the environment adds.
func (c SwiftConfig) check() error {
	app := c.ApplicationCredentialID != "" || c.ApplicationCredentialName != "" || c.ApplicationCredentialSecretFile != ""
	switch {
	case c.AuthVersion < 0 || c.AuthVersion > 3:
		return hint.Wrap(fmt.Errorf("swift.auth_version: %d is not a version", c.AuthVersion), "write 1, 2 or 3, or 0 to take it from auth_url")
	case c.EndpointType != "" && !slices.Contains([]string{"public", "internal", "admin"}, c.EndpointType):
		return hint.Wrap(fmt.Errorf("swift.endpoint_type: %q is none", c.EndpointType), "write public, internal or admin")
	case app && c.PasswordFile != "":
		return hint.Wrap(errors.New("swift.password_file: there is an application credential too"), "give one of the two")
	case c.ApplicationCredentialID != "" && c.ApplicationCredentialName != "":
		return hint.Wrap(errors.New("swift.application_credential_name: application_credential_id is given too"), "give one of the two")
	case c.ApplicationCredentialName != "" && c.Username == "" && c.UserID == "":
		return hint.Wrap(errors.New("swift.application_credential_name: names of application credentials are their user's"), "give username and domain, or user_id, or application_credential_id instead of the name")
	case app && c.AuthVersion != 0 && c.AuthVersion != 3:
		return hint.Wrap(fmt.Errorf("swift.auth_version: %d knows no application credentials", c.AuthVersion), "write 3")
	case app && (c.Tenant != "" || c.TenantID != ""):
		return hint.Wrap(errors.New("swift.tenant: an application credential has its own"), "leave tenant and tenant_id empty")
	case c.Tenant != "" && c.TenantID != "":
		return hint.Wrap(errors.New("swift.tenant_id: tenant is given too"), "give one of the two")
	case c.Username != "" && c.UserID != "" && !app:
		return hint.Wrap(errors.New("swift.user_id: username is given too"), "give one of the two")
	}
	if c.AuthURL == "" {
		return nil
	}
	if err := checkSwiftAuthURL(c.AuthURL); err != nil {
		return fmt.Errorf("swift.auth_url: %w", err)
	}
	return nil
}

const swiftAuthURLHint = "write the URL of the identity service, as https://HOST:5000/v3, or, for version 1, https://HOST/auth/v1.0"

func checkSwiftAuthURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return hint.Wrap(err, swiftAuthURLHint)
	case u.User != nil:
		return hint.Wrap(errors.New("there are a user or a password in it"), "write them into username and password_file")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.RawQuery != "", u.Fragment != "":
		return hint.Wrap(errors.New("is not the URL of a server"), swiftAuthURLHint)
	}
	return nil
}

// login completes the section from the environment. A credential comes from one of the two as a whole: an application
// credential in the environment does not stand in for the password of the user that the configuration names.
func (c SwiftConfig) login() (swiftLogin, error) {
	l := swiftLogin{
		region:   cmp.Or(c.Region, os.Getenv("OS_REGION_NAME")),
		endpoint: strings.TrimSuffix(cmp.Or(c.EndpointType, swiftEnvOf("OS_ENDPOINT_TYPE", "OS_INTERFACE")), "URL"),
		trustID:  cmp.Or(c.TrustID, os.Getenv("OS_TRUST_ID")),
	}
	authURL, from := c.AuthURL, "auth_url"
	if authURL == "" {
		authURL, from = swiftEnv("OS_AUTH_URL", "ST_AUTH")
	}
	switch {
	case c.ApplicationCredentialID != "" || c.ApplicationCredentialName != "" || c.ApplicationCredentialSecretFile != "":
		c.applicationCredential(&l)
	case c.Username != "" || c.UserID != "" || c.PasswordFile != "":
		c.password(&l)
	case os.Getenv("OS_APPLICATION_CREDENTIAL_SECRET") != "":
		c.applicationCredential(&l)
	case swiftEnvOf("OS_USERNAME", "OS_USER_ID", "ST_USER") != "":
		c.password(&l)
	default:
		l.storageURL, l.token = os.Getenv("OS_STORAGE_URL"), os.Getenv("OS_AUTH_TOKEN")
		if l.storageURL != "" && l.token != "" {
			if err := checkSwiftAuthURL(l.storageURL); err != nil {
				return l, fmt.Errorf("swift: OS_STORAGE_URL: %w", err)
			}
			return l, nil
		}
	}
	if authURL == "" {
		advice := swiftAuthURLHint + "; or set OS_AUTH_URL"
		if os.Getenv("OS_CLOUD") != "" {
			advice += ": OS_CLOUD and clouds.yaml are not read"
		}
		return l, hint.Wrap(errors.New("swift.auth_url: is not set"), "%s", advice)
	}
	if err := checkSwiftAuthURL(authURL); err != nil {
		return l, fmt.Errorf("swift: %s: %w", from, err)
	}
	if l.user == "" && l.userID == "" && l.appID == "" {
		return l, hint.Wrap(errors.New("swift.username: is not set"), "give username and password_file, or an application credential; or set OS_USERNAME and OS_PASSWORD")
	}
	if l.secret.file == "" && os.Getenv(l.secret.variable) == "" {
		key := "password_file"
		if l.app != "" || l.appID != "" {
			key = "application_credential_secret_file"
		}
		return l, hint.Wrap(fmt.Errorf("swift.%s: is not set", key), "name a file that holds it, or set %s", l.secret.variable)
	}
	if l.endpoint != "" && !slices.Contains([]string{"public", "internal", "admin"}, l.endpoint) {
		return l, fmt.Errorf("swift: OS_ENDPOINT_TYPE or OS_INTERFACE: %q is not public, internal or admin", l.endpoint)
	}
	var err error
	if l.url, l.version, err = c.identity(authURL); err != nil {
		return l, err
	}
	if l.version != 3 && (l.app != "" || l.appID != "") {
		return l, hint.Wrap(fmt.Errorf("swift.auth_version: %d knows no application credentials", l.version), "give the auth_url of version 3")
	}
	return l, nil
}

func (c SwiftConfig) applicationCredential(l *swiftLogin) {
	l.appID, l.app = c.ApplicationCredentialID, c.ApplicationCredentialName
	if l.appID == "" && l.app == "" {
		if l.appID = os.Getenv("OS_APPLICATION_CREDENTIAL_ID"); l.appID == "" {
			l.app = os.Getenv("OS_APPLICATION_CREDENTIAL_NAME")
		}
	}
	l.secret = swiftSecret{"application_credential_secret_file", c.ApplicationCredentialSecretFile, "OS_APPLICATION_CREDENTIAL_SECRET"}
	if l.app != "" {
		c.userOf(l)
	}
}

func (c SwiftConfig) password(l *swiftLogin) {
	c.userOf(l)
	_, variable := swiftEnv("OS_PASSWORD", "ST_KEY")
	l.secret = swiftSecret{"password_file", c.PasswordFile, cmp.Or(variable, "OS_PASSWORD")}
	if l.tenant, l.tenantID = c.Tenant, c.TenantID; l.tenant == "" && l.tenantID == "" {
		if l.tenantID = swiftEnvOf("OS_PROJECT_ID", "OS_TENANT_ID"); l.tenantID == "" {
			l.tenant = swiftEnvOf("OS_PROJECT_NAME", "OS_TENANT_NAME")
		}
	}
	if l.tenantDomain = c.TenantDomain; l.tenantDomain == "" && c.Domain == "" {
		if l.tenantDomainID = os.Getenv("OS_PROJECT_DOMAIN_ID"); l.tenantDomainID == "" {
			l.tenantDomain = os.Getenv("OS_PROJECT_DOMAIN_NAME")
		}
	}
}

func (c SwiftConfig) userOf(l *swiftLogin) {
	if l.user, l.userID = c.Username, c.UserID; l.user == "" && l.userID == "" {
		if l.userID = os.Getenv("OS_USER_ID"); l.userID == "" {
			l.user = swiftEnvOf("OS_USERNAME", "ST_USER")
		}
	}
	if l.userID != "" {
		l.user = ""
		return
	}
	if l.domain = c.Domain; l.domain == "" {
		if l.domainID = os.Getenv("OS_USER_DOMAIN_ID"); l.domainID == "" {
			l.domain = cmp.Or(os.Getenv("OS_USER_DOMAIN_NAME"), os.Getenv("OS_DEFAULT_DOMAIN"), "Default")
		}
	}
}

// identity finds the version to log in with, and completes a URL that leaves it out, as OpenStack's own usually do.
func (c SwiftConfig) identity(authURL string) (string, int, error) {
	authURL = strings.TrimSuffix(authURL, "/")
	named := 0
	u, err := url.Parse(authURL)
	if err != nil {
		return "", 0, err // checked before
	}
	for part := range strings.SplitSeq(u.Path, "/") {
		if v, _, _ := strings.Cut(part, "."); len(v) == 2 && v[0] == 'v' && v[1] >= '1' && v[1] <= '3' {
			named = int(v[1] - '0')
		}
	}
	version := c.AuthVersion
	if version == 0 {
		version = named
	}
	if version == 0 {
		if v, name := swiftEnv("OS_IDENTITY_API_VERSION", "ST_AUTH_VERSION"); v != "" {
			whole, _, _ := strings.Cut(v, ".")
			if version, err = strconv.Atoi(whole); err != nil || version < 1 || version > 3 {
				return "", 0, fmt.Errorf("swift: %s: %q is not 1, 2 or 3", name, v)
			}
		}
	}
	if version == 0 {
		version = 3
	}
	switch {
	case named != 0 && named != version:
		return "", 0, hint.Wrap(fmt.Errorf("swift.auth_version: is %d, but auth_url is that of version %d", version, named), "leave auth_version 0, or give the other URL")
	case named == 0 && version == 3:
		authURL += "/v3"
	case named == 0 && version == 2:
		authURL += "/v2.0"
	}
	return authURL, version, nil
}

// who names the user, for messages.
func (l swiftLogin) who() string {
	switch {
	case l.token != "":
		return "the owner of $OS_AUTH_TOKEN"
	case l.appID != "":
		return "application credential " + l.appID
	case l.app != "":
		return "application credential " + l.app
	case l.userID != "":
		return "user " + l.userID
	}
	return "user " + l.user
}

// swiftToken is one token; it does not change.
type swiftToken struct {
	url   string // of the account
	token string
}

// swiftTokens is the token that is in use. The semaphore guards now, and lets who waits for it give up.
type swiftTokens struct {
	semaphore chan struct{}
	now       *swiftToken
}

func newSwiftTokens() swiftTokens { return swiftTokens{semaphore: make(chan struct{}, 1)} }

// authorise gives the token in use, or a new one if that is refused. When a token expires is not asked for: that would
// need two clocks to agree, and the server says so itself.
func (s *swift) authorise(ctx context.Context, refused *swiftToken) (*swiftToken, error) {
	select {
	case s.token.semaphore <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.token.semaphore }()
	if s.token.now != nil && s.token.now != refused {
		return s.token.now, nil
	}
	t, err := s.logIn(ctx, refused != nil)
	if err != nil {
		return nil, err
	}
	s.token.now = t
	return t, nil
}

func (s *swift) logIn(ctx context.Context, again bool) (*swiftToken, error) {
	l := s.login
	if l.token != "" {
		if again {
			return nil, hint.Wrap(errors.New("the server does not take the token of $OS_AUTH_TOKEN"),
				"tokens expire: give pitr storage.swift.auth_url, username and password_file, so that it gets new ones by itself")
		}
		return &swiftToken{strings.TrimSuffix(l.storageURL, "/"), l.token}, nil
	}
	secret, err := l.secret.read()
	if err != nil {
		return nil, err
	}
	c := client.Connection{
		AuthUrl: l.url, AuthVersion: l.version, Region: l.region, EndpointType: client.EndpointType(cmp.Or(l.endpoint, "public")),
		UserName: l.user, UserId: l.userID, Domain: l.domain, DomainId: l.domainID, TrustId: l.trustID,
		Tenant: l.tenant, TenantId: l.tenantID, TenantDomain: l.tenantDomain, TenantDomainId: l.tenantDomainID,
		ApplicationCredentialId: l.appID, ApplicationCredentialName: l.app,
		UserAgent: "pitr",
		// Its own time limit leaves the request running: the context's comes first.
		ConnectTimeout: 2 * swiftLoginTimeout,
		Transport:      swiftLoginTransport{s.client.Transport},
	}
	if l.appID != "" || l.app != "" {
		c.ApplicationCredentialSecret = secret
	} else {
		c.ApiKey = secret
	}
	limited, cancel := context.WithTimeout(ctx, swiftLoginTimeout)
	defer cancel()
	err = c.Authenticate(limited)
	if c.StorageUrl != "" && c.AuthToken != "" {
		err = nil // the library also wants a time of expiry in the future, by this machine's clock
	}
	if err == nil {
		_, err = url.Parse(c.StorageUrl)
	}
	if err != nil {
		return nil, s.loginFailed(ctx, err, secret)
	}
	return &swiftToken{strings.TrimSuffix(c.StorageUrl, "/"), c.AuthToken}, nil
}

// swiftLoginTransport refuses redirects, which would send the password to another host, and keeps the library from
// closing connections that others use.
type swiftLoginTransport struct{ http.RoundTripper }

type swiftRedirected struct{ to string }

func (e swiftRedirected) Error() string { return "the server sends on to " + e.to }

func (t swiftLoginTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil && resp.StatusCode/100 == 3 && resp.StatusCode != http.StatusMultipleChoices {
		resp.Body.Close()
		return nil, swiftRedirected{resp.Header.Get("Location")}
	}
	return resp, err
}
