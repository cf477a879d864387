package config

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/robfig/cron/v3"

	"pitr/internal/hint"
)

// Validate checks a configuration that did not come from Load. What is wrong comes back as one *Error.
func (c Config) Validate() error {
	if problems := c.problems(); len(problems) > 0 {
		return newError(c.File, problems)
	}
	return nil
}

// checker collects what is wrong with values. The checks follow the order of the keys.
type checker struct{ problems []Problem }

func (k *checker) add(path, advice, format string, args ...any) {
	k.problems = append(k.problems, Problem{Path: path, Text: fmt.Sprintf(format, args...), Hint: advice})
}

func (c Config) problems() []Problem {
	var k checker
	k.cluster(c.Cluster)
	k.paths(c)
	k.section("postgres", c.Postgres.Validate())
	if u, err := url.Parse(c.Storage.URL); err == nil && u.User != nil {
		k.add("storage.url", "", "a URL that holds a user or password: credentials go into the files that the store's own section names")
	}
	k.section("storage", c.Storage.Validate())
	k.encryption(c.Encryption)
	k.between("archive.workers", c.Archive.Workers, 1, 64)
	k.lasting("archive.timeout", c.Archive.Timeout, time.Second, 24*time.Hour)
	k.between("backup.workers", c.Backup.Workers, 1, 64)
	k.oneOf("backup.compression", c.Backup.Compression, "zstd")
	k.between("backup.level", c.Backup.Level, 1, 19)
	k.schedule("backup.schedule", c.Backup.Schedule)
	k.lasting("backup.full_every", c.Backup.FullEvery, time.Hour, 10*365*day)
	k.lasting("backup.retention.window", c.Backup.Retention.Window, 0, 100*365*day)
	k.between("backup.retention.keep", c.Backup.Retention.Keep, 1, 100000)
	k.schedule("dumps.schedule", c.Dumps.Schedule)
	for i, db := range c.Dumps.Databases {
		if db == "" || strings.ContainsRune(db, 0) {
			k.add(fmt.Sprintf("dumps.databases[%d]", i), "", "%q can't be the name of a database", db)
		}
	}
	k.between("dumps.retention.keep", c.Dumps.Retention.Keep, 1, 100000)
	k.required("service.dir", c.Service.Dir)
	k.listen("service.listen", c.Service.Listen)

	// Two checks may see the same mistake; the first one said it best.
	seen := map[string]bool{}
	return slices.DeleteFunc(k.problems, func(p Problem) bool {
		again := seen[p.Path]
		seen[p.Path] = true
		return again
	})
}

var nodePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)

const nodeForm = "1 to 40 of a-z, 0-9 and -, beginning with a letter or a digit"

func (k *checker) cluster(c Cluster) {
	if n := len(c.Name); n == 0 || n > 63 || strings.ContainsFunc(c.Name, func(r rune) bool { return r < ' ' || r == '/' || r == 0x7f }) {
		k.add("cluster.name", "", "%q is not a name: it must be 1 to 63 bytes, without slashes and control characters", c.Name)
	}
	if c.Node == "" {
		k.add("cluster.node", "", "not set, and this host's name gives none: it must be %s", nodeForm)
	} else if !nodePattern.MatchString(c.Node) {
		k.add("cluster.node", "", "%q is not a node name: it must be %s", c.Node, nodeForm)
	}
	if c.Address != "" {
		k.host("cluster.address", c.Address)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Members)) {
		path := join("cluster.members", name)
		if !nodePattern.MatchString(name) {
			k.add(path, "", "%q is not a node name: it must be %s", name, nodeForm)
			continue
		}
		k.host(path, c.Members[name])
	}
	for i, e := range c.Etcd {
		path := fmt.Sprintf("cluster.etcd[%d]", i)
		u, err := url.Parse(e)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
			k.add(path, "", "not an endpoint: it must be http://HOST:PORT or https://HOST:PORT")
		case u.User != nil:
			k.add(path, "name the user in cluster.etcd_user", "an endpoint that holds a user or password")
		}
	}
	if !strings.HasPrefix(c.EtcdPrefix, "/") {
		k.add("cluster.etcd_prefix", "", "%q does not begin with a slash", c.EtcdPrefix)
	}
	used := map[int]string{}
	for _, p := range []struct {
		key  string
		port int
	}{{"peer", c.Ports.Peer}, {"client", c.Ports.Client}, {"agent", c.Ports.Agent}, {"rw", c.Ports.RW}, {"ro", c.Ports.RO}} {
		path := join("cluster.ports", p.key)
		k.between(path, p.port, 1, 65535)
		if other, taken := used[p.port]; taken {
			k.add(path, "", "%d is also cluster.ports.%s: each port must be another", p.port, other)
		}
		used[p.port] = p.key
	}
	k.lasting("cluster.lease", c.Lease, time.Second, time.Minute)
	k.oneOf("cluster.synchronous", c.Synchronous, "off", "on", "strict")
}

