package restore_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// object gives the one object of a segment.
func (s *site) object(t *testing.T, segment string) string {
	t.Helper()
	found := glob(t, s.repo, "*", "wal", segment[:8], "*", segment+"-*")
	if len(found) != 1 {
		t.Fatalf("%s is stored as %q", segment, found)
	}
	return found[0]
}

// overwrite changes a stored object, which is not writable by mistake.
func overwrite(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func flipped(data []byte, at int) []byte {
	bad := bytes.Clone(data)
	bad[at] ^= 4
	return bad
}

// closed fails if a server runs in dir or its recovery has ended there.
func closed(t *testing.T, dir string) {
	t.Helper()
	if _, running, err := postgres.Running(dir); running || err != nil {
		t.Errorf("a server runs in %s (%v)", dir, err)
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "pg_wal", "00000002*")); len(found) > 0 { // the pattern is right
		t.Errorf("the server began timeline 2: %q", found)
	}
}

// stops starts a server on what was restored, whose recovery has to stop for want of WAL: at once, or after it let
// readers in.
func (s *site) stops(t *testing.T, what, dir string) {
	t.Helper()
	c, err := pgtest.TryOpenDir(t, dir, pgtest.Options{Bin: s.Bin})
	if err == nil {
		eventually(t, what+": the server ends", func() bool {
			_, running, err := postgres.Running(dir)
			return !running && err == nil
		})
	}
	if log := string(read(t, c.LogFile)); !strings.Contains(log, "could not restore file") || strings.Contains(log, "selected new timeline") {
		t.Errorf("%s: the server says\n%s", what, log)
	}
	closed(t, dir)
}

// The last segment is where others open a database silently short: whatever is wrong with it, before the restore or in
// the middle of the recovery, nothing opens, and nobody gets the bytes.
func testLastSegment(t *testing.T, story *story) {
	s := story.copyRepo(t)
	object := s.object(t, story.last)
	whole := read(t, object)
	harms := map[string]func(){
		"removed":        func() { os.Remove(object) },
		"empty":          func() { overwrite(t, object, nil) },
		"cut":            func() { overwrite(t, object, whole[:len(whole)/2]) },
		"flipped early":  func() { overwrite(t, object, flipped(whole, 40)) },
		"flipped middle": func() { overwrite(t, object, flipped(whole, len(whole)/3)) },
		"flipped late":   func() { overwrite(t, object, flipped(whole, len(whole)-5)) },
		"of another":     func() { overwrite(t, object, read(t, s.object(t, story.last[:23]+prev(story.last[23])))) },
	}
	for name, harm := range harms {
		repair := func() { os.Remove(object); overwriteNew(t, object, whole) }
		// Before the restore: it refuses, or its recovery does; in no case a server opens.
		harm()
		dest := filepath.Join(pgtest.TempDir(t), "segment")
		if r := s.pitr(t, "wal", "fetch", story.last, dest); r.code != 200 && !(name == "removed" && r.code == 1) {
			t.Errorf("%s: wal fetch: exit status %d: %s", name, r.code, r.err)
		}
		if found, _ := filepath.Glob(dest + "*"); len(found) > 0 { // the pattern is right
			t.Errorf("%s: wal fetch left %q", name, found)
		}
		if name != "removed" { // without it, the archive only ends earlier
			if r := s.pitr(t, "wal", "verify"); r.code != 5 || !strings.Contains(r.out, story.last) {
				t.Errorf("%s: wal verify: exit status %d\n%s%s", name, r.code, r.out, r.err)
			}
			to := filepath.Join(pgtest.TempDir(t), "copy")
			if r := s.pitr(t, "restore", "--to", to, "--start"); r.code == 0 || !strings.Contains(r.err, story.last) {
				t.Errorf("%s: restore: exit status %d\n%s%s", name, r.code, r.out, r.err)
			}
			closed(t, to)
		}
		repair()
	}

	// In the middle: the restore is done, and the server is started by hand.
	to := filepath.Join(pgtest.TempDir(t), "copy")
	s.must(t, "restore", "--to", to)
	for name, harm := range harms {
		harm()
		s.stops(t, name, to)
		os.Remove(object)
		overwriteNew(t, object, whole)
	}
	c := pgtest.OpenDir(t, to, pgtest.Options{Bin: s.Bin})
	c.AwaitPrimary()
	same(t, contents(t, c), story.end.full)
}

