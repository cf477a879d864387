package basebackup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
)

// site is a server whose WAL goes into a repository, as archive_command would see to.
type site struct {
	*pgtest.Server
	t       testing.TB
	bucket  storage.Bucket
	repo    *repo.Repo
	archive *archive.Archive
	drop    string // where archive_command puts the files
}

// newSite starts a server and archives what it gives until the test is over.
func newSite(t testing.TB, b storage.Bucket, o pgtest.Options) *site {
	t.Helper()
	s := &site{t: t, bucket: b, drop: pgtest.TempDir(t)}
	if o.Conf == nil {
		o.Conf = map[string]string{}
	}
	o.Conf["archive_mode"] = "on"
	o.Conf["archive_command"] = fmt.Sprintf("cp %%p %s/%%f.tmp && mv %[1]s/%%f.tmp %[1]s/%%f", s.drop)
	o.NoFsync = true
	s.Server = pgtest.Start(t, o)
	s.connect()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			s.push(ctx)
			time.Sleep(10 * time.Millisecond)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return s
}

// connect opens the repository, which is that of the server as it is now.
func (s *site) connect() {
	s.t.Helper()
	control, err := postgres.ReadControl(context.Background(), s.Dir)
	if err != nil {
		s.t.Fatal(err)
	}
	s.repo, err = repo.Ensure(context.Background(), s.bucket, repo.Facts{
		SystemID: control.SystemID, Major: control.Major, SegmentSize: int64(control.WALSegSize), BlockSize: int(control.BlockSize),
	}, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	s.archive = archive.New(s.repo, archive.Options{})
	s.t.Cleanup(s.archive.Close)
}

// push archives what archive_command has left. It never fails the test: a store that is made to fail makes it fail too.
func (s *site) push(ctx context.Context) {
	names, err := os.ReadDir(s.drop)
	if err != nil {
		return
	}
	for _, n := range names {
		path := filepath.Join(s.drop, n.Name())
		if wal.Classify(n.Name()) == wal.Other {
			continue
		}
		if _, err := s.archive.Push(ctx, path, s.repo.SystemID()); err == nil {
			os.Rename(path, filepath.Join(s.drop, "done."+n.Name()))
		}
	}
}

func (s *site) session() *postgres.Conn {
	s.t.Helper()
	conn, err := postgres.Connect(context.Background(), s.Config())
	if err != nil {
		s.t.Fatal(err)
	}
	return conn
}

func (s *site) options() Options {
	return Options{DataDir: s.Dir, Node: "n1", SpoolDir: s.t.TempDir(), ArchiveTimeout: time.Minute}
}

// hook is called before a file is opened. What it returns is called after the copy has asked for the file's size.
type hook func(path string) (opened func())

// hooked is an open file with a hook.
type hooked struct {
	dataFile
	opened func()
}

func (h hooked) Stat() (fs.FileInfo, error) {
	info, err := h.dataFile.Stat()
	h.opened()
	return info, err
}

// try takes a backup, with hook called, if not nil.
func (s *site) try(ctx context.Context, r *repo.Repo, o Options, hook hook) (*Header, error) {
	conn := s.session()
	defer conn.Close()
	return take(ctx, r, conn, o, func(path string) (dataFile, error) {
		if hook == nil {
			return openData(path)
		}
		opened := hook(path)
		f, err := openData(path)
		if err != nil || opened == nil {
			return f, err
		}
		return hooked{f, opened}, nil
	})
}

func (s *site) take(o Options, hook hook) *Header {
	s.t.Helper()
	h, err := s.try(context.Background(), s.repo, o, hook)
	if err != nil {
		s.t.Fatal(err)
	}
	return h
}

// intact verifies a backup and fails the test unless nothing is wrong.
func (s *site) intact(h *Header) {
	s.t.Helper()
	report, err := Verify(context.Background(), s.repo, h.ID, VerifyOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	if len(report.Damaged) > 0 || report.Bytes == 0 && h.Size > 0 {
		s.t.Fatalf("backup %s: %+v", h.ID, report)
	}
}

// unpack writes a backup into a new directory, as simply as can be, with settings that make a server recover from the
// archive until the end.
func (s *site) unpack(h *Header) string {
	s.t.Helper()
	ctx := context.Background()
	dir := filepath.Join(pgtest.TempDir(s.t), "data")
	m, err := OpenManifest(ctx, s.repo, h.ID, "")
	if err != nil {
		s.t.Fatal(err)
	}
	defer m.Close()
	fr, err := NewFrameReader(s.repo)
	if err != nil {
		s.t.Fatal(err)
	}
	defer fr.Close()
	spaces := make(map[string]string)
	for e, err := range m.Entries() {
		if err != nil {
			s.t.Fatal(err)
		}
		path := filepath.Join(dir, e.Path)
		switch e.Type {
		case Directory:
			err = os.Mkdir(path, fs.FileMode(e.Mode&0o777))
		case Symlink:
			if strings.HasPrefix(e.Path, "pg_tblspc/") {
				spaces[e.Target] = filepath.Join(filepath.Dir(dir), filepath.Base(e.Path))
				err = errors.Join(os.Mkdir(spaces[e.Target], 0o700), os.Symlink(spaces[e.Target], path))
			}
		case File:
			err = s.unpackFile(fr, h, e, path)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	write("backup_label", string(h.BackupLabel))
	if h.TablespaceMap != "" {
		text := string(h.TablespaceMap)
		for from, to := range spaces {
			text = strings.ReplaceAll(text, from, to)
		}
		write("tablespace_map", text)
	}
	write("recovery.signal", "")
	if out, err := s.chown(filepath.Dir(dir)); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	return dir
}

func (s *site) chown(dir string) ([]byte, error) {
	uid, gid := pgtest.User()
	return nil, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, uid, gid))
	})
}

func (s *site) unpackFile(fr *FrameReader, h *Header, e *Entry, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(e.Mode&0o777))
	if err != nil {
		return err
	}
	defer f.Close()
	at := int64(0)
	for _, x := range e.Extents {
		if !x.Zeros {
			frames := []Frame{x.Frame}
			err := fr.Read(context.Background(), frames, Runs(h, frames)[0], func(_ int, raw []byte, err error) error {
				if err == nil {
					_, err = f.WriteAt(raw[x.Offset:int64(x.Offset)+x.Length], at)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		at += x.Length
	}
	return f.Truncate(at)
}

// restore unpacks a backup and starts a server on it, which has replayed all that is archived.
func (s *site) restore(h *Header) *pgtest.Server {
	s.t.Helper()
	dir := s.unpack(h)
	r := pgtest.OpenDir(s.t, dir, pgtest.Options{Bin: s.Bin, Conf: map[string]string{
		"archive_mode": "off", "restore_command": fmt.Sprintf("cp %s/done.%%f %%p", s.drop), "fsync": "off",
		"recovery_target_timeline": "latest",
	}})
	r.AwaitPrimary()
	return r
}

// archived returns when the WAL written so far is in the archive.
func (s *site) archived() {
	s.t.Helper()
	s.Exec("SELECT pg_create_restore_point('here')")
	name := pgtest.QueryOne[string](s.Server, "SELECT pg_walfile_name(pg_current_wal_lsn())")
	s.Exec("SELECT pg_switch_wal()")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(s.drop, "done."+name)); err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s is not archived", name)
		}
	}
}

// logged collects what is logged.
type logged struct{ strings.Builder }

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// walName is the name of a segment on a backup's timeline.
func walName(h *Header, no uint64) string { return wal.SegmentName(h.Timeline, no, h.WALSegSize) }
