package storage_test

import (
	"os"
	"strings"
	"testing"

	"pitr/internal/hint"
	"pitr/storage"
)

func TestSwiftConfig(t *testing.T) {
	clearOpenStack(t)
	file := t.TempDir() + "/secret"
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	const v3 = "https://host:5000/v3"
	for _, c := range []struct {
		name   string
		config storage.SwiftConfig
		text   string // of Validate; where it is silent, of Open
		open   bool   // it is Open that complains
	}{
		{"right", storage.SwiftConfig{AuthURL: v3, Username: "u", PasswordFile: file}, "", false},
		{"nothing", storage.SwiftConfig{}, "swift.auth_url: is not set", true},
		{"no user", storage.SwiftConfig{AuthURL: v3}, "swift.username: is not set", true},
		{"no password", storage.SwiftConfig{AuthURL: v3, Username: "u"}, "swift.password_file: is not set", true},
		{"no secret", storage.SwiftConfig{AuthURL: v3, ApplicationCredentialID: "a"}, "swift.application_credential_secret_file: is not set", true},
		{"no certificate", storage.SwiftConfig{AuthURL: v3, Username: "u", PasswordFile: file, CAFile: file}, "swift.ca_file: " + file + " holds no certificate", true},
		{"another version", storage.SwiftConfig{AuthURL: v3, AuthVersion: 2, Username: "u", PasswordFile: file}, "swift.auth_version: is 2, but auth_url is that of version 3", true},
		{"application credential at version 2", storage.SwiftConfig{AuthURL: "https://host/v2.0", ApplicationCredentialID: "a", ApplicationCredentialSecretFile: file}, "swift.auth_version: 2 knows no application credentials", true},
		{"version", storage.SwiftConfig{AuthVersion: 4}, "swift.auth_version: 4 is not a version", false},
		{"endpoint", storage.SwiftConfig{EndpointType: "publicURL"}, `swift.endpoint_type: "publicURL" is none`, false},
		{"two credentials", storage.SwiftConfig{ApplicationCredentialID: "a", PasswordFile: file}, "swift.password_file: there is an application credential too", false},
		{"id and name", storage.SwiftConfig{ApplicationCredentialID: "a", ApplicationCredentialName: "b"}, "swift.application_credential_name: application_credential_id is given too", false},
		{"name of nobody", storage.SwiftConfig{ApplicationCredentialName: "b"}, "swift.application_credential_name: names of application credentials are their user's", false},
		{"scope", storage.SwiftConfig{ApplicationCredentialID: "b", Tenant: "t"}, "swift.tenant: an application credential has its own", false},
		{"two tenants", storage.SwiftConfig{TenantID: "b", Tenant: "t"}, "swift.tenant_id: tenant is given too", false},
		{"two users", storage.SwiftConfig{UserID: "b", Username: "t"}, "swift.user_id: username is given too", false},
		{"password in the URL", storage.SwiftConfig{AuthURL: "https://u:HUSH@host/v3"}, "swift.auth_url: there are a user or a password in it", false},
		{"no URL", storage.SwiftConfig{AuthURL: "host:5000/v3"}, "swift.auth_url: is not the URL of a server", false},
		{"bad URL", storage.SwiftConfig{AuthURL: "https://u:HUSH@host:port/v3"}, `swift.auth_url: invalid port ":port" after host`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := storage.Config{URL: "swift://c/p", Swift: c.config}
			err := config.Validate()
			if c.text == "" || c.open {
				if err != nil {
					t.Fatalf("Validate: %v", err)
				}
			} else if err == nil || err.Error() != c.text || hint.Of(err) == "" {
				t.Errorf("Validate: %v, want %s; hint: %s", err, c.text, hint.Of(err))
			}
			b, err := storage.Open(t.Context(), config)
			if c.text == "" {
				if err != nil || b.String() != config.URL {
					t.Errorf("Open: %v, %v", b, err)
				}
				return
			}
			if err == nil || err.Error() != "storage."+c.text || hint.Of(err) == "" || strings.Contains(err.Error()+hint.Of(err), "HUSH") {
				t.Errorf("Open: %v, want storage.%s; hint: %s", err, c.text, hint.Of(err))
			}
		})
	}
}

// clearOpenStack takes away what the environment of whoever runs the tests holds.
func clearOpenStack(t *testing.T) {
	t.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "OS_") || strings.HasPrefix(name, "ST_") {
			t.Setenv(name, "")
		}
	}
}
