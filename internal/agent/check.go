package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"pitr/archive"
	"pitr/internal/agent/client"
	"pitr/internal/config"
	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/storage"
)

// The results of a check.
const (
	CheckOK   = "ok"
	CheckWarn = "warn"
	CheckFail = "fail"
)

// Finding is the result of one check. Names are stable.
type Finding struct {
	Name    string `json:"name"`
	Status  string `json:"status"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Checks are what `pitr check` looks at.
type Checks struct {
	Config *config.Config
	// Bucket opens the store, Archive the server's archive in it, for writing.
	Bucket  func(context.Context) (storage.Bucket, error)
	Archive func(context.Context) (*archive.Archive, error)
	Now     func() time.Time
	// Report gets each finding as soon as it is known.
	Report func(Finding)
}

// checker runs the checks one after the other.
type checker struct {
	Checks
	bucket storage.Bucket // nil: not reached
	conn   *postgres.Conn // nil: not reached
	info   postgres.Info
	failed bool
}

// Run proves the set-up from end to end, as far as it goes: what can't be tried because something else failed, is
// reported as such. It writes a restore point into the server's WAL, ends a segment, and leaves scratch objects in the
// store only if it is killed. It returns whether nothing failed.
func (c Checks) Run(ctx context.Context) bool {
	k := &checker{Checks: c}
	k.configuration()
	k.store(ctx)
	k.server(ctx)
	if k.conn != nil {
		defer k.conn.Close()
	}
	k.settings()
	k.space()
	k.agent(ctx)
	k.roundTrip(ctx)
	return !k.failed
}

func (k *checker) say(status, name, advice, format string, args ...any) {
	k.failed = k.failed || status == CheckFail
	k.Report(Finding{Name: name, Status: status, Message: fmt.Sprintf(format, args...), Hint: advice})
}

func (k *checker) ok(name, format string, args ...any) { k.say(CheckOK, name, "", format, args...) }

func (k *checker) warn(name, advice, format string, args ...any) {
	k.say(CheckWarn, name, advice, format, args...)
}

func (k *checker) fail(name, advice, format string, args ...any) {
	k.say(CheckFail, name, advice, format, args...)
}

func (k *checker) err(name string, err error) { k.fail(name, hint.Of(err), "%v", err) }

func (k *checker) untried(name, why string) { k.warn(name, "", "not tried, since %s", why) }

func (k *checker) configuration() {
	warnings := config.Warnings(*k.Config)
	for _, w := range warnings {
		k.warn("config", w.Hint, "%s: %s", w.Path, w.Text)
	}
	switch {
	case len(warnings) > 0:
	case k.Config.File == "":
		k.ok("config", "no file: the defaults are in force")
	default:
		k.ok("config", "%s", k.Config.File)
	}
}

func (k *checker) store(ctx context.Context) {
	b, err := k.Bucket(ctx)
	if err != nil {
		k.err("store", err)
		return
	}
	got, err := storage.Probe(ctx, b)
	if err != nil {
		k.err("store", err)
		return
	}
	k.bucket = b
	k.ok("store", "%s: written, listed, read back and deleted", b)
	if got.CreateIfAbsent {
		k.ok("store-create", "of several that create one object, one succeeds")
	} else {
		k.warn("store-create", "nothing needs to be done", "the store does not keep two writers from creating the same object; "+
			"objects are named by their content, so that neither can replace the other's, but each one costs one more request")
	}
	if got.StrongList {
		k.ok("store-list", "listings show at once what was created and deleted")
	} else {
		k.warn("store-list", "nothing needs to be done", "listings may lag behind; whatever seems absent is asked for again, which makes archiving and recovery slower")
	}
}

const noServer = "the server can't be asked"

func (k *checker) server(ctx context.Context) {
	conn, err := postgres.Connect(ctx, k.Config.Postgres)
	if err != nil {
		k.err("server", err)
		return
	}
	info, err := conn.Info(ctx)
	if err != nil {
		conn.Close()
		k.err("server", err)
		return
	}
	k.conn, k.info = conn, info
	role := "primary"
	if info.InRecovery {
		role = "standby"
	}
	k.ok("server", "PostgreSQL %s, %s, timeline %d, segments of %d MB", versionText(info.Version), role, info.Timeline, info.WALSegSize>>20)
	// That the version is supported, Connect sees to.
	control, err := postgres.ReadControl(ctx, k.Config.Postgres.DataDir)
	switch {
	case err != nil:
		k.err("data-dir", err)
	case control.SystemID != info.SystemID:
		k.fail("data-dir", "`postgres.data_dir` and `postgres.host` with `postgres.port` must be of the same server",
			"%s is of system identifier %d, the server is %d", k.Config.Postgres.DataDir, control.SystemID, info.SystemID)
	default:
		k.ok("data-dir", "%s is the server's (system identifier %d)", k.Config.Postgres.DataDir, info.SystemID)
	}
	k.clock("clock-server", "the server's", info.Now, k.Now())
}

func versionText(num int) string { return fmt.Sprintf("%d.%d", num/10000, num%10000) }

// clockWarn is how far clocks may be apart before it matters to people who name moments.
const clockWarn = 2 * time.Second

func (k *checker) clock(name, whose string, there, here time.Time) {
	d := there.Sub(here)
	if d.Abs() <= clockWarn {
		k.ok(name, "%s clock is this host's", whose)
		return
	}
	k.warn(name, "targets in time mean the server's clock; let all hosts follow one time server", "%s clock is %v off this host's", whose, d.Round(time.Millisecond))
}

// settings looks at what the server needs for archiving and backups.
func (k *checker) settings() {
	if k.conn == nil {
		k.untried("settings", noServer)
		return
	}
	i := k.info
	if i.WALLevel == "minimal" {
		k.fail("wal_level", "set wal_level = replica and restart the server", "minimal: the WAL is not enough for recovery")
	} else {
		k.ok("wal_level", "%s", i.WALLevel)
	}
	switch {
	case i.ArchiveMode == "off":
		k.fail("archive_mode", "set archive_mode = on and restart the server", "off: the server archives nothing")
	case i.ArchiveMode == "on" && i.InRecovery:
		k.ok("archive_mode", "on: archives once this standby is promoted")
	default:
		k.ok("archive_mode", "%s", i.ArchiveMode)
	}
	k.archiveCommand()
	if i.FullPageWrites {
		k.ok("full_page_writes", "on")
	} else {
		k.fail("full_page_writes", "set full_page_writes = on", "off: a page that a crash or a backup tears can't be repaired")
	}
	if i.Fsync {
		k.ok("fsync", "on")
	} else {
		k.warn("fsync", "set fsync = on", "off: a crash of the machine can damage the database")
	}
	if i.DataChecksums {
		k.ok("data_checksums", "on")
	} else {
		k.warn("data_checksums", "`pg_checksums --enable` switches them on while the server is stopped", "off: damaged pages can't be told while they are backed up")
	}
}

func (k *checker) archiveCommand() {
	const name = "archive_command"
	want := k.wantedCommand()
	command := k.info.ArchiveCommand
	switch {
	case k.info.ArchiveLibrary != "":
		k.warn(name, "pitr archives by archive_command; see what the check `archive` says", "archive_library is %q, which the server uses instead", k.info.ArchiveLibrary)
	case k.info.ArchiveMode == "off":
		k.untried(name, "archive_mode is off")
	case strings.TrimSpace(command) == "":
		k.fail(name, "set archive_command = '"+strings.ReplaceAll(want, "'", "''")+"' and reload the server", "empty: WAL piles up in pg_wal and is not archived")
	case !strings.Contains(command, "wal push") || !strings.Contains(command, "%p"):
		k.warn(name, "to let pitr archive, set archive_command = '"+strings.ReplaceAll(want, "'", "''")+"' and reload the server; see what the check `archive` says",
			"does not call `pitr wal push %%p`")
	default:
		k.ok(name, "calls `pitr wal push %%p`")
	}
}

// wantedCommand is the archive_command that uses this program and this configuration.
func (k *checker) wantedCommand() string {
	self, err := os.Executable()
	if err != nil {
		self = "pitr"
	}
	command := postgres.ShellQuote(self)
	if k.Config.File != "" {
		command += " --config " + postgres.ShellQuote(k.Config.File)
	}
	return command + " wal push %p"
}

// space looks at the file systems that fill up first.
func (k *checker) space() {
	k.free("space-wal", filepath.Join(k.Config.Postgres.DataDir, "pg_wal"), "a full pg_wal stops the server")
	k.free("space-service", existing(k.Config.Service.Dir), "the agent needs room to fetch ahead and for backups' lists of files")
}

// existing is path, or what exists above it.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

// lowSpace is what should be free anywhere, in bytes, and in hundredths of the file system; the lesser counts.
const (
	lowSpace   = 1 << 30
	lowPercent = 10
)

func (k *checker) free(name, dir, why string) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		k.err(name, &os.PathError{Op: "look at the file system of", Path: dir, Err: err})
		return
	}
	free, all := int64(st.Bavail)*int64(st.Bsize), int64(st.Blocks)*int64(st.Bsize)
	if free < min(lowSpace, all*lowPercent/100) {
		k.warn(name, why, "%s: only %d MB of %d MB are free", dir, free>>20, all>>20)
		return
	}
	k.ok(name, "%s: %d MB of %d MB are free", dir, free>>20, all>>20)
}

func (k *checker) agent(ctx context.Context) {
	const name = "agent"
	r, err := askAgent(ctx, k.Config.Service.Dir)
	switch {
	case errors.Is(err, client.ErrNoAgent):
		k.warn(name, "start `pitr agent` as a service", "none runs (%v): hooks archive by themselves, one file at a time, and nothing is done by schedule", err)
		return
	case err != nil:
		k.err(name, err)
		return
	}
	owner, err := postgres.AccountOf(k.Config.Postgres.DataDir)
	switch {
	case err != nil:
		k.err(name, err)
	case uint32(r.User) != owner.UID:
		k.fail(name, "run `pitr agent` as that user, or as root, which makes it become that user", "process %d runs as user %d, the data directory is %s's", r.PID, r.User, owner)
	case filepath.Clean(r.DataDir) != filepath.Clean(k.Config.Postgres.DataDir):
		k.fail(name, "restart the agent with this configuration", "process %d serves %s", r.PID, r.DataDir)
	default:
		k.ok(name, "process %d, as %s", r.PID, owner)
	}
}
