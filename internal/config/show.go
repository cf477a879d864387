package config

import (
	"bytes"
	_ "embed"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
	"sync"
)

//go:embed default.yaml
var defaultFile []byte

// DefaultFile returns the commented configuration file: every key, its default and its reason.
func DefaultFile() []byte { return bytes.Clone(defaultFile) }

const mask = "********"

// conninfoSecret finds the password in a connection string, as key=value or in a URL. Like others that few commands need
// it is made when it is asked for: the server starts this program for every segment, and waits for it.
var conninfoSecret = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)|(://[^:/@\s]*:)[^@\s]+(@)`)
})

// secretName is how names of settings look whose whole value is a secret.
var secretName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)(password|passphrase|secret|token)`) })

// Show writes what is in force as a file that Load would take, with secrets masked. Files that hold secrets are named,
// not read.
func Show(c Config) (string, error) {
	c.Postgres.Parameters = maps.Clone(c.Postgres.Parameters)
	for name, value := range c.Postgres.Parameters {
		if secretName().MatchString(name) && name != "password_encryption" {
			value = mask
		}
		c.Postgres.Parameters[name] = conninfoSecret().ReplaceAllString(value, "${1}${3}"+mask+"${4}")
	}
	text, err := yaml.MarshalWithOptions(c, yaml.IndentSequence(true))
	if err != nil {
		return "", fmt.Errorf("print the configuration: %w", err)
	}
	source := "no file: these are the defaults"
	if c.File != "" {
		source = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return '?'
			}
			return r
		}, c.File)
	}
	return "# " + source + "\n" + string(text), nil
}

// Warnings returns what is doubtful about a configuration without being wrong: settings that this version does not act
// on, and files with secrets that others may read or that aren't there. The work that needs a file fails by itself if it
// can't be read, so none of these stops a program that may never need it.
func Warnings(c Config) []Problem {
	var found []Problem
	for _, idle := range []struct {
		path string
		set  bool
	}{
		{"cluster.address", c.Cluster.Address != ""},
		{"cluster.members", len(c.Cluster.Members) > 0},
		{"cluster.etcd", len(c.Cluster.Etcd) > 0},
		{"cluster.witness", c.Cluster.Witness},
		{"cluster.synchronous", c.Cluster.Synchronous != "off"},
		{"postgres.managed", c.Postgres.Managed},
		{"postgres.parameters", len(c.Postgres.Parameters) > 0},
		{"dumps.schedule", c.Dumps.Schedule != ""},
	} {
		if idle.set {
			found = append(found, Problem{Path: idle.path, Text: "is set, but this version of pitr does not act on it"})
		}
	}
	eachString(reflect.ValueOf(c), "", func(path, file string) {
		// Certificates are public.
		if file == "" || !strings.HasSuffix(path, "_file") || strings.HasSuffix(path, "ca_file") || strings.HasSuffix(path, "cert_file") {
			return
		}
		st, err := os.Stat(file)
		switch {
		case err != nil:
			p := fileError("", err).Problems[0]
			found = append(found, Problem{Path: path, Text: fmt.Sprintf("%s: %s", file, p.Text)})
		case !st.Mode().IsRegular():
			found = append(found, Problem{Path: path, Text: file + " is not a regular file"})
		case st.Mode().Perm()&0o004 != 0:
			found = append(found, Problem{Path: path, Text: fmt.Sprintf("%s is readable by everyone (mode %04o)", file, st.Mode()&fs.ModePerm),
				Hint: "chmod 600 " + file})
		}
	})
	return found
}
