package storage_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"pitr/storage"
)

// identity logs in at identity services of versions 2 and 3, which check what they are told and then give out a token of
// the real server.
func (s swiftTests) identity(t *testing.T) {
	var asked string
	keystone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		asked = r.Method + " " + r.URL.Path + " " + strings.TrimSpace(string(body))
		if strings.Contains(asked, "wrong") {
			http.Error(w, `{"error": {"code": 401, "message": "you sent `+strings.ReplaceAll(string(body), `"`, `'`)+`"}}`, http.StatusUnauthorized)
			return
		}
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, s.server.AuthURL, nil)
		if err != nil {
			t.Error(err)
			return
		}
		password, err := os.ReadFile(s.server.PasswordFile)
		if err != nil {
			t.Error(err)
		}
		req.Header.Set("X-Auth-User", s.server.User)
		req.Header.Set("X-Auth-Key", strings.TrimSpace(string(password)))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
		token, account := resp.Header.Get("X-Auth-Token"), resp.Header.Get("X-Storage-Url")
		w.Header().Set("Content-Type", "application/json")
		if strings.HasPrefix(r.URL.Path, "/v2.0/") {
			fmt.Fprintf(w, `{"access": {"token": {"id": %q, "expires": "2001-01-01T00:00:00Z"}, "serviceCatalog": [{"type": "object-store", "endpoints": [{"region": "here", "publicURL": %q}]}]}}`, token, account)
			return
		}
		w.Header().Set("X-Subject-Token", token)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"token": {"expires_at": "2099-01-01T00:00:00Z", "catalog": [{"type": "object-store", "endpoints": [{"region": "here", "interface": "public", "url": %q}]}]}}`, account)
	}))
	defer keystone.Close()
	secret := t.TempDir() + "/secret"
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	password := func(user, scope string) string {
		return `POST /v3/auth/tokens {"auth":{"identity":{"methods":["password"],"password":{"user":{` + user + `,"password":"s3cret"}}}` + scope + `}}`
	}
	for _, c := range []struct {
		name   string
		config storage.SwiftConfig
		env    map[string]string
		asked  string
	}{
		{"v3", storage.SwiftConfig{AuthURL: "/v3", Username: "u", PasswordFile: secret, Tenant: "t", Domain: "d", Region: "here"}, nil,
			password(`"domain":{"name":"d"},"name":"u"`, `,"scope":{"project":{"name":"t","domain":{"name":"d"}}}`)},
		{"v3 without its name", storage.SwiftConfig{AuthURL: "", Username: "u", PasswordFile: secret, TenantID: "tid"}, nil,
			password(`"domain":{"name":"Default"},"name":"u"`, `,"scope":{"project":{"id":"tid"}}`)},
		{"v3 with ids", storage.SwiftConfig{AuthURL: "/v3", UserID: "uid", PasswordFile: secret, Tenant: "t", TenantDomain: "td"}, nil,
			password(`"id":"uid"`, `,"scope":{"project":{"name":"t","domain":{"name":"td"}}}`)},
		{"v3 application credential", storage.SwiftConfig{AuthURL: "/v3/", ApplicationCredentialID: "aid", ApplicationCredentialSecretFile: secret}, nil,
			`POST /v3/auth/tokens {"auth":{"identity":{"methods":["application_credential"],"application_credential":{"id":"aid","secret":"s3cret","user":{}}}}}`},
		{"v3 application credential by name", storage.SwiftConfig{AuthURL: "/v3", ApplicationCredentialName: "an", Username: "u", Domain: "d", ApplicationCredentialSecretFile: secret}, nil,
			`POST /v3/auth/tokens {"auth":{"identity":{"methods":["application_credential"],"application_credential":{"name":"an","secret":"s3cret","user":{"domain":{"name":"d"},"name":"u"}}}}}`},
		{"v3 from the environment", storage.SwiftConfig{}, map[string]string{"OS_AUTH_URL": "/v3", "OS_USERNAME": "u", "OS_PASSWORD": "s3cret", "OS_PROJECT_ID": "pid", "OS_PROJECT_NAME": "p",
			"OS_USER_DOMAIN_NAME": "ud", "OS_PROJECT_DOMAIN_ID": "pd", "OS_REGION_NAME": "here", "OS_IDENTITY_API_VERSION": "3", "OS_INTERFACE": "public"},
			password(`"domain":{"name":"ud"},"name":"u"`, `,"scope":{"project":{"id":"pid"}}`)},
		{"v3 application credential from the environment", storage.SwiftConfig{}, map[string]string{"OS_AUTH_URL": "", "OS_APPLICATION_CREDENTIAL_ID": "aid", "OS_APPLICATION_CREDENTIAL_SECRET": "s3cret"},
			`POST /v3/auth/tokens {"auth":{"identity":{"methods":["application_credential"],"application_credential":{"id":"aid","secret":"s3cret","user":{}}}}}`},
		{"the configuration's user is not mixed with the environment's credential", storage.SwiftConfig{AuthURL: "/v3", UserID: "uid", PasswordFile: secret, TenantID: "tid"},
			map[string]string{"OS_APPLICATION_CREDENTIAL_ID": "aid", "OS_APPLICATION_CREDENTIAL_SECRET": "other", "OS_PASSWORD": "other", "OS_PROJECT_NAME": "other"},
			password(`"id":"uid"`, `,"scope":{"project":{"id":"tid"}}`)},
		{"v2", storage.SwiftConfig{AuthURL: "/v2.0", Username: "u", PasswordFile: secret, Tenant: "t"}, nil,
			`POST /v2.0/tokens {"auth":{"passwordCredentials":{"username":"u","password":"s3cret"},"tenantName":"t"}}`},
		{"v2 by number", storage.SwiftConfig{AuthVersion: 2, Username: "u", PasswordFile: secret, TenantID: "t"}, nil,
			`POST /v2.0/tokens {"auth":{"passwordCredentials":{"username":"u","password":"s3cret"},"tenantId":"t"}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			clearOpenStack(t)
			for name, value := range c.env {
				if name == "OS_AUTH_URL" {
					value = keystone.URL + value
				}
				t.Setenv(name, value)
			}
			if _, ok := c.env["OS_AUTH_URL"]; !ok {
				c.config.AuthURL = keystone.URL + c.config.AuthURL
			}
			asked = ""
			b := s.open(t, storage.Config{URL: "swift://identity", Swift: c.config})
			wantKeys(t, b)
			if c.asked != "" && asked != c.asked {
				t.Errorf("asked\n%s, want\n%s", asked, c.asked)
			}
			s.server.ForgetTokens(t)
			wantKeys(t, b) // whatever the token said of its end
		})
	}

	clearOpenStack(t)
	if err := os.WriteFile(secret, []byte("wrong-s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		config       storage.SwiftConfig
		text, advice string
	}{
		{storage.SwiftConfig{AuthURL: "/v3", Username: "u", PasswordFile: secret, Tenant: "t"},
			"as user u: the server refuses user or password (401)",
			"look at storage.swift.username, domain, tenant and tenant_domain (or $OS_USERNAME, $OS_USER_DOMAIN_NAME, $OS_PROJECT_NAME, $OS_PROJECT_DOMAIN_NAME), and the password in " + secret},
		{storage.SwiftConfig{AuthURL: "/v3", ApplicationCredentialID: "aid", ApplicationCredentialSecretFile: secret},
			"as application credential aid: the server refuses the application credential (401): it, or its secret, is wrong, expired or deleted",
			"look at the application credential in storage.swift (or $OS_APPLICATION_CREDENTIAL_...), and its secret in " + secret},
		{storage.SwiftConfig{AuthURL: "/v2.0", Username: "u", PasswordFile: secret, Tenant: "t"},
			"as user u: the server refuses user or password (401)",
			"look at storage.swift.username and tenant (or $OS_USERNAME, $OS_TENANT_NAME), and the password in " + secret},
	} {
		path := c.config.AuthURL
		c.config.AuthURL = keystone.URL + path
		_, err := s.open(t, storage.Config{URL: "swift://identity", Swift: c.config}).Stat(t.Context(), "k")
		wantText(t, err, "stat k in swift://identity: log in at "+keystone.URL+path+" "+c.text, c.advice)
		if storage.Temporary(err) {
			t.Error("it is called temporary")
		}
	}
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.open(t, storage.Config{URL: "swift://identity", Swift: storage.SwiftConfig{
		AuthURL: keystone.URL + "/v3", Username: "u", PasswordFile: secret, Tenant: "t", Region: "elsewhere",
	}}).Stat(t.Context(), "k")
	wantText(t, err, "stat k in swift://identity: log in at "+keystone.URL+"/v3 as user u: the answer names no storage URL",
		`its catalogue may have no object store in region "elsewhere": look at storage.swift.region (or $OS_REGION_NAME), endpoint_type and tenant`)
}
