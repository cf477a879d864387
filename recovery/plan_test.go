package recovery

import (
	"cmp"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pitr/archive"
	"pitr/basebackup"
	"pitr/internal/postgres"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

// one is a plan for the end of a line, with the backup changed and what is found in places.
func one(t *testing.T, d Destination, places map[string]Place, change func(*basebackup.Header)) *Plan {
	t.Helper()
	f := line()
	f.places = places
	if change != nil {
		change(f.backups[1])
	}
	d.Program = "/usr/bin/pitr"
	p, err := MakePlan(f.view(), Target{Action: Promote}, d)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func spaces(h *basebackup.Header) {
	h.Tablespaces = []basebackup.Tablespace{{OID: 16384, Name: "fast", Path: "/ssd/pg"}, {OID: 16385, Name: "inside"}, {OID: 16386, Name: "slow", Path: "/hdd/pg"}}
	h.WALDirLink = "/wal/main"
}

func TestLayout(t *testing.T) {
	const big = 1 << 40
	free := Place{Free: big}
	data := Place{Exists: true, IsDir: true, DataDir: true, SystemID: 77, Free: big}
	for name, c := range map[string]struct {
		d      Destination
		places map[string]Place
		want   string // paths of the tablespaces, WAL directory, what is done with what is there
		fails  string
	}{
		"beside":        {Destination{Dir: "/to"}, nil, "/to/pitr_tablespaces/16384 - /to/pitr_tablespaces/16386; ; new", ""},
		"mapped":        {Destination{Dir: "/to", Tablespaces: []Mapping{{"fast", "/a"}, {"/hdd/pg/", "/b"}}}, nil, "/a - /b; ; new", ""},
		"mapped by oid": {Destination{Dir: "/to", Tablespaces: []Mapping{{"16384", "/a"}}}, nil, "/a - /to/pitr_tablespaces/16386; ; new", ""},
		"mapped onto one": {Destination{Dir: "/to", Tablespaces: []Mapping{{"fast", "/a"}, {"slow", "/a"}}}, nil, "/a - /a; ; new",
			"tablespaces 16384 and 16386 would both go to /a"},
		"in place, all gone": {Destination{Dir: "/data", InPlace: true}, nil, "/ssd/pg - /hdd/pg; /wal/main; new", ""},
		"in place": {Destination{Dir: "/data", InPlace: true}, map[string]Place{
			"/data":   {Exists: true, IsDir: true, DataDir: true, SystemID: 77, Free: big, Links: []string{"/ssd/pg", "/hdd/pg"}, WALLink: "/wal/new"},
			"/ssd/pg": {Exists: true, IsDir: true, Free: big}, "/hdd/pg": {Exists: true, IsDir: true, Free: big},
		}, "/ssd/pg - /hdd/pg; /wal/new; replaced", ""},
		"in place, pg_wal leads to a live server's": {Destination{Dir: "/data", InPlace: true}, map[string]Place{
			"/data":   {Exists: true, IsDir: true, DataDir: true, SystemID: 77, Free: big, Links: []string{"/ssd/pg", "/hdd/pg"}, WALLink: "/wal/new"},
			"/ssd/pg": {Exists: true, IsDir: true, Free: big}, "/hdd/pg": {Exists: true, IsDir: true, Free: big},
			"/wal/new": {Exists: true, IsDir: true, UsedBy: "/live"},
		}, "/ssd/pg - /hdd/pg; /wal/new; replaced", "/wal/new, where pg_wal leads, belongs to the server that runs in /live"},
		"in place, pg_wal not linked any more": {Destination{Dir: "/data", InPlace: true}, map[string]Place{"/data": data}, "/ssd/pg - /hdd/pg; ; replaced", ""},
		"in place, the WAL's place is taken":   {Destination{Dir: "/data", InPlace: true}, map[string]Place{"/data": free, "/wal/main": {Exists: true, IsDir: true, Free: big}}, "/ssd/pg - /hdd/pg; ; new", ""},
		"a tablespace's place is taken": {Destination{Dir: "/data", InPlace: true}, map[string]Place{"/data": data, "/ssd/pg": {Exists: true, IsDir: true, Free: big}}, "/ssd/pg - /hdd/pg; ; replaced",
			`/ssd/pg, for tablespace "fast", is not empty`},
		"a tablespace is a live server's": {Destination{Dir: "/data", InPlace: true}, map[string]Place{"/data": data, "/ssd/pg": {Exists: true, IsDir: true, UsedBy: "/live"}}, "/ssd/pg - /hdd/pg; ; replaced",
			`/ssd/pg, for tablespace "fast", belongs to the server that runs in /live`},
		"running":   {Destination{Dir: "/data", InPlace: true}, map[string]Place{"/data": {Exists: true, IsDir: true, DataDir: true, PID: 7, Free: big}}, "/ssd/pg - /hdd/pg; ; new", "a server runs in /data (process 7)"},
		"damaged":   {Destination{Dir: "/data", InPlace: true}, map[string]Place{"/data": {Exists: true, IsDir: true, DataDir: true, Free: big}}, "/ssd/pg - /hdd/pg; ; replaced", ""},
		"not empty": {Destination{Dir: "/to"}, map[string]Place{"/to": data}, "/to/pitr_tablespaces/16384 - /to/pitr_tablespaces/16386; ; new", "/to is not empty"},
		"unfinished, another": {Destination{Dir: "/to"}, map[string]Place{"/to": {Exists: true, IsDir: true, Free: big, Journal: &Journal{Backup: "B", Target: "T"}}}, "/to/pitr_tablespaces/16384 - /to/pitr_tablespaces/16386; ; new",
			"/to holds an unfinished restore of backup B to T"},
		"unfinished, another, in place": {Destination{Dir: "/data", InPlace: true}, map[string]Place{"/data": {Exists: true, IsDir: true, Free: big, Journal: &Journal{Backup: "B", Target: "T"}}}, "/ssd/pg - /hdd/pg; /wal/main; replaced", ""},
	} {
		p := one(t, c.d, c.places, spaces)
		var at []string
		for _, l := range p.Layout.Tablespaces {
			at = append(at, cmp.Or(l.Path, "-"))
		}
		what := "new"
		switch {
		case p.Layout.Replaces:
			what = "replaced"
		case p.Layout.Resumes:
			what = "resumed"
		}
		if got := strings.Join(at, " ") + "; " + p.Layout.WALDir + "; " + what; got != c.want {
			t.Errorf("%s: %s\nwant %s", name, got, c.want)
		}
		err := p.Err()
		if c.fails == "" && err != nil || c.fails != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.fails)) {
			t.Errorf("%s: %v, want %q", name, err, c.fails)
		}
	}
}

