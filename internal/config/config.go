// Package config owns the configuration file: its keys, their defaults, their checking and their printing.
//
// It turns one YAML file into one Config and says everything that is wrong with it at once, each time with the key's
// path, its line and column, and what is allowed there. The sections of packages that own their settings are those
// packages' own types, which is why config imports them and never the other way round. It neither opens a store nor
// asks a server: whether the settings work is found out by `pitr check`.
//
// The names of the keys are part of the command-line contract: changing one takes a new major version.
package config

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"pitr/internal/postgres"
	"pitr/storage"
)

// Config is everything that a file can say, with the defaults where it says nothing.
type Config struct {
	// File is the absolute path of the file that was read, empty if there was none. Commands that pitr writes into a
	// server's settings name it, since the server runs them in another directory.
	File string `yaml:"-"`

	Cluster    Cluster         `yaml:"cluster"`
	Postgres   postgres.Config `yaml:"postgres"`
	Storage    storage.Config  `yaml:"storage"`
	Encryption Encryption      `yaml:"encryption"`
	Archive    Archive         `yaml:"archive"`
	Backup     Backup          `yaml:"backup"`
	Dumps      Dumps           `yaml:"dumps"`
	Service    Service         `yaml:"service"`
}

// Cluster names this node and the others it works with.
type Cluster struct {
	Name        string            `yaml:"name"`
	Node        string            `yaml:"node"`    // after Load never empty
	Address     string            `yaml:"address"` // empty: a single node
	Members     map[string]string `yaml:"members"` // address by node name; read at the first start only
	Etcd        []string          `yaml:"etcd"`    // endpoints of an external store; empty: the embedded one
	EtcdPrefix  string            `yaml:"etcd_prefix"`
	EtcdUser    string            `yaml:"etcd_user"`
	EtcdTLS     EtcdTLS           `yaml:"etcd_tls"`
	Witness     bool              `yaml:"witness"`
	Ports       Ports             `yaml:"ports"`
	SecretFile  string            `yaml:"secret_file"`
	Lease       Duration          `yaml:"lease"`
	Synchronous string            `yaml:"synchronous"` // off, on or strict; read at the first start only
}

// Ports are the ones on Cluster.Address.
type Ports struct {
	Peer   int `yaml:"peer"`   // store to store
	Client int `yaml:"client"` // agent to store
	Agent  int `yaml:"agent"`  // agent to agent
	RW     int `yaml:"rw"`     // proxy to the primary
	RO     int `yaml:"ro"`     // proxy to a standby
}