// prev is the hexadecimal digit before one.
func prev(digit byte) string {
	const digits = "0123456789ABCDEF"
	return string(digits[(strings.IndexByte(digits, digit)+15)%16])
}

func overwriteNew(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o640); err != nil {
		t.Fatal(err)
	}
	give(t, path)
}

// A segment that is missing in the middle: moments before it can be had, everything behind it is refused.
func testMissingSegment(t *testing.T, story *story) {
	s := story.copyRepo(t)
	// The segment that holds the commit of c.
	segment := pgtest.QueryOne[string](s.Server, "SELECT pg_walfile_name($1::text::pg_lsn)", story.cLSN)
	if err := os.Remove(s.object(t, segment)); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(pgtest.TempDir(t), "copy")
	const reach = "reachable on timeline 1: from TIME (LSN, the end of a backup) to TIME (LSN), WAL up to LSN"
	gap := fmt.Sprintf(", where segment %s is missing\n", segment)
	for _, x := range []struct {
		args []string
		want string
	}{
		{[]string{"--backup", story.first}, "pitr: the end of the archive: target not reachable: segment SEGMENT is missing, and later WAL is archived: the end of the archive can't be reached from backup ID; "},
		{[]string{"--backup", story.first, "--target-name", oddPoint}, "pitr: restore point \"it's \\\"b\\\"\\n% ü \\\\ $(x)\": target not reachable: it is not in the archived WAL that joins a backup, and segment SEGMENT is missing; "},
		{[]string{"--backup", story.first, "--target-lsn", story.cLSN}, "pitr: WAL position LSN: target not reachable: segment SEGMENT, which lies before it, is missing; "},
		{[]string{"--backup", story.first, "--target-time", stamp(story.c.at)}, "pitr: time TIME: target not reachable: no transaction ended after it before segment SEGMENT, which is missing; "},
	} {
		r := s.pitr(t, append([]string{"restore", "--to", to}, x.args...)...)
		if !strings.Contains(r.err, gap) {
			t.Errorf("%q: the gap is not named: %s", x.args, r.err)
		}
		s.expect(t, r, 4, x.want+reach+", where segment SEGMENT is missing\n")
	}
	if found, _ := filepath.Glob(to + "*"); len(found) > 0 { // the pattern is right
		t.Errorf("left %q", found)
	}
	r := s.pitr(t, "wal", "verify", "--quiet")
	s.expect(t, r, 5, "pitr: verify the archive: 0 damaged objects, 1 gap, 0 conflicts\n"+
		"HINT: what can't be recovered from WAL any more is safe again after `pitr backup create --full`; conflicts are settled by `pitr wal resolve`\n")
	if !strings.Contains(r.out, "gap: "+segment+" is missing (") {
		t.Errorf("wal verify: %s", r.out)
	}
	// The newer backup leads past it.
	if p := s.plan(t); p.Backup.ID != story.second {
		t.Errorf("from %s, want %s", p.Backup.ID, story.second)
	}
}

// A store that is away during recovery stops the server; it never makes it open early.
func testStoreAway(t *testing.T, story *story) {
	s := story.copyRepo(t)
	to := filepath.Join(pgtest.TempDir(t), "copy")
	s.must(t, "restore", "--to", to)
	if err := os.Rename(s.repo, s.repo+".away"); err != nil {
		t.Fatal(err)
	}
	s.stops(t, "store away", to)
	dest := filepath.Join(pgtest.TempDir(t), "segment")
	for _, name := range []string{story.last, "00000002.history"} {
		r := s.pitr(t, "wal", "fetch", name, dest)
		if r.code != 200 {
			t.Errorf("wal fetch %s: exit status %d: %s", name, r.code, r.err)
		}
	}
	if _, err := os.Stat(s.repo); err == nil {
		t.Error("a fetch made a store")
	}
	// An empty directory in its place, as a file system that is not mounted leaves one, proves nothing either.
	makeDir(t, s.repo)
	if r := s.pitr(t, "wal", "fetch", story.last, dest); r.code != 200 {
		t.Errorf("wal fetch from an empty store: exit status %d: %s", r.code, r.err)
	}
	s.stops(t, "store empty", to)
	if err := os.RemoveAll(s.repo); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.repo+".away", s.repo); err != nil {
		t.Fatal(err)
	}
	c := pgtest.OpenDir(t, to, pgtest.Options{Bin: s.Bin})
	c.AwaitPrimary()
	if got := rows(c); got != story.end.rows {
		t.Errorf("rows %q, want %q", got, story.end.rows)
	}
}

