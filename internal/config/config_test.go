package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestDefaultFileSaysTheDefaults(t *testing.T) {
	c, err := parse(DefaultFile(), "", "db1")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.resolve("db1")
	if !reflect.DeepEqual(*c, want) {
		t.Errorf("default.yaml and Default differ:\n%+v\n%+v", *c, want)
	}
	d := decoder{at: map[string]position{}}
	d.file(DefaultFile(), new(Default()))
	for path := range allKeys(reflect.TypeFor[Config](), "") {
		if _, ok := d.at[path]; !ok {
			t.Errorf("default.yaml does not mention %s", path)
		}
	}
}

func TestDefaultFileIsTheOneInConfigs(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "configs", "pitr.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if string(data) != string(DefaultFile()) {
		t.Error("configs/pitr.yaml is not a copy of internal/config/default.yaml: copy it")
	}
}

func TestExamplesAreRight(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "configs", "*.yaml"))
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if _, err := Load(f); err != nil {
			t.Error(err)
		}
	}
}

func TestNothingGivenIsTheDefault(t *testing.T) {
	want := Default()
	want.resolve("db1")
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "cluster:\narchive:\n", "archive: {}\n", "postgres:\n  data_dir: ~\n"} {
		c, err := parse([]byte(text), "", "db1")
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if !reflect.DeepEqual(*c, want) {
			t.Errorf("%q: %+v", text, *c)
		}
	}
}

func TestValues(t *testing.T) {
	c, err := parse([]byte(`
cluster:
  name: 007
  node: n1
  address: fd00::1
  synchronous: on
  members: {n1: 10.0.0.1, n2: db2.example}
  etcd: ["https://10.0.0.7:2379"]
postgres:
  data_dir: "/data/ü 'x'\n"
  managed: true
  parameters:
    max_connections: 200
    fsync: on
    random_page_cost: 1.10
    wal_keep_size: '1GB'
    search_path: |
      "a
      b"
archive: {timeout: 1h30m}
backup:
  schedule: "CRON_TZ=Europe/Berlin 30 2 * * 1-5"
  retention: {window: 2w}
dumps: {databases: ["a b", 'x"y']}
`), "sub/pitr.yaml", "ignored")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.File, _ = filepath.Abs("sub/pitr.yaml")
	want.Cluster.Name, want.Cluster.Node, want.Cluster.Address = "007", "n1", "fd00::1"
	want.Cluster.Synchronous = "on"
	want.Cluster.Members = map[string]string{"n1": "10.0.0.1", "n2": "db2.example"}
	want.Cluster.Etcd = []string{"https://10.0.0.7:2379"}
	want.Postgres.DataDir = "/data/ü 'x'\n"
	want.Postgres.Managed = true
	want.Postgres.Parameters = map[string]string{"max_connections": "200", "fsync": "on", "random_page_cost": "1.10",
		"wal_keep_size": "1GB", "search_path": "\"a\nb\"\n"}
	want.Archive.Timeout = Duration(90 * time.Minute)
	want.Backup.Schedule = "CRON_TZ=Europe/Berlin 30 2 * * 1-5"
	want.Backup.Retention.Window = Duration(14 * day)
	want.Dumps.Databases = []string{"a b", `x"y`}
	want.Service.Listen = "[fd00::1]:8008"
	if !reflect.DeepEqual(*c, want) {
		t.Errorf("got  %+v\nwant %+v", *c, want)
	}
}

