package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/hint"
	"pitr/internal/wal"
)

func TestGoesOn(t *testing.T) {
	d := Destination{Dir: "/to", Start: true, SocketDir: "/to", Port: 1}
	first := one(t, d, nil, nil)
	at := func(stage Stage, pid int, change func(*Marker)) map[string]Place {
		m := first.marker(time.Unix(1000, 0))
		if change != nil {
			change(&m)
		}
		return map[string]Place{"/to": {Exists: true, IsDir: true, DataDir: true, SystemID: 77, PID: pid, Marker: &m, Stage: stage}} // no space left either
	}
	plain, standby, archives := d, d, d
	plain.Start, plain.Port = false, 2
	standby.Standby, archives.Archive = true, true
	for name, c := range map[string]struct {
		d      Destination
		places map[string]Place
		fails  string // empty: it goes on
		hint   string
	}{
		"copied":                    {d, at(Copied, 0, nil), "", ""},
		"copied, to be started now": {plain, at(Copied, 0, nil), "", ""},
		"copied, another stop":      {d, at(Copied, 0, func(m *Marker) { m.Stop.LSN += 100 }), "", ""},
		"begun":                     {d, at(Begun, 0, nil), "", ""},
		"begun, the archive grew":   {d, at(Begun, 0, func(m *Marker) { m.Stop.LSN -= 100 }), "", ""},
		"begun, the archive shrank": {d, at(Begun, 0, func(m *Marker) { m.Stop.LSN += 100 }), "/to holds backup B, restored to the end of the archive", "start it with pg_ctl"},
		"running":                   {d, at(Begun, 7, nil), "", ""},
		"running, open":             {d, at(Ended, 7, nil), "", ""},
		"running, not to be waited": {plain, at(Begun, 7, nil), "a server runs in /to (process 7)", "with --start the same command waits"},
		"running, another call":     {standby, at(Begun, 7, nil), "a server runs in /to (process 7)", "stop it first"},
		"opened":                    {d, at(Ended, 0, nil), "a server has been opened on what was restored to /to", "choose a directory"},
		"not known":                 {d, at(Unknown, 0, nil), "/to is not empty", "choose a directory"},
		"another timeline":          {d, at(Copied, 0, func(m *Marker) { m.Timeline = 2 }), "/to holds backup B, restored to the end of the archive", "start it with pg_ctl"},
		"another kind":              {standby, at(Copied, 0, nil), "/to holds backup B, restored to the end of the archive", "start it with pg_ctl"},
		"another, archiving":        {archives, at(Copied, 0, nil), "/to holds backup B, restored to the end of the archive", "start it with pg_ctl"},
		"of an older pitr":          {d, at(Copied, 0, func(m *Marker) { m.Call = "" }), "/to holds backup B, restored to the end of the archive", "start it with pg_ctl"},
	} {
		p := one(t, c.d, c.places, nil)
		err := p.Err()
		if c.fails != "" {
			// Which backup it is, is another test's.
			what := ""
			if err != nil {
				what = strings.ReplaceAll(err.Error(), first.Backup.ID, "B")
			}
			if p.Layout.Restored || !errors.Is(err, ErrRefused) || !strings.Contains(what, c.fails) || !strings.Contains(hint.Of(err), c.hint) {
				t.Errorf("%s: %v (hint: %s), want %q", name, err, hint.Of(err), c.fails)
			}
			continue
		}
		if err != nil || !p.Layout.Restored || p.Layout.PID != c.places["/to"].PID || p.Fetch+p.Write != 0 {
			t.Errorf("%s: %v, %+v, %d bytes", name, err, p.Layout, p.Write)
		}
	}
	// A standby that follows has no stop to be held to.
	behind := at(Begun, 7, func(m *Marker) { m.Stop.LSN -= 100 })["/to"]
	behind.Marker.Call = one(t, standby, nil, nil).call()
	if p := one(t, standby, map[string]Place{"/to": behind}, nil); !p.Layout.Restored || p.Target.Kind != End || p.Err() != nil {
		t.Errorf("a standby: %+v, %v", p.Layout, p.Err())
	}
	// In place, where a server that was opened is the one proper.
	in := Destination{Dir: "/data", InPlace: true, Start: true}
	m := one(t, in, nil, nil).marker(time.Now())
	delta := in
	delta.Delta = true
	for name, c := range map[string]struct {
		d       Destination
		stage   Stage
		pid     int
		want    string
		refused bool
	}{
		"copied":             {in, Copied, 0, "restored", false},
		"begun":              {in, Begun, 0, "restored", false},
		"begun, running":     {in, Begun, 7, "restored", false},
		"opened":             {in, Ended, 0, "replaced", false},
		"opened, running":    {in, Ended, 7, "", true},
		"to be looked at":    {delta, Copied, 0, "replaced", false},
		"to be looked at, 2": {delta, Begun, 7, "", true},
		"not known":          {in, Unknown, 0, "replaced", false},
		"not known, running": {in, Unknown, 7, "", true},
	} {
		p := one(t, c.d, map[string]Place{"/data": {Exists: true, IsDir: true, DataDir: true, SystemID: 77, Free: 1 << 40, Marker: &m, Stage: c.stage, PID: c.pid}}, nil)
		got := ""
		switch {
		case p.Layout.Restored:
			got = "restored"
		case p.Layout.Replaces:
			got = "replaced"
		}
		if got != c.want || errors.Is(p.Err(), ErrRefused) != c.refused {
			t.Errorf("in place, %s: %q, want %q; %v", name, got, c.want, p.Err())
		}
	}
}