// EtcdTLS names the files for connecting to an external store.
type EtcdTLS struct {
	CAFile   string `yaml:"ca_file"`
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// Encryption says to whom the repository's key is sealed. Without recipients nothing is encrypted.
type Encryption struct {
	Recipients   []string `yaml:"recipients"`    // age public keys
	IdentityFile string   `yaml:"identity_file"` // needed only to read
}

// Archive is how WAL is moved.
type Archive struct {
	Workers int      `yaml:"workers"`
	Timeout Duration `yaml:"timeout"` // for one segment
}

// Backup is how and when base backups are taken, and how long they stay.
type Backup struct {
	Workers     int       `yaml:"workers"`
	Compression string    `yaml:"compression"`
	Level       int       `yaml:"level"`
	Schedule    string    `yaml:"schedule"` // cron, in the host's time zone; empty: never by itself
	FullEvery   Duration  `yaml:"full_every"`
	Retention   Retention `yaml:"retention"`
}

// Retention keeps a backup while either of its rules wants it.
type Retention struct {
	Window Duration `yaml:"window"` // every moment this far back stays recoverable
	Keep   int      `yaml:"keep"`   // and so many full backups stay, however old
}

// Dumps is when logical dumps are taken, and how many stay.
type Dumps struct {
	Schedule  string        `yaml:"schedule"`  // cron; empty: never by itself
	Databases []string      `yaml:"databases"` // empty: all
	Retention DumpRetention `yaml:"retention"`
}

// DumpRetention counts dumps of each database.
type DumpRetention struct {
	Keep int `yaml:"keep"`
}

// Service is the long-running agent's own place and address.
type Service struct {
	Dir    string `yaml:"dir"`
	Listen string `yaml:"listen"` // host:port; after Load never empty
}

// servicePort is the API's port where service.listen names none.
const servicePort = 8008

// Default returns what is in force where no file says otherwise, before what depends on this host (cluster.node,
// service.listen) is filled in by Load. internal/config/default.yaml says the same with its reasons; a test compares them.
func Default() Config {
	return Config{
		Cluster: Cluster{
			Name:        "main",
			EtcdPrefix:  "/pitr",
			Ports:       Ports{Peer: 2380, Client: 2379, Agent: 8009, RW: 6432, RO: 6433},
			Lease:       Duration(3 * time.Second),
			Synchronous: "off",
		},
		Postgres: postgres.Config{
			DataDir: "/var/lib/postgresql/15/main",
			Host:    "/var/run/postgresql",
			Port:    5432,
			User:    "postgres",
		},
		Storage: storage.Config{
			URL: "file:///var/lib/pitr/repo",
		},
		Archive: Archive{Workers: 2, Timeout: Duration(time.Minute)},
		Backup: Backup{
			Workers:     2,
			Compression: "zstd",
			Level:       1,
			Schedule:    "0 1 * * *",
			FullEvery:   Duration(7 * day),
			Retention:   Retention{Window: Duration(14 * day), Keep: 2},
		},
		Dumps:   Dumps{Retention: DumpRetention{Keep: 7}},
		Service: Service{Dir: "/var/lib/pitr"},
	}
}

// Find returns the path of the file to read: flag if given, else the environment's PITR_CONFIG, else ./pitr.yaml, else
// /etc/pitr/pitr.yaml. The first two are returned whether they exist or not, so that Load reports a wrong one instead
// of something else being used silently. With none of the four the path is empty, which Load takes for the defaults.
func Find(flag string) (string, error) {
	return find(flag, os.Getenv("PITR_CONFIG"), "pitr.yaml", "/etc/pitr/pitr.yaml")
}

func find(flag, env string, places ...string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if env != "" {
		return env, nil
	}
	for _, p := range places {
		_, err := os.Stat(p)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fileError(p, err)
		}
	}
	return "", nil
}

// Load reads and checks the file at path, or takes the defaults if path is empty. What is wrong with the content comes
// back as one *Error that lists all of it. It reads no file but that one; see Warnings for those the settings name.
func Load(path string) (*Config, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "" // reported by parse, and only if the file does not name the node
	}
	if path == "" {
		return parse(nil, "", host)
	}
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return parse(data, path, host)
}

// maxFile bounds what is read, so that a wrong path (a device, a dump) is an error and not an exhausted memory.
const maxFile = 1 << 20

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError(path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fileError(path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fileError(path, errors.New("not a regular file"))
	}
	if st.Size() > maxFile {
		return nil, fileError(path, errors.New("larger than 1 MiB, so not a configuration file"))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fileError(path, err)
	}
	return data, nil
}

// parse is Load without the host: file is only the name for messages and for Config.File.
func parse(data []byte, file, host string) (*Config, error) {
	c := Default()
	d := decoder{at: map[string]position{}}
	if len(data) > 0 {
		d.file(data, &c)
	}
	if file != "" {
		abs, err := filepath.Abs(file)
		if err != nil {
			return nil, fileError(file, err)
		}
		c.File = abs
	}
	c.resolve(host)
	// A key that could not be read still holds its default, so checking it again would only repeat the matter.
	problems := d.problems
	for _, p := range c.problems() {
		if !d.failed(p.Path) {
			problems = append(problems, d.locate(p))
		}
	}
	if len(problems) > 0 {
		return nil, newError(file, problems)
	}
	return &c, nil
}

// resolve fills in the defaults that depend on the host or on other keys.
func (c *Config) resolve(host string) {
	if c.Cluster.Node == "" {
		c.Cluster.Node = nodeName(host)
	}
	if c.Service.Listen == "" {
		ip := "127.0.0.1"
		if c.Cluster.Address != "" {
			ip = c.Cluster.Address
		}
		c.Service.Listen = net.JoinHostPort(ip, strconv.Itoa(servicePort))
	}
}

// nodeName maps a host's name to a node's: the first label, lower case, everything else a hyphen, at most 40 bytes.
// What has no letter or digit gives the empty string.
func nodeName(host string) string {
	host, _, _ = strings.Cut(host, ".")
	mapped := strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + ('a' - 'A')
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, host)
	mapped = strings.TrimLeft(mapped, "-")
	if len(mapped) > 40 {
		mapped = mapped[:40]
	}
	return mapped
}