func TestProblems(t *testing.T) {
	const secret = "AKIAIOSFODNN7SECRET"
	for _, tc := range []struct{ name, text, want string }{
		{"unknown key", "archive: {worker: 2}", `p.yaml:1:11: archive.worker: no such key: allowed in archive are workers, timeout | did you mean archive.workers?`},
		{"unknown section", "achive:\n  workers: 2", `p.yaml:1:1: achive: no such key: allowed at the top of the file are cluster, postgres, storage, encryption, archive, backup, dumps, service | did you mean archive?`},
		{"right key, wrong section", "data_dir: /x", `p.yaml:1:1: data_dir: no such key: allowed at the top of the file are cluster, postgres, storage, encryption, archive, backup, dumps, service | did you mean postgres.data_dir?`},
		{"hyphen and case", "postgres: {Data-Dir: /x}", `p.yaml:1:12: postgres.Data-Dir: no such key: allowed in postgres are data_dir, bin_dir, host, port, user, managed, parameters | did you mean postgres.data_dir?`},
		{"nothing like it", "archive: {zzzzzzzz: 2}", `p.yaml:1:11: archive.zzzzzzzz: no such key: allowed in archive are workers, timeout`},
		{"secret in the file", "storage: {s3: {secret_access_key: " + secret + "}}",
			`p.yaml:1:16: storage.s3.secret_access_key: no such key: secrets never stand in the configuration | put the value into a file that only pitr's user can read, and name the file in storage.s3.secret_access_key_file`},
		{"secret as path", "storage: {s3: {secret_access_key_file: " + secret + "}}",
			`p.yaml:1:16: storage.s3.secret_access_key_file: not an absolute path: it must be that of a file | write the whole path, from the root`},
		{"secret in the URL", "storage: {url: 's3://ak:" + secret + "@bucket/x'}",
			`p.yaml:1:11: storage.url: a URL that holds a user or password: credentials go into the files that the store's own section names`},
		{"database password", "postgres: {password: " + secret + "}",
			`p.yaml:1:12: postgres.password: no such key: secrets never stand in the configuration | pitr reads the password as every PostgreSQL client does: from ~/.pgpass, $PGPASSFILE or $PGPASSWORD`},
		{"private key", "encryption: {recipients: [AGE-SECRET-KEY-1" + secret + "]}",
			"p.yaml:1:27: encryption.recipients[0]: a private key: only public keys, which begin with age1, stand here | take this key out of the file, regard it as known to others, and put here what `age-keygen -y` prints for a new one"},
		{"public key", "encryption: {recipients: [age1abc]}",
			"p.yaml:1:27: encryption.recipients[0]: not an age public key: it must begin with age1 | `age-keygen` prints the public key that belongs to an identity"},
		{"encryption", "encryption: {recipients: [age1lvyvwawkr0mcnnnncaghunadrqkmuf9e6507x9y920xxpp866cnql7dp2z]}",
			`p.yaml:1:14: encryption.recipients: this version of pitr does not encrypt | leave the list empty, and encrypt the disks below the store`},
		{"not a number", "archive: {workers: two}", `p.yaml:1:20: archive.workers: "two" is not a whole number`},
		{"fraction", "archive: {workers: 2.5}", `p.yaml:1:20: archive.workers: "2.5" is not a whole number`},
		{"huge number", "archive: {workers: 99999999999999999999}", `p.yaml:1:20: archive.workers: "99999999999999999999" is not a whole number`},
		{"number out of range", "backup:\n  level: 40", `p.yaml:2:3: backup.level: 40 is not allowed: it must be from 1 to 19`},
		{"list for a number", "archive: {workers: [1]}", `p.yaml:1:20: archive.workers: must be a whole number, not a list or a section`},
		{"text for a section", "archive: 2", "p.yaml:1:10: archive: this must be a section of `key: value` lines"},
		{"list for the file", "- a", "p.yaml:1:1: the file must be a section of `key: value` lines"},
		{"text for a list", "dumps: {databases: a}", `p.yaml:1:20: dumps.databases: must be a list, as in [a, b]`},
		{"no unit", "archive: {timeout: 60}", `p.yaml:1:20: archive.timeout: "60" has no unit: it must be a whole number and a unit (ms, s, m, h, d, w), as in 60s, 1h30m or 14d`},
		{"short lease", "cluster: {lease: 10ms}", `p.yaml:1:11: cluster.lease: 10ms is not allowed: it must be from 1s to 1m`},
		{"boolean for a word", "cluster: {synchronous: false}", `p.yaml:1:11: cluster.synchronous: "false" is not allowed: it must be off or on or strict`},
		{"word for a boolean", "cluster: {witness: yes}", `p.yaml:1:20: cluster.witness: must be true or false (yes, no, on and off are only words)`},
		{"node name", "cluster: {node: DB_1}", `p.yaml:1:11: cluster.node: "DB_1" is not a node name: it must be 1 to 40 of a-z, 0-9 and -, beginning with a letter or a digit`},
		{"member name", "cluster: {members: {N1: 10.0.0.1}}", `p.yaml:1:21: cluster.members.N1: "N1" is not a node name: it must be 1 to 40 of a-z, 0-9 and -, beginning with a letter or a digit`},
		{"member address", "cluster: {members: {n1: '10.0.0.1:5432'}}", `p.yaml:1:21: cluster.members.n1: "10.0.0.1:5432" is not an address: it must be an IP address or a host name, without a port`},
		{"endpoint", "cluster: {etcd: ['http://a:1', '10.0.0.1:2379']}", `p.yaml:1:32: cluster.etcd[1]: not an endpoint: it must be http://HOST:PORT or https://HOST:PORT`},
		{"same port twice", "cluster:\n  ports: {rw: 5000, ro: 5000}", `p.yaml:2:21: cluster.ports.ro: 5000 is also cluster.ports.rw: each port must be another`},
		{"relative path", "service: {dir: pitr}", `p.yaml:1:11: service.dir: "pitr" is not an absolute path | write the whole path, from the root`},
		{"tilde", "postgres: {data_dir: ~/main}", `p.yaml:1:12: postgres.data_dir: "~/main" is not an absolute path | ~ is not expanded: write the whole path`},
		{"port of the server", "postgres: {port: 0}", `p.yaml:1:12: postgres.port: 0 is not between 1 and 65535`},
		{"relative store", "storage: {url: 'file://repo'}", `p.yaml:1:11: storage.url: a file:// URL names no host or user | write file:///absolute/path, with three slashes`},
		{"schedule", `backup: {schedule: "1 * * *"}`, `p.yaml:1:10: backup.schedule: "1 * * *" is not a schedule: it must be five fields (minute, hour, day of month, month, day of week), as in "0 1 * * *", or a word such as @daily, or empty`},
		{"schedule that never comes", `dumps: {schedule: "0 0 30 2 *"}`, `p.yaml:1:9: dumps.schedule: "0 0 30 2 *" is a moment that never comes`},
		{"zone without a schedule", `backup: {schedule: "TZ=UTC"}`, `p.yaml:1:10: backup.schedule: "TZ=UTC" is not a schedule: it must be five fields (minute, hour, day of month, month, day of week), as in "0 1 * * *", or a word such as @daily, or empty`},
		{"listen", "service: {listen: '8008'}", `p.yaml:1:11: service.listen: "8008" is not an address to listen on: it must be HOST:PORT, as in 127.0.0.1:8008`},
		{"twice", "archive:\n  workers: 2\n  workers: 3", `p.yaml:3:3: not valid YAML: mapping key "workers" already defined at [2:3]`},
		{"two documents", "archive: {}\n---\nbackup: {}", "p.yaml:3:7: more than one document in the file | keep what stands before the second `---`"},
		{"alias", "archive: &a {workers: 2}", `p.yaml:1:10: archive: anchors, aliases, merges and tags are not supported | write the value out`},
		{"tag", "archive: {workers: !!int 2}", `p.yaml:1:20: archive.workers: anchors, aliases, merges and tags are not supported | write the value out`},
		{"several", "backup: {level: 0}\narchive: {workers: x, bogus_thing_here: 1}",
			"p.yaml:1:10: backup.level: 0 is not allowed: it must be from 1 to 19\n" +
				`p.yaml:2:20: archive.workers: "x" is not a whole number` + "\n" +
				`p.yaml:2:23: archive.bogus_thing_here: no such key: allowed in archive are workers, timeout`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parse([]byte(tc.text), "p.yaml", "db1")
			e, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("error is %v", err)
			}
			var lines []string
			for _, p := range e.Problems {
				line := e.Describe(p)
				if p.Hint != "" {
					line += " | " + p.Hint
				}
				lines = append(lines, line)
			}
			if got := strings.Join(lines, "\n"); got != tc.want {
				t.Errorf("got\n%s\nwant\n%s", got, tc.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("a secret in the error: %s", err)
			}
		})
	}
}

