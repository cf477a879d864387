package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// lab is the scratch directory with the server, and what the steps need of it.
type lab struct {
	ctx    context.Context
	o      options
	dir    string
	data   string
	bin    string // PostgreSQL's programs
	pitr   string // a copy that the server's user can run
	cred   *syscall.Credential
	server *exec.Cmd
	agent  *exec.Cmd

	segments []string // of WAL, for the drains
}

const port = "54329" // only names the socket file: the server listens on no network

func newLab(ctx context.Context, o options) (*lab, error) {
	l := &lab{ctx: ctx, o: o}
	for _, p := range []string{"pgbackrest", "zstd"} {
		if _, err := exec.LookPath(p); err != nil {
			return nil, fmt.Errorf("%w (run `make bench` as root, or install the package %s)", err, p)
		}
	}
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		return nil, errors.New("no PostgreSQL in /usr/lib/postgresql (run `make deps`)")
	}
	l.bin = bins[len(bins)-1]
	if l.dir, err = os.MkdirTemp("", "pitr-bench"); err != nil {
		return nil, err
	}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, joinClose(err, l)
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		l.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(l.dir, int(uid), int(gid)); err != nil {
			return nil, joinClose(err, l)
		}
	}
	l.data = filepath.Join(l.dir, "data")
	l.pitr = filepath.Join(l.dir, "pitr")
	prog, err := os.ReadFile(o.pitr)
	if err == nil {
		err = os.WriteFile(l.pitr, prog, 0o755)
	}
	if err != nil {
		return nil, joinClose(err, l)
	}
	return l, nil
}

// joinClose ends what the lab started and removes its directory.
func joinClose(err error, l *lab) error {
	l.stopAgent()
	if l.server != nil {
		l.server.Process.Signal(syscall.SIGINT)
		err = errors.Join(err, l.server.Wait())
	}
	if l.o.keep {
		l.say("kept: %s", l.dir)
		return err
	}
	return errors.Join(err, os.RemoveAll(l.dir))
}

func (l *lab) say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// command prepares a program to run as the server's user in the lab's directory.
func (l *lab) command(name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(l.ctx, name, args...)
	c.Dir = l.dir
	c.Env = append(os.Environ(), "HOME="+l.dir, "PGHOST="+l.dir, "PGPORT="+port, "PGUSER=postgres", "PGDATABASE=postgres")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: l.cred}
	return c
}

// run runs a program to its end; its output is part of the error.
func (l *lab) run(name string, args ...string) (string, error) {
	c := l.command(name, args...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}

func (l *lab) sql(statements ...string) (string, error) {
	args := []string{"-XAtq", "-v", "ON_ERROR_STOP=1"}
	for _, s := range statements {
		args = append(args, "-c", s)
	}
	out, err := l.run(filepath.Join(l.bin, "psql"), args...)
	return strings.TrimSpace(out), err
}

// fill makes the cluster: half pgbench, half text, and then the WAL segments to drain.
func (l *lab) fill() error {
	began := time.Now()
	if _, err := l.run(filepath.Join(l.bin, "initdb"), "-D", l.data, "-U", "postgres", "-A", "trust", "-k", "-E", "UTF8", "--locale=C"); err != nil {
		return err
	}
	if err := appendFile(filepath.Join(l.data, "postgresql.conf"), fmt.Sprintf(`
listen_addresses = ''
port = %s
unix_socket_directories = '%s'
archive_mode = on
archive_command = 'true'
max_wal_size = 8GB
checkpoint_timeout = 1h
shared_buffers = 256MB
autovacuum = off
`, port, l.dir)); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(l.dir, "server.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	l.server = l.command(filepath.Join(l.bin, "postgres"), "-D", l.data)
	l.server.Cancel = func() error { return l.server.Process.Signal(syscall.SIGQUIT) }
	l.server.Stdout, l.server.Stderr = log, log
	if err := l.server.Start(); err != nil {
		l.server = nil
		return err
	}
	if err := l.wait(time.Minute, "the server to start", func() bool { _, err := l.sql("SELECT 1"); return err == nil }); err != nil {
		return err
	}
	scale := max(1, l.o.megabytes/2/15) // about 15 MB each
	if _, err := l.run(filepath.Join(l.bin, "pgbench"), "-i", "-q", "-s", strconv.Itoa(scale)); err != nil {
		return err
	}
	rows := l.o.megabytes / 2 * 3700 // about 270 bytes each
	if _, err := l.sql(fmt.Sprintf(`
CREATE TABLE words AS SELECT n, w FROM unnest(string_to_array('the server archives each segment of its log before it is used again and a standby or a restored copy replays them in order up to the moment that was asked for so nothing that was committed before is lost', ' ')) WITH ORDINALITY AS x(w, n);
SELECT setseed(0.5);
CREATE TABLE text AS SELECT g AS id, now() + g * interval '1 s' AS at, (
  SELECT string_agg(CASE WHEN random() < 0.25 THEN w || floor(random() * 100000)::int ELSE w END, ' ')
  FROM (SELECT w FROM words WHERE g > 0 ORDER BY random()) shuffled) AS line
FROM generate_series(1, %d) AS g;
CREATE INDEX ON text (id)`, rows)); err != nil {
		return err
	}
	if _, err := l.sql("CHECKPOINT"); err != nil {
		return err
	}
	l.say("cluster of %.0f MB made in %.0f s", float64(treeSize(filepath.Join(l.data, "base")))/1e6, time.Since(began).Seconds())
	return l.makeSegments()
}

// makeSegments lets the server write real WAL of pgbench's kind until enough segments are full,
// and keeps them in pg_wal: the archiver's own marks are set back for each drain. Those that a backup ends early, which
// are empty for the most part, are not among them.
func (l *lab) makeSegments() error {
	if _, err := l.sql("ALTER SYSTEM SET wal_keep_size = '4GB'", "SELECT pg_reload_conf()", "SELECT pg_switch_wal()"); err != nil {
		return err
	}
	first, err := l.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
	if err != nil {
		return err
	}
	for {
		// After a checkpoint each page's first change writes the page: the mix of a busy server.
		if _, err := l.sql("CHECKPOINT"); err != nil {
			return err
		}
		if _, err := l.run(filepath.Join(l.bin, "pgbench"), "-n", "-c", "4", "-t", "4000"); err != nil {
			return err
		}
		done, err := l.doneSince(first)
		if err != nil {
			return err
		}
		if len(done) >= l.o.segments {
			l.segments = done[:l.o.segments]
			l.say("%d segments of WAL written", len(done))
			return nil
		}
	}
}

// doneSince lists the archived segments from first on, in order.
func (l *lab) doneSince(first string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(l.data, "pg_wal", "archive_status"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".done"); ok && len(name) == 24 && name >= first {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// wait polls until ok holds.
func (l *lab) wait(limit time.Duration, what string, ok func() bool) error {
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s for %s", limit, what)
		}
		select {
		case <-l.ctx.Done():
			return l.ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func appendFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// treeSize adds up the sizes of the files below dir.
func treeSize(dir string) (total int64) {
	filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if i, err := e.Info(); err == nil {
				total += i.Size()
			}
		}
		return nil
	})
	return total
}