func TestResume(t *testing.T) {
	d := Destination{Dir: "/to"}
	first := one(t, d, nil, nil)
	place := Place{Exists: true, IsDir: true, Free: 1 << 40, Journal: &Journal{Plan: first.fingerprint()}}
	p := one(t, d, map[string]Place{"/to": place}, nil)
	if !p.Layout.Resumes || p.Err() != nil {
		t.Errorf("%+v, %v", p.Layout, p.Err())
	}
	// Once a server has run on it, it is nothing unfinished any more.
	place.Ran = true
	if p = one(t, d, map[string]Place{"/to": place}, nil); p.Layout.Resumes || !errors.Is(p.Err(), ErrRefused) {
		t.Errorf("%+v, %v", p.Layout, p.Err())
	}
}

func TestSpace(t *testing.T) {
	f := line()
	f.contents.Write = 5 << 30
	f.places = map[string]Place{"/to": {Free: 5 << 30}}
	p, err := MakePlan(f.view(), Target{Action: Promote}, Destination{Dir: "/to", Program: "/p"})
	if err != nil || !errors.Is(p.Err(), ErrRefused) || !strings.Contains(p.Err().Error(), "/to has room for 5368709120 bytes, and 5435817984 are needed") {
		t.Errorf("%v, %v", err, p.Err())
	}
	// Where files are compressed, how many fit is not known.
	f.places["/to"] = Place{Free: 5 << 30, Compresses: true}
	if p, err = MakePlan(f.view(), Target{Action: Promote}, Destination{Dir: "/to", Program: "/p"}); err != nil || p.Err() != nil ||
		!slices.ContainsFunc(p.Obstacles, func(o Obstacle) bool { return strings.Contains(o.What, "/to has room for 5368709120 bytes") }) {
		t.Errorf("%v, %+v", err, p.Obstacles)
	}
	f.places["/to"] = Place{Free: 6 << 30}
	if p, err = MakePlan(f.view(), Target{Action: Promote}, Destination{Dir: "/to", Program: "/p"}); err != nil || p.Err() != nil {
		t.Errorf("%v, %v", err, p.Err())
	}
	f.contents.Missing = []string{"20261122T000000Z-00000001/000003"}
	if _, err = MakePlan(f.view(), Target{Action: Promote}, Destination{Dir: "/to", Program: "/p"}); !errors.Is(err, repo.ErrDamaged) {
		t.Errorf("with a pack missing: %v", err)
	}
}

