package postgres

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// Config says where the local server is. Its password, where it needs one, comes from PGPASSWORD, from the file that
// PGPASSFILE names or from ~/.pgpass, never from here.
type Config struct {
	DataDir    string            `yaml:"data_dir"`
	BinDir     string            `yaml:"bin_dir"` // empty: found by FindBinDir
	Host       string            `yaml:"host"`    // socket directory, or host name or address
	Port       int               `yaml:"port"`
	User       string            `yaml:"user"` // role in the database
	Managed    bool              `yaml:"managed"`
	Parameters map[string]string `yaml:"parameters"` // settings kept in force when managed
}

// Validate checks the values without looking at the machine. The error begins with the key that is wrong.
func (c Config) Validate() error {
	switch {
	case c.DataDir == "":
		return fmt.Errorf("data_dir: missing; it must be the server's data directory")
	case !filepath.IsAbs(c.DataDir):
		return fmt.Errorf("data_dir: %q is not an absolute path", c.DataDir)
	case c.BinDir != "" && !filepath.IsAbs(c.BinDir):
		return fmt.Errorf("bin_dir: %q is not an absolute path", c.BinDir)
	case c.Host == "":
		return fmt.Errorf("host: missing; it must be the server's socket directory, or a host name or address")
	case strings.ContainsAny(c.Host, ",\x00"):
		return fmt.Errorf("host: %q must name one server; it can't hold a comma", c.Host)
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("port: %d is not between 1 and 65535", c.Port)
	case c.User == "" || strings.ContainsRune(c.User, 0):
		return fmt.Errorf("user: %q can't be the name of a role", c.User)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Parameters)) {
		if !validSettingName(name) {
			return fmt.Errorf("parameters.%s: %q can't be the name of a setting", name, name)
		}
		if _, err := QuoteConf(c.Parameters[name]); err != nil {
			return fmt.Errorf("parameters.%s: %w", name, err)
		}
	}
	return nil
}
