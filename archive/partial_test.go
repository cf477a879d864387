package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/hint"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage/storagetest"
)

// abandoned makes a pg_wal with the file of a segment that timeline 2 has left at the given place.
func abandoned(t *testing.T, name string, data []byte, at wal.LSN) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, wal.HistoryName(2)), fmt.Appendf(nil, "1\t%s\tno recovery target specified\n", at))
	return write(t, filepath.Join(dir, name), data)
}

// Whatever lies behind the end of the timeline in a standby's file, and whoever pushes it under whichever name: it is one
// partial segment, and nothing is archived under the whole name.
func TestSegmentThatItsTimelineLeft(t *testing.T) {
	c := wals(t, 1)
	segment := strings.TrimSuffix(c.partial, ".partial")
	raw, old := c.read(t, c.partial), c.read(t, c.segments[0])
	used := int(c.switched) % (1 << 20)
	page := (used + 8191) / 8192 * 8192
	if used%8192 == 0 || page == 1<<20 {
		t.Fatalf("the timeline was left at %s", c.switched)
	}
	zeros := append(bytes.Clone(raw[:used]), make([]byte, 1<<20-used)...)
	recycled := append(bytes.Clone(raw[:used]), old[used:]...)
	half := append(bytes.Clone(raw[:page]), old[page:]...)
	a := c.archive(t, storagetest.Memory())
	for what, data := range map[string][]byte{"as the server left it": raw, "zeros": zeros, "an old segment": recycled, "pages of an old segment": half} {
		path := abandoned(t, segment, data, c.switched)
		p, err := a.Push(context.Background(), path, c.control.SystemID)
		if err != nil {
			t.Errorf("%s: %v (%s)", what, err, hint.Of(err))
			continue
		}
		if o, ok := repo.ParseWALKey(p.Key); !ok || o.Kind != wal.Partial || o.End != c.switched {
			t.Errorf("%s: it is %s", what, p.Key)
		}
		// Without the history nothing tells that the timeline ended, and nothing is archived.
		alone := write(t, filepath.Join(t.TempDir(), segment), data)
		if _, err := a.Push(context.Background(), alone, c.control.SystemID); !errors.Is(err, ErrSource) {
			t.Errorf("%s, without a history: %v", what, err)
		}
	}
	c.push(t, a, c.partial)
	if all := keys(t, a.repo, ""); len(all) != 2 { // and the facts
		t.Errorf("stored: %v", all)
	}
	if _, err := fetched(t, a, segment, FetchOptions{}); !errors.Is(err, ErrNotArchived) {
		t.Errorf("under the whole name: %v", err)
	}
	got, err := fetched(t, a, segment, FetchOptions{Partial: true})
	if err != nil || !bytes.Equal(got, zeros) {
		t.Errorf("not the WAL of the timeline: %v", err)
	}
	if r, err := a.Verify(context.Background(), VerifyOptions{}); err != nil || !r.OK() {
		t.Errorf("%+v %v", r, err)
	}
}

// Where the last page is the one in which the timeline ended, every page has its right address.
func TestSegmentLeftInItsLastPage(t *testing.T) {
	c := wals(t, 1)
	name := c.segments[0]
	whole := c.read(t, name)
	ix, err := wal.BuildIndex(whole, 1)
	if err != nil || ix.Last < ix.Start+1<<20-8192 {
		t.Fatalf("the last record begins at %s, %v", ix.Last, err)
	}
	at := int(ix.Last - ix.Start)
	for what, tail := range map[string][]byte{"zeros": make([]byte, 1<<20-at), "an old segment": c.read(t, c.segments[1])[at:]} {
		a := c.archive(t, storagetest.Memory())
		data := append(bytes.Clone(whole[:at]), tail...)
		p, err := a.Push(context.Background(), abandoned(t, name, data, ix.Last), c.control.SystemID)
		if o, _ := repo.ParseWALKey(p.Key); err != nil || o.Kind != wal.Partial || o.End != ix.Last {
			t.Errorf("%s: %+v %v", what, p, err)
		}
	}
	alone := write(t, filepath.Join(t.TempDir(), name), append(bytes.Clone(whole[:at]), make([]byte, 1<<20-at)...))
	if _, err := c.archive(t, storagetest.Memory()).Push(context.Background(), alone, c.control.SystemID); !errors.Is(err, ErrSource) {
		t.Errorf("with no history: %v", err)
	}
}