func TestHostThatNamesNoNode(t *testing.T) {
	_, err := parse(nil, "", "---")
	const want = "configuration: cluster.node: not set, and this host's name gives none: it must be 1 to 40 of a-z, 0-9 and -, beginning with a letter or a digit"
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

func TestNodeName(t *testing.T) {
	for host, want := range map[string]string{
		"db1": "db1", "DB1.example.com": "db1", "my_host": "my-host", "_x": "x", "": "", "ü": "", "ünix": "nix",
		strings.Repeat("a", 64): strings.Repeat("a", 40),
	} {
		if got := nodeName(host); got != want {
			t.Errorf("%q gives %q, want %q", host, got, want)
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.WriteFile(b, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		flag, env, want string
		places          []string
	}{
		{"/f", "/e", "/f", []string{b}},
		{"", "/e", "/e", []string{b}},
		{"", "", b, []string{a, b}},
		{"", "", "", []string{a}},
	} {
		got, err := find(tc.flag, tc.env, tc.places...)
		if err != nil || got != tc.want {
			t.Errorf("%+v: %q, %v", tc, got, err)
		}
	}
	if _, err := find("", "", filepath.Join(b, "below-a-file")); err == nil {
		t.Error("a place that can't be looked at was passed over silently")
	}
}

func TestLoadFileErrors(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing.yaml")
	_, err := Load(missing)
	if !errors.Is(err, fs.ErrNotExist) || err.Error() != "configuration: "+missing+": no such file or directory" {
		t.Errorf("missing: %v", err)
	}
	if _, err := Load(dir); err == nil || err.Error() != "configuration: "+dir+": not a regular file" {
		t.Errorf("directory: %v", err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); err == nil || err.Error() != "configuration: "+big+": larger than 1 MiB, so not a configuration file" {
		t.Errorf("big: %v", err)
	}
}

func TestShowIsAFileThatSaysTheSame(t *testing.T) {
	c := Default()
	c.Cluster.Synchronous = "off"
	c.Cluster.Name = "007"
	c.Cluster.Members = map[string]string{"n1": "10.0.0.1", "1": "10.0.0.2"}
	c.Cluster.Etcd = []string{"http://a:1", "http://b:2"}
	c.Postgres.DataDir = "/a 'b' \"c\" # ü: \n\t"
	c.Postgres.Parameters = map[string]string{"fsync": "on", "a.b": "true", "work_mem": "1e3", "x": "", "y": "null", "z": " - |\n a\n\n"}
	c.Dumps.Databases = []string{"~", "on", "a: b", "[x]", "x #y", "\u0085\u2028", "-"}
	c.Archive.Timeout = Duration(90 * time.Minute)
	c.resolve("db1")
	text, err := Show(c)
	if err != nil {
		t.Fatal(err)
	}
	back, err := parse([]byte(text), "", "other")
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if !reflect.DeepEqual(*back, c) {
		t.Errorf("shown\n%s\ngot  %+v\nwant %+v", text, *back, c)
	}
}

func TestShowMasksSecrets(t *testing.T) {
	c := Default()
	c.Postgres.Parameters = map[string]string{
		"primary_conninfo":       `host=a password = 'hun\'ter2' sslpassword=hunter2 user=b`,
		"x.url":                  "postgres://u:hunter2@h/db?password=hunter2&x=1",
		"ssl_passphrase_command": "echo hunter2",
		"password_encryption":    "md5",
	}
	text, err := Show(c)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "ter2") {
		t.Errorf("a secret in\n%s", text)
	}
	for _, want := range []string{"password = ******** sslpassword=******** user=b", "postgres://u:********@h/db?password=********&x=1", "password_encryption: md5"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if c.Postgres.Parameters["ssl_passphrase_command"] != "echo hunter2" {
		t.Error("masking changed the configuration itself")
	}
}

func TestWarnings(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, mode fs.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, nil, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	c := Default()
	c.Storage.S3.SecretAccessKeyFile = file("open", 0o644)
	c.Storage.S3.CAFile = file("ca", 0o644)
	c.Storage.Swift.PasswordFile = file("closed", 0o640)
	c.Encryption.IdentityFile = filepath.Join(dir, "none")
	c.Dumps.Schedule = "@daily"
	got := Warnings(c)
	want := []Problem{
		{Path: "dumps.schedule", Text: "is set, but this version of pitr does not act on it"},
		{Path: "storage.s3.secret_access_key_file", Text: dir + "/open is readable by everyone (mode 0644)", Hint: "chmod 600 " + dir + "/open"},
		{Path: "encryption.identity_file", Text: dir + "/none: no such file or directory"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s": 0, "60s": time.Minute, "1h30m": 90 * time.Minute, "14d": 14 * day, "2w": 14 * day, "1w2d3h4m5s6ms": 9*day + 3*time.Hour + 4*time.Minute + 5*time.Second + 6*time.Millisecond,
	} {
		got, err := ParseDuration(text)
		if err != nil || time.Duration(got) != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
		if back, err := ParseDuration(got.String()); err != nil || back != got {
			t.Errorf("%s is written %s, which gives %v, %v", text, got, back, err)
		}
	}
	for _, text := range []string{"", "7", "7 d", "d", "-1s", "+1s", "1.5h", "1m1h", "1s1s", "1y", "1M", "1µs", "999999999999999999999s", "200000w", "1000000w1s", "١s"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q gives %v", text, got)
		}
	}
}

// FuzzParse: no file makes the reader panic, and what it accepts can be shown and read again as the same.
func FuzzParse(f *testing.F) {
	f.Add(string(DefaultFile()))
	for _, s := range []string{"a: b", "archive: {workers: [1, {x: y}]}", "cluster:\n  members:\n    ? a\n    : b\n", "%YAML 1.2\n---\n", "backup: {schedule: 'TZ=x'}", "a: &x *x", "<<: {a: 1}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse([]byte(text), "", "db1")
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("not an *Error: %v", err)
			}
			return
		}
		shown, err := Show(*c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parse([]byte(shown), "", "db1"); err != nil {
			t.Fatalf("%v in\n%s", err, shown)
		}
	})
}