// The settings are asserted whole: they are what decides how far a server goes.
func TestSettings(t *testing.T) {
	text := func(p *Plan) string {
		var s []string
		for _, x := range p.Settings {
			q, err := postgres.QuoteConf(x.Value)
			if err != nil {
				t.Fatal(err)
			}
			s = append(s, x.Name+" = "+q)
		}
		return strings.Join(append(s, p.Signal), "\n")
	}
	p := one(t, Destination{Dir: "/to", Config: "/etc/it's 100%", SocketDir: "/run/x", Port: 5433}, nil, nil)
	if got, want := text(p), `restore_command = '/usr/bin/pitr --config ''/etc/it''\\''''s 100%%'' wal fetch %f %p'
recovery_end_command = ''
archive_cleanup_command = ''
recovery_target_timeline = '1'
recovery_min_apply_delay = '0'
recovery_target = ''
recovery_target_name = ''
recovery_target_time = ''
recovery_target_xid = ''
recovery_target_lsn = '0/350000'
recovery_target_inclusive = 'on'
recovery_target_action = 'promote'
archive_mode = 'off'
external_pid_file = 'pitr_external.pid'
listen_addresses = ''
unix_socket_directories = '/run/x'
unix_socket_permissions = '0700'
port = '5433'
hba_file = '/to/pitr_scratch_hba.conf'
ssl = 'off'
logging_collector = 'off'
log_destination = 'stderr'
synchronous_standby_names = ''
max_logical_replication_workers = '0'
huge_pages = 'try'
recovery.signal`; got != want {
		t.Errorf("settings\n%s\nwant\n%s", got, want)
	}
	p = one(t, Destination{Dir: "/data", InPlace: true, Archive: true, Standby: true}, nil, nil)
	if got, want := text(p), `restore_command = '/usr/bin/pitr wal fetch %f %p'
recovery_end_command = ''
archive_cleanup_command = ''
recovery_target_timeline = 'latest'
recovery_target = ''
recovery_target_lsn = ''
recovery_target_name = ''
recovery_target_time = ''
recovery_target_xid = ''
standby.signal`; got != want {
		t.Errorf("settings of a standby\n%s\nwant\n%s", got, want)
	}
	// A standby that is to be asked, and one that was told where to stay.
	p = one(t, Destination{Dir: "/data", InPlace: true, Standby: true, Start: true}, nil, nil)
	if got := text(p); !strings.Contains(got, "hot_standby = 'on'") {
		t.Errorf("settings of a standby to start\n%s", got)
	}
	for _, spec := range []TimelineSpec{{Number: 1}, {Word: TimelineCurrent}} {
		p.Target.Timeline = spec
		if s, _, err := settings(p); err != nil || !slices.Contains(s, postgres.Setting{Name: "recovery_target_timeline", Value: "1"}) {
			t.Errorf("settings of a standby on timeline %s: %v, %v", spec, s, err)
		}
	}
	// Beside, but to be a server in its own right.
	p = one(t, Destination{Dir: "/to", Archive: true}, nil, nil)
	if got := text(p); !strings.HasSuffix(got, "recovery_target_action = 'promote'\nexternal_pid_file = 'pitr_external.pid'\nrecovery.signal") {
		t.Errorf("settings of a copy that archives\n%s", got)
	}
	p = one(t, Destination{Dir: "/to", Archive: true, Start: true, SocketDir: "/run/x", Port: 5433}, nil, func(h *basebackup.Header) { h.ServerVersion = 140011 })
	for _, want := range []string{"listen_addresses = ''", "unix_socket_directories = '/run/x'", "port = '5433'", "hba_file = '/to/pitr_scratch_hba.conf'",
		"stats_temp_directory = 'pg_stat_tmp'", "max_logical_replication_workers = '0'", "synchronous_standby_names = ''"} {
		if !slices.Contains(strings.Split(text(p), "\n"), want) {
			t.Errorf("a scratch copy has no %s", want)
		}
	}
}