// The old primary finished the segment, the standby did not follow it so far: there is no conflict.
func TestSegmentLeftAndFinished(t *testing.T) {
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	name := c.segments[1]
	c.push(t, a, name)
	data := c.read(t, name)
	clear(data[len(data)/2:])
	ix, err := wal.BuildIndex(data, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Push(context.Background(), abandoned(t, name, data, ix.ValidEnd), c.control.SystemID); err != nil {
		t.Error(err)
	}
	c.wantFetched(t, a, name)
	// And one that is whole is archived as such, wherever the timeline was left.
	other := c.segments[0]
	if _, err := a.Push(context.Background(), abandoned(t, other, c.read(t, other), ix.ValidEnd), c.control.SystemID); err != nil {
		t.Error(err)
	}
	c.wantFetched(t, a, other)
}

// A hole is no end: what is damaged before the timeline was left, or has WAL behind it, is not archived as if that were all.
func TestDamagedSegmentOfTimelineThatWasLeft(t *testing.T) {
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	name := c.segments[1]
	whole := c.read(t, name)
	start, _ := wal.ParseSegmentHeader(whole)
	quarter, half := len(whole)/4, len(whole)/2
	early := bytes.Clone(whole)
	clear(early[quarter:])
	hole := bytes.Clone(whole)
	clear(hole[quarter : quarter+8192])
	stale := bytes.Clone(hole)
	clear(stale[half:])
	for what, data := range map[string][]byte{"it ends early": early, "a page is empty": hole, "a page is empty, and it ends": stale} {
		path := abandoned(t, name, data, start.Addr+wal.LSN(half)-8192)
		if _, err := a.Push(context.Background(), path, c.control.SystemID); !errors.Is(err, ErrSource) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if all := keys(t, a.repo, "wal/"); len(all) != 0 {
		t.Errorf("stored: %v", all)
	}
}

// A standby with archive_mode=always asks for the last segment of the timeline that its primary left, under its whole name.
func TestStandbyArchivesAlways(t *testing.T) {
	follow := func(of *pgtest.Server, name string, conf map[string]string) *pgtest.Server {
		dir := filepath.Join(pgtest.TempDir(t), name)
		of.Stop(postgres.Fast)
		if out, err := exec.Command("cp", "-a", of.Dir, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		of.StartAgain()
		if err := os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		uid, gid := pgtest.User()
		if err := os.Chown(filepath.Join(dir, "standby.signal"), uid, gid); err != nil {
			t.Fatal(err)
		}
		conf["primary_conninfo"] = of.Conn()
		return pgtest.OpenDir(t, dir, pgtest.Options{Conf: conf})
	}
	primary := pgtest.Start(t, pgtest.Options{SegSizeMB: 1, NoFsync: true, Conf: map[string]string{"wal_level": "replica", "max_wal_size": "8MB"}})
	primary.Exec("CREATE TABLE t AS SELECT g, repeat(md5(g::text), 4) AS text FROM generate_series(1, 30000) g", "CHECKPOINT")
	next := follow(primary, "next", map[string]string{})
	standby := follow(next, "standby", map[string]string{"archive_mode": "always", "archive_command": "false"})
	primary.Exec("INSERT INTO t VALUES (-1)")
	at := pgtest.QueryOne[string](primary, "SELECT pg_current_wal_lsn()::text")
	for _, s := range []*pgtest.Server{next, standby} {
		s.Await("SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn", at)
	}
	primary.Stop(postgres.Immediate)
	next.Exec("SELECT pg_promote()")
	next.AwaitPrimary()
	next.Exec("INSERT INTO t VALUES (-2)")
	standby.Await("SELECT EXISTS (SELECT FROM t WHERE g = -2)")

	control, err := postgres.ReadControl(context.Background(), standby.Dir)
	if err != nil {
		t.Fatal(err)
	}
	c := &corpus{control: control}
	a := c.archive(t, storagetest.Memory())
	dir := filepath.Join(standby.Dir, "pg_wal")
	data, err := os.ReadFile(filepath.Join(dir, wal.HistoryName(2)))
	if err != nil {
		t.Fatal(err)
	}
	h, err := wal.ParseHistory(2, data)
	if err != nil {
		t.Fatal(err)
	}
	left, _ := h.SwitchPoint(1)
	last := wal.SegmentName(1, wal.SegmentOf(left, 1<<20), 1<<20)
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "archive_status", last+".ready")); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the standby has not asked for %s", last)
		}
	}
	ready, err := filepath.Glob(filepath.Join(dir, "archive_status", "*.ready"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range ready {
		name := strings.TrimSuffix(filepath.Base(path), ".ready")
		if _, err := a.Push(context.Background(), filepath.Join(dir, name), control.SystemID); err != nil {
			t.Errorf("%v (%s)", err, hint.Of(err))
		}
	}
	cov, err := a.Coverage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if one := cov.Timelines[1]; one == nil || one.Partials[wal.SegmentOf(left, 1<<20)] != left {
		t.Errorf("timeline 1 was left at %s, archived of it: %+v", left, one)
	}
	if _, err := fetched(t, a, last, FetchOptions{}); !errors.Is(err, ErrNotArchived) {
		t.Errorf("%s: %v", last, err)
	}
}

// Which history counts is that of the server whose file it is, whatever was pushed before.
func TestHistoryIsReadAnew(t *testing.T) {
	c := wals(t, 1)
	a := c.archive(t, storagetest.Memory())
	first := "00000002" + strings.TrimSuffix(c.partial, ".partial")[8:]
	elsewhere := abandoned(t, first, c.read(t, first), 1<<20)
	if _, err := a.Push(context.Background(), elsewhere, c.control.SystemID); !errors.Is(err, ErrSource) {
		t.Errorf("a timeline that began elsewhere: %v", err)
	}
	alone := write(t, filepath.Join(t.TempDir(), first), c.read(t, first))
	if _, err := a.Push(context.Background(), alone, c.control.SystemID); !errors.Is(err, ErrSource) {
		t.Errorf("no history anywhere: %v", err)
	}
	c.push(t, a, c.history)
	if _, err := a.Push(context.Background(), elsewhere, c.control.SystemID); !errors.Is(err, ErrSource) {
		t.Errorf("a timeline that began elsewhere, the right history archived: %v", err)
	}
	if _, err := a.Push(context.Background(), alone, c.control.SystemID); err != nil {
		t.Errorf("the archive has the history: %v", err)
	}
	if _, err := a.Push(context.Background(), abandoned(t, first, c.read(t, first), c.switched), c.control.SystemID); err != nil {
		t.Errorf("the server has the history: %v", err)
	}
}