// The server's own tablespaces are not in its way.
func TestGoesOnWithTablespaces(t *testing.T) {
	f := line()
	spaces(f.backups[1])
	f.facts[1] = append(f.facts[1], fact(0x350100, 0x350200, &wal.Tablespace{LSN: 0x350100, OID: 99, Path: "/new"}))
	f.places = map[string]Place{"/to": {Free: 1 << 40}, "/ssd": {Free: 1 << 40}, "/new": {Exists: true, IsDir: true, Empty: true}}
	d := Destination{Dir: "/to", Program: "/p", Start: true, SocketDir: "/to", Port: 1, Tablespaces: []Mapping{{"fast", "/ssd"}}}
	plan := func() *Plan {
		t.Helper()
		p, err := MakePlan(f.view(), Target{Action: Promote}, d)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := plan()
	m := first.marker(time.Now())
	for name, pid := range map[string]int{"stopped": 0, "running": 7} {
		own := Place{Exists: true, IsDir: true}
		if pid != 0 {
			own.UsedBy = "/to"
		}
		f.places = map[string]Place{
			"/to":  {Exists: true, IsDir: true, DataDir: true, SystemID: 77, PID: pid, Marker: &m, Stage: Begun, Links: []string{"/ssd", "/new", "/to/pitr_tablespaces/16386"}},
			"/ssd": own, "/new": own,
		}
		if p := plan(); p.Err() != nil || !p.Layout.Restored || len(p.created) != 1 {
			t.Errorf("%s: %v, %+v, %v", name, p.Err(), p.Layout, p.created)
		}
		for _, dir := range []string{"/ssd", "/new"} {
			f.places[dir] = Place{Exists: true, IsDir: true, UsedBy: "/other"}
			if p := plan(); !errors.Is(p.Err(), ErrRefused) || !strings.Contains(p.Err().Error(), "/other") {
				t.Errorf("%s, %s is another server's: %v", name, dir, p.Err())
			}
			f.places[dir] = own
		}
	}
}

// A backup that was taken, or WAL that was archived, between two calls does not keep the second one from going on.
func TestGoesOnWithTheSameBackup(t *testing.T) {
	f := line()
	newer := f.backups[1]
	f.backups = f.backups[:1]
	d := Destination{Dir: "/to", Program: "/p", Start: true, SocketDir: "/to", Port: 1}
	first, err := MakePlan(f.view(), Target{Action: Promote}, d)
	if err != nil {
		t.Fatal(err)
	}
	m := first.marker(time.Now())
	f.backups = append(f.backups, newer)
	for name, place := range map[string]Place{
		"copied":     {Exists: true, IsDir: true, DataDir: true, SystemID: 77, Marker: &m, Stage: Copied},
		"running":    {Exists: true, IsDir: true, DataDir: true, SystemID: 77, Marker: &m, Stage: Begun, PID: 7},
		"unfinished": {Exists: true, IsDir: true, Free: 1 << 40, Journal: &Journal{Plan: first.fingerprint(), Backup: first.Backup.ID, Target: first.Asked}},
	} {
		f.places = map[string]Place{"/to": place}
		p, err := MakePlan(f.view(), Target{Action: Promote}, d)
		if err != nil {
			t.Fatal(err)
		}
		if p.Err() != nil || p.Backup.ID != first.Backup.ID || p.Layout.Restored != (place.Marker != nil) || p.Layout.Resumes != (place.Journal != nil) || p.Asked != first.Asked {
			t.Errorf("%s: %v, backup %s, %+v", name, p.Err(), p.Backup.ID, p.Layout)
		}
		// Who asks for another backup means it.
		if p, err = MakePlan(f.view(), Target{Action: Promote, Backup: newer.ID}, d); err != nil || !errors.Is(p.Err(), ErrRefused) {
			t.Errorf("%s, another backup: %v, %v", name, err, p.Err())
		}
	}
}

func TestStage(t *testing.T) {
	m := &Marker{Path: []archive.Step{{Timeline: 1, First: 2, Last: 5}, {Timeline: 2, First: 6, Last: 6}}}
	standby := &Marker{Standby: true, Path: m.Path}
	control := func(checkpoint wal.LSN, tli wal.Timeline, state wal.ControlState) wal.Control {
		return wal.Control{Checkpoint: checkpoint, CheckpointCopy: wal.Checkpoint{Timeline: tli}, State: state}
	}
	for name, c := range map[string]struct {
		files   []string
		marker  *Marker
		control wal.Control
		want    Stage
	}{
		"copied":                     {[]string{"recovery.signal", "backup_label"}, m, control(noCheckpoint, 1, wal.StateInProduction), Copied},
		"copied, from a standby":     {[]string{"recovery.signal", "backup_label"}, m, control(noCheckpoint, 1, wal.StateInArchiveRecovery), Copied},
		"a standby":                  {[]string{"standby.signal", "backup_label"}, standby, control(noCheckpoint, 1, wal.StateInProduction), Copied},
		"the label not yet taken":    {[]string{"recovery.signal", "backup_label"}, m, control(0x100, 1, wal.StateInArchiveRecovery), Begun},
		"recovering":                 {[]string{"recovery.signal", "backup_label.old"}, m, control(0x100, 2, wal.StateInArchiveRecovery), Begun},
		"stopped meanwhile":          {[]string{"recovery.signal"}, m, control(0x100, 1, wal.StateShutDownInRecovery), Begun},
		"promoted":                   {[]string{"backup_label.old"}, m, control(0x100, 3, wal.StateInProduction), Ended},
		"being promoted":             {nil, m, control(0x100, 2, wal.StateInArchiveRecovery), Ended},
		"a standby's signal only":    {[]string{"standby.signal"}, m, control(0x100, 1, wal.StateInArchiveRecovery), Ended},
		"promoted, and once more":    {[]string{"recovery.signal"}, m, control(0x100, 3, wal.StateInArchiveRecovery), Unknown},
		"signal, and not recovering": {[]string{"recovery.signal"}, m, control(0x100, 1, wal.StateShutDown), Unknown},
		"the label taken by hand":    {[]string{"recovery.signal"}, m, control(noCheckpoint, 1, wal.StateInProduction), Unknown},
	} {
		dir := t.TempDir()
		for _, f := range c.files {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := stage(dir, c.marker, c.control); got != c.want || err != nil {
			t.Errorf("%s: %v, %v, want %v", name, got, err, c.want)
		}
	}
}