func TestObsoleteSettings(t *testing.T) {
	for name, want := range map[string][2]bool{ // to a primary, to a standby
		"recovery_target_time": {true, true}, "recovery_target": {true, true}, "restore_command": {true, true},
		"primary_conninfo": {true, false}, "primary_slot_name": {true, false}, "promote_trigger_file": {true, true},
		"shared_buffers": {false, false}, "recovery_prefetch": {false, false}, "archive_command": {false, false},
	} {
		if got := [2]bool{obsolete(name, false), obsolete(name, true)}; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestMarker(t *testing.T) {
	dir := t.TempDir()
	if m, err := ReadMarker(dir); m != nil || err != nil {
		t.Fatalf("without a marker: %v, %v", m, err)
	}
	own := &owner{-1, -1}
	m := Marker{Format: markerFormat, SegSize: 16 << 20, Backup: "B", Path: []archive.Step{{Timeline: 1, First: 2, Last: 5}, {Timeline: 2, First: 6, Last: 6}, {Timeline: 2, First: 7, Last: 7, Partial: true}}}
	if err := own.writeDocument(filepath.Join(dir, MarkerFile), m); err != nil {
		t.Fatal(err)
	}
	got, err := ReadMarker(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Promise{
		"000000010000000000000001": Beyond, "000000010000000000000002": Promised, "000000010000000000000005": Promised,
		"000000010000000000000006": Beyond, "000000020000000000000006": Promised, "000000020000000000000007": PromisedPartial,
		"000000020000000000000008": Beyond, "00000002.history": Ordinary, "00000009.history": Ordinary,
	} {
		if got.Of(name) != want {
			t.Errorf("%s: %v, want %v", name, got.Of(name), want)
		}
	}
	if err := got.MayArchive("/data"); err == nil || !strings.Contains(err.Error(), "archives nothing until it is adopted") {
		t.Errorf("archiving: %v", err)
	}
	got.Standby, got.Archive = true, true
	if got.Of("000000020000000000000008") != Ordinary || got.MayArchive("/data") != nil {
		t.Error("a standby that may archive is held to its path")
	}
	// Whatever is wrong with it, it is no permission.
	for _, text := range []string{"", "{}", "{}\n#00\n"} {
		if err := own.writeFile(filepath.Join(dir, MarkerFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := ReadMarker(dir); err == nil {
			t.Errorf("%q is read as %+v", text, m)
		}
	}
}

func TestRelocate(t *testing.T) {
	r := &restorer{p: &Plan{Backup: &basebackup.Header{ServerVersion: 160004}}, dir: t.TempDir(), own: owner{-1, -1}, o: Options{Log: slog.New(slog.DiscardHandler)}}
	known := map[string]bool{"/etc/pg/a.conf": true, "/etc/pg/sub/it's.conf": true}
	in := "# include 'x'\nport = 1\ninclude '/etc/pg/a.conf' # why\n  INCLUDE_IF_EXISTS = nothing.conf\ninclude 'sub/it''s.conf'\ninclude_dir '/etc/more'\ninclude gone.conf"
	got, err := r.relocate(settingsFile, []byte(in), "/etc/pg", known)
	if err != nil {
		t.Fatal(err)
	}
	c := filepath.Join(r.dir, configDir)
	want := "# include 'x'\nport = 1\ninclude '" + c + "/etc/pg/a.conf' # why\n  include_if_exists '" + c + "/etc/pg/nothing.conf'\ninclude '" + c +
		"/etc/pg/sub/it''s.conf'\ninclude_dir '" + c + "/etc/more'\ninclude_if_exists '" + c + "/etc/pg/gone.conf'"
	if string(got) != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if len(r.report.Warnings) != 1 || !strings.Contains(r.report.Warnings[0], "/etc/pg/gone.conf") {
		t.Errorf("warnings %q", r.report.Warnings)
	}
}

func TestCut(t *testing.T) {
	path := []archive.Step{{Timeline: 1, First: 2, Last: 5}, {Timeline: 2, First: 6, Last: 9}, {Timeline: 2, First: 10, Last: 10, Partial: true}}
	for last, want := range map[uint64]int{2: 1, 5: 4, 6: 5, 9: 8, 10: 9, 99: 9} {
		n := 0
		for _, s := range cut(path, last) {
			n += int(s.Last - s.First + 1)
		}
		if n != want {
			t.Errorf("up to %d: %d segments, want %d", last, n, want)
		}
	}
}

func TestRelocateAccessFile(t *testing.T) {
	for version, want := range map[int]string{
		160004: `# include a.conf @/etc/pg/names
include "C/etc/pg/a.conf" # why
include_if_exists "C/etc/pg/nothing.conf"
include_dir "C/etc/more ""conf"""
local @"C/etc/pg/names",@near all trust
local all "@/etc/pg/names" trust
local all @/etc/unknown trust
include_if_exists "C/etc/pg/gone.conf"`,
		150004: `# include a.conf @/etc/pg/names
include a.conf # why
  include_if_exists nothing.conf
include_dir "/etc/more ""conf"""
local @"C/etc/pg/names",@near all trust
local all "@/etc/pg/names" trust
local all @/etc/unknown trust
include '/etc/pg/a.conf'`,
	} {
		r := &restorer{p: &Plan{Backup: &basebackup.Header{ServerVersion: version}}, dir: t.TempDir(), own: owner{-1, -1}, o: Options{Log: slog.New(slog.DiscardHandler)}}
		const in = `# include a.conf @/etc/pg/names
include a.conf # why
  include_if_exists nothing.conf
include_dir "/etc/more ""conf"""
local @/etc/pg/names,@near all trust
local all "@/etc/pg/names" trust
local all @/etc/unknown trust
`
		last := "include gone.conf"
		if version < 160000 {
			last = "include '/etc/pg/a.conf'"
		}
		got, err := r.relocate(accessFile, []byte(in+last), "/etc/pg", map[string]bool{"/etc/pg/a.conf": true, "/etc/pg/names": true})
		if err != nil {
			t.Fatal(err)
		}
		want = strings.ReplaceAll(want, "\"C/", `"`+filepath.Join(r.dir, configDir)+"/")
		if version >= 160000 {
			want = strings.Replace(want, "\ninclude_if_exists", "\n  include_if_exists", 1)
		}
		if string(got) != want {
			t.Errorf("%d: %s\nwant\n%s", version, got, want)
		}
	}
}

// What the WAL raises is set; where it was logged is told.
func TestParametersNeeded(t *testing.T) {
	p := &Plan{Backup: &basebackup.Header{Settings: basebackup.Settings{MaxConnections: 100, MaxWorkerProcesses: 8, MaxWALSenders: 10, MaxLocksPerXact: 64}}}
	p.parameters = []*wal.Parameters{
		{Start: 1, MaxConnections: 90, MaxWorkerProcesses: 9, MaxWALSenders: 10, MaxPreparedXacts: 1, MaxLocksPerXact: 32},
		{Start: 2, MaxConnections: 120, MaxWorkerProcesses: 9, MaxWALSenders: 10, MaxPreparedXacts: 2, MaxLocksPerXact: 64},
		{Start: 3, MaxConnections: 110, MaxWorkerProcesses: 8, MaxWALSenders: 10, MaxPreparedXacts: 0, MaxLocksPerXact: 64},
	}
	want := []need{{"max_connections", 100, 120, 2}, {"max_worker_processes", 8, 9, 1}, {"max_wal_senders", 10, 10, 0},
		{"max_prepared_transactions", 0, 2, 2}, {"max_locks_per_transaction", 64, 64, 0}}
	if got := p.parametersNeeded(); !slices.Equal(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
	p.judgeParameters()
	if len(p.Obstacles) != 3 || p.Err() != nil {
		t.Errorf("%+v", p.Obstacles)
	}
	p.Destination.InPlace, p.config.config = true, "/etc/postgresql.conf"
	if got := p.parametersRaised(); len(got) != 0 {
		t.Errorf("with a configuration that may have been raised as well: %v", got)
	}
}

func TestServerOptions(t *testing.T) {
	p := &Plan{Destination: Destination{InPlace: true}, Layout: Layout{Dir: "/data"}}
	for _, e := range []basebackup.Entry{
		{Type: basebackup.Symlink, Path: "pg_hba.conf", Target: "/etc/hba"}, {Type: basebackup.File, Path: "pg_ident.conf"},
		{Type: basebackup.External, Path: "/etc/a", Name: "config_file"}, {Type: basebackup.External, Path: "/etc/hba", Name: "hba_file"}, {Type: basebackup.External, Path: "/etc/b", Name: "include"},
	} {
		p.config.note(&e)
	}
	if got := strings.Join(p.ServerOptions(), " "); got != "-c config_file=/etc/a -c data_directory=/data" {
		t.Error(got)
	}
	p.Destination.InPlace = false
	if got := p.ServerOptions(); len(got) != 0 {
		t.Errorf("beside: %q", got)
	}
}