// pathKeys are the keys, besides those that end in _file, whose values name places in the file system.
var pathKeys = []string{"postgres.data_dir", "postgres.bin_dir", "service.dir"}

// paths checks that whatever names a file or directory does it absolutely: pitr is started by the server, by a service
// manager and by people, each in another directory.
func (k *checker) paths(c Config) {
	eachString(reflect.ValueOf(c), "", func(path, value string) {
		secret := strings.HasSuffix(path, "_file")
		if value == "" || filepath.IsAbs(value) || !secret && !slices.Contains(pathKeys, path) {
			return
		}
		advice := "write the whole path, from the root"
		if strings.HasPrefix(value, "~") {
			advice = "~ is not expanded: write the whole path"
		}
		if secret {
			// It may be the secret itself, put into the wrong place.
			k.add(path, advice, "not an absolute path: it must be that of a file")
			return
		}
		k.add(path, advice, "%q is not an absolute path", value)
	})
}

// eachString calls f with every text of the configuration and its key, but those that are lists or maps.
func eachString(v reflect.Value, path string, f func(path, value string)) {
	for _, fd := range fieldsOf(v.Type()) {
		p := join(path, fd.key)
		switch fd.typ.Kind() {
		case reflect.Struct:
			eachString(v.Field(fd.index), p, f)
		case reflect.String:
			f(p, v.Field(fd.index).String())
		}
	}
}

// section adds the error of a package that checks its own settings: it begins with the key within the section.
func (k *checker) section(name string, err error) {
	if err == nil {
		return
	}
	key, text, ok := strings.Cut(err.Error(), ": ")
	if !ok {
		k.add(name, hint.Of(err), "%s", err)
		return
	}
	k.add(join(name, key), hint.Of(err), "%s", text)
}

func (k *checker) encryption(e Encryption) {
	before := len(k.problems)
	for i, r := range e.Recipients {
		k.recipient(fmt.Sprintf("encryption.recipients[%d]", i), r)
	}
	// Storing in the clear what someone asked to be sealed would be a breach that nobody notices.
	if len(e.Recipients) > 0 && len(k.problems) == before {
		k.add("encryption.recipients", "leave the list empty, and encrypt the disks below the store", "this version of pitr does not encrypt")
	}
}

func (k *checker) recipient(path, r string) {
	if strings.HasPrefix(strings.ToUpper(r), "AGE-SECRET-KEY-") {
		k.add(path, "take this key out of the file, regard it as known to others, and put here what `age-keygen -y` prints for a new one",
			"a private key: only public keys, which begin with age1, stand here")
		return
	}
	if _, err := age.ParseX25519Recipient(r); err != nil {
		k.add(path, "`age-keygen` prints the public key that belongs to an identity", "not an age public key: it must begin with age1")
	}
}

func (k *checker) required(path, value string) {
	if value == "" {
		k.add(path, "", "must not be empty")
	}
}

func (k *checker) between(path string, n, least, most int) {
	if n < least || n > most {
		k.add(path, "", "%d is not allowed: it must be from %d to %d", n, least, most)
	}
}

func (k *checker) lasting(path string, d Duration, least, most time.Duration) {
	if t := time.Duration(d); t < least || t > most {
		k.add(path, "", "%s is not allowed: it must be from %s to %s", d, Duration(least), Duration(most))
	}
}

func (k *checker) oneOf(path, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		k.add(path, "", "%q is not allowed: it must be %s", value, strings.Join(allowed, " or "))
	}
}

const scheduleForm = "five fields (minute, hour, day of month, month, day of week), as in \"0 1 * * *\", or a word such as @daily, or empty"

func (k *checker) schedule(path, s string) {
	if s == "" {
		return
	}
	// The library cuts the zone off at the next space and panics where there is none.
	if (strings.HasPrefix(s, "TZ=") || strings.HasPrefix(s, "CRON_TZ=")) && !strings.Contains(s, " ") {
		k.add(path, "", "%q is not a schedule: it must be %s", s, scheduleForm)
		return
	}
	sched, err := cron.ParseStandard(s)
	if err != nil {
		k.add(path, "", "%q is not a schedule: it must be %s", s, scheduleForm)
		return
	}
	// The library gives up after five years without a match, which any fixed moment shows.
	if sched.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		k.add(path, "", "%q is a moment that never comes", s)
	}
}

func (k *checker) host(path, s string) {
	if s == "" || len(s) > 253 || strings.ContainsAny(s, " /@\"'\x00\n\t[]") || strings.Contains(s, ":") && net.ParseIP(s) == nil {
		k.add(path, "", "%q is not an address: it must be an IP address or a host name, without a port", s)
	}
}

func (k *checker) listen(path, s string) {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		var n int
		n, err = strconv.Atoi(port)
		if err == nil && n >= 1 && n <= 65535 {
			return
		}
	}
	k.add(path, "", "%q is not an address to listen on: it must be HOST:PORT, as in 127.0.0.1:8008", s)
}