// A flipped byte in whatever object is noticed by the commands that verify, and none is restored.
func testEveryObject(t *testing.T, story *story) {
	s := story.copyRepo(t)
	s.must(t, "wal", "verify")
	s.must(t, "backup", "verify")
	find := func(parts ...string) string {
		found := glob(t, append([]string{s.repo, "*"}, parts...)...)
		return found[len(found)/2]
	}
	for name, x := range map[string]struct {
		object string
		verify string
	}{
		"facts":          {find("repo", "*"), "wal"},
		"segment":        {find("wal", "00000001", "*", "*"), "wal"},
		"backup label":   {s.backupFile(t), "wal"},
		"manifest":       {find("backup", story.second), "backup"},
		"pack":           {find("pack", story.second, "*"), "backup"},
		"pack, older":    {find("pack", story.first, "*"), "backup"},
		"manifest, tail": {find("backup", story.first), "backup"},
	} {
		whole := read(t, x.object)
		for _, at := range []int{0, len(whole) / 2, len(whole) - 1} {
			overwrite(t, x.object, flipped(whole, at))
			r := s.pitr(t, x.verify, "verify", "--quiet")
			if r.code != 5 {
				t.Errorf("%s, byte %d of %d: %s verify: exit status %d\n%s%s", name, at, len(whole), x.verify, r.code, r.out, r.err)
			}
		}
		if strings.HasPrefix(name, "pack") || strings.HasPrefix(name, "manifest") {
			id := filepath.Base(x.object)
			if strings.HasPrefix(name, "pack") {
				id = filepath.Base(filepath.Dir(x.object))
			}
			overwrite(t, x.object, flipped(whole, len(whole)/2))
			to := filepath.Join(pgtest.TempDir(t), "copy")
			r := s.pitr(t, "restore", "--to", to, "--backup", id, "--start")
			// A manifest that can't be read is that of no backup to plan with.
			if r.code != 5 && !(strings.HasPrefix(name, "manifest") && r.code != 0) {
				t.Errorf("%s: restore: exit status %d\n%s%s", name, r.code, r.out, r.err)
			}
			closed(t, to)
			if _, err := os.Stat(filepath.Join(to, "global", "pg_control")); err == nil {
				t.Errorf("%s: what was restored could be started", name)
			}
			if strings.HasPrefix(name, "pack") {
				// Repaired, the same command goes on.
				overwrite(t, x.object, whole)
				s.must(t, "restore", "--to", to, "--backup", id)
			}
		}
		overwrite(t, x.object, whole)
		if strings.HasPrefix(name, "pack") {
			s.lostPack(t, x.object)
		}
	}
	s.must(t, "wal", "verify")
	s.must(t, "backup", "verify")
}

// lostPack: a backup with a pack missing or cut is refused before anything is written.
func (s *site) lostPack(t *testing.T, pack string) {
	t.Helper()
	id := filepath.Base(filepath.Dir(pack))
	to := filepath.Join(pgtest.TempDir(t), "copy")
	refused := func(what string) {
		t.Helper()
		s.expect(t, s.pitr(t, "restore", "--to", to, "--backup", id), 5,
			"pitr: backup ID: damaged object: 1 of its packs are missing or cut short, the first is ID/"+filepath.Base(pack)+"\nHINT: --backup chooses another one; `pitr backup verify ID` tells what is damaged\n")
		if r := s.pitr(t, "backup", "verify", id); r.code != 5 {
			t.Errorf("%s: backup verify: exit status %d\n%s%s", what, r.code, r.out, r.err)
		}
	}
	whole := read(t, pack)
	overwrite(t, pack, whole[:len(whole)-1])
	refused("cut")
	if err := os.Remove(pack); err != nil {
		t.Fatal(err)
	}
	refused("removed")
	if _, err := os.Stat(to); err == nil {
		t.Error("something was written")
	}
	overwriteNew(t, pack, whole)
}

// backupFile is the object of a backup history file.
func (s *site) backupFile(t *testing.T) string {
	t.Helper()
	return glob(t, s.repo, "*", "wal", "00000001", "*", "*.backup-*")[0]
}

// testTwoContents: two servers of one lineage archive other WAL under the same names at the same time. At most one of them
// hears that it is archived, and after somebody has decided the segment can be had.
func testTwoContents(t *testing.T, story *story) {
	base := pgtest.TempDir(t)
	var sites []*site
	for i := range 2 {
		// The copies of a template have one system identifier.
		s := newSite(t, pgtest.Options{SegSizeMB: 1, Conf: map[string]string{"archive_mode": "off"}}, fmt.Sprint(i))
		s.repo = filepath.Join(base, "repo")
		s.configure(t, s.config, s.repo, s.Dir, s.SocketDir, s.Port, s.service)
		for n := range 6 {
			s.Exec(fmt.Sprintf("SELECT pg_logical_emit_message(false, 'server %d', '%d')", i, n), "SELECT pg_switch_wal()")
		}
		sites = append(sites, s)
	}
	first := func(s *site) string {
		names := glob(t, s.Dir, "pg_wal", "0000000100000000000000??")
		return filepath.Base(names[0])
	}
	from := max(first(sites[0]), first(sites[1]))
	segments := 0
	for n := range 4 {
		var no int
		if _, err := fmt.Sscanf(from[16:], "%X", &no); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%s%08X", from[:16], no+n+1)
		a, b := read(t, filepath.Join(sites[0].Dir, "pg_wal", name)), read(t, filepath.Join(sites[1].Dir, "pg_wal", name))
		if bytes.Equal(a, b) {
			t.Fatalf("%s is the same on both servers", name)
		}
		segments++
		results := make(chan result, 2)
		for _, s := range sites {
			go func() { results <- s.pitr(t, "wal", "push", filepath.Join(s.Dir, "pg_wal", name)) }()
		}
		acknowledged := 0
		for range sites {
			r := <-results
			switch {
			case r.code == 0:
				acknowledged++
			case r.code != 1 || !strings.Contains(r.err, "HINT: two servers archive under one name: stop the one that should not run, or give it its own timeline; `pitr wal resolve "+name):
				t.Errorf("push of %s: exit status %d: %s", name, r.code, r.err)
			}
		}
		if acknowledged > 1 {
			t.Errorf("%s: both were acknowledged", name)
		}
		dest := filepath.Join(base, "fetched")
		r := sites[0].pitr(t, "wal", "fetch", name, dest)
		if acknowledged == 0 && r.code != 200 || acknowledged == 1 && r.code != 0 && r.code != 200 {
			t.Errorf("fetch of %s: exit status %d: %s", name, r.code, r.err)
		}
		if r.code == 0 {
			if got := read(t, dest); !bytes.Equal(got, a) && !bytes.Equal(got, b) {
				t.Errorf("%s: what is fetched is neither's", name)
			}
			continue
		}
		stored := glob(t, base, "repo", "*", "wal", "00000001", "*", name+"-*")
		if len(stored) != 2 {
			t.Fatalf("%s is stored as %q", name, stored)
		}
		digest := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(stored[0]), name+"-"), ".zst")
		sites[0].must(t, "wal", "resolve", name, digest)
		sites[0].must(t, "wal", "fetch", name, dest)
		if got := read(t, dest); !bytes.Equal(got, a) && !bytes.Equal(got, b) {
			t.Errorf("%s: what is fetched after the decision is neither's", name)
		}
	}
	if segments == 0 {
		t.Fatal("nothing was pushed")
	}
}
