package recovery

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"pitr/basebackup"
	"pitr/internal/wal"
)

// Destination is where a restore goes, and what for.
type Destination struct {
	Dir string `json:"dir"` // absolute
	// InPlace: Dir is the server's own directory, whose contents are replaced. Else it is new or empty.
	InPlace     bool      `json:"in_place"`
	Delta       bool      `json:"delta"` // InPlace: keep what is right already
	Tablespaces []Mapping `json:"-"`
	Standby     bool      `json:"standby"`
	Archive     bool      `json:"archive"` // what is restored may archive
	Start       bool      `json:"start"`   // the server is to be started
	// Program and Config are the absolute paths of pitr and of its configuration file (empty: none), as the server is to
	// call them.
	Program string `json:"-"`
	Config  string `json:"-"`
	// SocketDir and Port are those of a copy that is Scratch, which has to have them.
	SocketDir string `json:"socket_dir,omitempty"`
	Port      int    `json:"port,omitempty"`
}

// Mapping moves a tablespace. Old is its number, its name, or its directory; New is absolute.
type Mapping struct{ Old, New string }

// ParseMapping reads OLD=NEW. A backslash before an equals sign makes it part of the name.
func ParseMapping(s string) (Mapping, error) {
	var old strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '=':
			old.WriteByte('=')
			i++
		case s[i] == '=':
			m := Mapping{old.String(), s[i+1:]}
			if m.Old == "" || !filepath.IsAbs(m.New) {
				return m, fmt.Errorf("--tablespace %q: want OLD=NEW, where NEW is an absolute path", s)
			}
			m.New = filepath.Clean(m.New)
			return m, nil
		default:
			old.WriteByte(s[i])
		}
	}
	return Mapping{}, fmt.Errorf("--tablespace %q: want OLD=NEW", s)
}

// Scratch tells whether the copy touches nothing outside of its directory. One that archives, or follows as a standby, is
// to be a server in its own right, unless it is started here, beside the one it comes from.
func (d Destination) Scratch() bool { return !d.InPlace && (d.Start || !d.Archive && !d.Standby) }

// tablespacesDir is where tablespaces go that are not mapped, in a copy that is not in place. PostgreSQL minds no
// directory that it does not know.
const tablespacesDir = "pitr_tablespaces"

// Layout is where everything goes.
type Layout struct {
	Dir         string     `json:"dir"`
	WALDir      string     `json:"wal_dir,omitempty"` // where pg_wal links to; empty: it is a directory
	Tablespaces []Location `json:"tablespaces"`
	// Restored: an earlier call has put everything into place, no server has opened it since, and nothing is to be copied;
	// PID is that of its server, if that runs.
	Restored bool `json:"restored"`
	PID      int  `json:"pid,omitempty"`
	// Replaces: something of the destination has to be removed first. Resumes: an earlier call of the same plan did not
	// come to its end.
	Replaces bool `json:"replaces"`
	Resumes  bool `json:"resumes"`

	links   []string // where the links of the directory's tablespaces lead that is there already
	walLink string   // likewise, its pg_wal
}

// uses tells whether a directory becomes that of a tablespace or of pg_wal.
func (l *Layout) uses(path string) bool {
	return path == l.WALDir || slices.ContainsFunc(l.Tablespaces, func(t Location) bool { return t.Path == path })
}

// own tells whether a place belongs to the server that is waited for.
func (l *Layout) own(at Place) bool { return l.PID != 0 && at.UsedBy == l.Dir }

// Location is the place of a tablespace.
type Location struct {
	OID  uint32 `json:"oid"`
	Name string `json:"name"`
	From string `json:"from"` // on the server that was backed up; empty: inside its data directory
	Path string `json:"path"` // empty: inside the data directory
}

// place works out the layout and what stands in its way.
func (p *Plan) place(v View) error {
	d := p.Destination
	p.Layout.Dir = d.Dir
	at, err := v.Look(d.Dir)
	if err != nil {
		return err
	}
	p.judgeDir(at)
	p.Layout.links, p.Layout.walLink = at.Links, at.WALLink
	for _, n := range p.created {
		if err := p.newTablespace(v, n, at); err != nil {
			return err
		}
	}
	if err := p.placeTablespaces(v, at); err != nil {
		return err
	}
	if err := p.placeWAL(v, at); err != nil {
		return err
	}
	if err := p.spared(v); err != nil {
		return err
	}
	if p.Layout.Restored {
		p.Fetch, p.Write = 0, 0
	} else {
		p.judgeSpace(at)
	}
	if d.Start {
		if err := v.Server(p.Backup.ServerVersion / 10000); err != nil {
			return err
		}
	}
	return nil
}

// judgeDir says whether the data directory may be written.
func (p *Plan) judgeDir(at Place) {
	d := p.Destination
	name := d.Dir
	const otherDir = "choose a directory that is empty or does not exist yet"
	switch {
	case at.PID != 0 && p.goesOn(at):
		p.Layout.Restored, p.Layout.PID = true, at.PID
		p.why("an earlier call has restored it on %s and started the server (process %d), which is waited for", formatTime(at.Marker.Created), at.PID)
	case at.PID != 0 && !d.Start && (at.Stage == Begun || !d.InPlace) && at.Marker != nil && at.Marker.Call == p.call():
		p.obstacle(true, "an earlier call has restored this: with --start the same command waits for the server", "a server runs in %s (process %d)", name, at.PID)
	case at.PID != 0:
		p.begunBy(at)
		p.obstacle(true, fmt.Sprintf("stop it first, for example with `pg_ctl stop -D %s`, or restore beside it with --to", name), "a server runs in %s (process %d)", name, at.PID)
	case at.UsedBy != "":
		p.obstacle(true, "choose a directory of its own", "%s belongs to the server that runs in %s", name, at.UsedBy)
	case at.Exists && !at.IsDir:
		p.obstacle(true, otherDir, "%s is not a directory", name)
	case at.Ran && !d.InPlace:
		p.obstacle(true, otherDir, "a server has run on what was restored to %s", name)
	case at.Journal != nil && !at.Ran && at.Journal.same(p):
		p.Layout.Resumes = true
		p.why("an earlier restore of the same kind did not come to its end: what it wrote is kept where it is right")
	case at.Journal != nil && !d.InPlace:
		p.begunBy(at)
		p.obstacle(true, "call that one again to finish it, or remove the directory",
			"%s holds an unfinished restore of backup %s to %s", name, at.Journal.Backup, at.Journal.Target)
	case at.Journal != nil && !at.Ran:
		p.Layout.Replaces = true
		p.why("an unfinished restore of backup %s in %s is replaced", at.Journal.Backup, name)
	case !at.Exists || at.Empty:
	case p.goesOn(at):
		p.Layout.Restored = true
		what := "a server has begun to recover, and goes on"
		if at.Stage == Copied {
			what = "no server has begun on it"
		}
		p.why("an earlier call has restored it on %s: %s", formatTime(at.Marker.Created), what)
	case !d.InPlace && at.Stage == Ended:
		p.obstacle(true, otherDir, "a server has been opened on what was restored to %s", name)
	case !d.InPlace && at.Stage != Unknown:
		p.begunBy(at)
		p.obstacle(true, "start it with pg_ctl, call the command again that made it, or remove the directory",
			"%s holds backup %s, restored to %s", name, at.Marker.Backup, at.Marker.Target)
	case !d.InPlace:
		p.obstacle(true, otherDir, "%s is not empty", name)
	case !at.DataDir:
		p.obstacle(true, "check `postgres.data_dir`; if it is right, empty the directory yourself", "%s holds files, and is no data directory of PostgreSQL", name)
	case at.SystemID != 0 && at.SystemID != p.Backup.SystemID:
		p.obstacle(true, "check `postgres.data_dir`; if it is right, empty the directory yourself",
			"%s belongs to another cluster (system identifier %d, the backup has %d)", name, at.SystemID, p.Backup.SystemID)
	default:
		p.Layout.Replaces = true
	}
}

func (p *Plan) placeTablespaces(v View, at Place) error {
	d := p.Destination
	used := make([]bool, len(d.Tablespaces))
	taken := map[string]uint32{}
	for _, t := range p.Backup.Tablespaces {
		l := Location{OID: t.OID, Name: string(t.Name), From: string(t.Path)}
		i := slices.IndexFunc(d.Tablespaces, func(m Mapping) bool { return m.fits(t) })
		switch {
		case i >= 0:
			used[i] = true
			l.Path = d.Tablespaces[i].New
		case t.Path == "":
		case d.InPlace:
			l.Path = filepath.Clean(string(t.Path))
		default:
			l.Path = filepath.Join(d.Dir, tablespacesDir, strconv.FormatUint(uint64(t.OID), 10))
		}
		p.Layout.Tablespaces = append(p.Layout.Tablespaces, l)
		if l.Path == "" {
			continue
		}
		if other, ok := taken[l.Path]; ok {
			p.obstacle(true, "", "tablespaces %d and %d would both go to %s", other, l.OID, l.Path)
		}
		taken[l.Path] = l.OID
		if inside(d.Dir, l.Path) && i < 0 {
			continue // judged with the directory
		}
		place, err := v.Look(l.Path)
		if err != nil {
			return err
		}
		switch own := (d.InPlace || p.Layout.Restored) && slices.Contains(at.Links, l.Path); {
		case p.Layout.own(place):
		case place.UsedBy != "" || place.PID != 0:
			p.obstacle(true, fmt.Sprintf("--tablespace %d=DIR puts it elsewhere", l.OID), "%s, for tablespace %q, belongs to the server that runs in %s", l.Path, l.Name, place.UsedBy)
		case place.Exists && !place.IsDir:
			p.obstacle(true, fmt.Sprintf("--tablespace %d=DIR puts it elsewhere", l.OID), "%s, for tablespace %q, is not a directory", l.Path, l.Name)
		case place.Exists && !place.Empty && !own && !p.Layout.Resumes:
			p.obstacle(true, fmt.Sprintf("--tablespace %d=DIR puts it elsewhere", l.OID), "%s, for tablespace %q, is not empty", l.Path, l.Name)
		}
	}
	for i, m := range d.Tablespaces {
		if !used[i] {
			return fmt.Errorf("--tablespace %s=%s: backup %s has no such tablespace", m.Old, m.New, p.Backup.ID)
		}
	}
	return nil
}

// fits tells whether a mapping means the tablespace.
func (m Mapping) fits(t basebackup.Tablespace) bool {
	return m.Old == strconv.FormatUint(uint64(t.OID), 10) || m.Old == string(t.Name) || t.Path != "" && filepath.Clean(m.Old) == filepath.Clean(string(t.Path))
}

// placeWAL decides where pg_wal is. In place a link stays what it is; where there is nothing yet, the link that was
// backed up is made again if its end is free.
func (p *Plan) placeWAL(v View, at Place) error {
	link := filepath.Clean(string(p.Backup.WALDirLink))
	switch {
	case !p.Destination.InPlace:
		return nil
	case at.WALLink != "":
		p.Layout.WALDir = at.WALLink
		// The directory may be a clone of another one, whose server runs and writes there.
		place, err := v.Look(at.WALLink)
		if err == nil && (place.UsedBy != "" || place.PID != 0) && !p.Layout.own(place) {
			p.obstacle(true, fmt.Sprintf("put an empty directory in the place of the link %s", filepath.Join(p.Layout.Dir, "pg_wal")),
				"%s, where pg_wal leads, belongs to the server that runs in %s", at.WALLink, cmp.Or(place.UsedBy, at.WALLink))
		}
		return err
	case at.DataDir || p.Backup.WALDirLink == "" || !filepath.IsAbs(link):
		return nil
	}
	place, err := v.Look(link)
	if err != nil {
		return err
	}
	if place.UsedBy != "" || place.Exists && !(place.IsDir && place.Empty) {
		p.why("pg_wal becomes a directory of its own: %s, where it was, is not free", link)
		return nil
	}
	p.Layout.WALDir = link
	return nil
}

// spared names the tablespaces of a directory that is replaced which the restore does not touch, since it puts them elsewhere
// or does not have them: they may belong to others too.
func (p *Plan) spared(v View) error {
	if !p.Layout.Replaces && !p.Layout.Resumes {
		return nil
	}
	for _, link := range p.Layout.links {
		if inside(p.Layout.Dir, link) || p.Layout.uses(link) || slices.Contains(p.createdDirs(), link) {
			continue
		}
		at := filepath.Join(link, versionDir(p.Backup))
		place, err := v.Look(at)
		if errors.Is(err, fs.ErrPermission) || err == nil && !place.Exists {
			continue
		}
		if err != nil {
			return err
		}
		whose := ""
		if place.UsedBy != "" {
			whose = fmt.Sprintf(", which belongs to the server that runs in %s,", place.UsedBy)
		}
		p.obstacle(false, "", "%s%s is left as it is: no tablespace goes there", at, whose)
	}
	return nil
}

// createdDirs are the directories, outside of the data directory, in which the replay creates tablespaces that the backup
// does not have there.
func (p *Plan) createdDirs() []string {
	var dirs []string
	for _, n := range p.created {
		if dir := filepath.Clean(n.Path); n.Path != "" && !p.Layout.uses(dir) && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// newTablespace judges a tablespace that the replay creates: the server makes it where the WAL says, wherever that is, and
// may take for its own what is in its directory there already (create_tablespace_directories in
// src/backend/commands/tablespace.c). Of the directory that is replaced, clear removes that.
func (p *Plan) newTablespace(v View, n NewTablespace, at Place) error {
	if n.Path == "" {
		return nil // inside the data directory
	}
	path := filepath.Clean(n.Path)
	place, err := v.Look(path)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("the WAL up to the target creates tablespace %d (at %s), and the server makes it in %s, which no mapping changes", n.OID, n.LSN, path)
	const advice = "restore from a backup that was taken after the tablespace was created, or on another machine"
	own := (p.Destination.InPlace || p.Layout.Restored) && slices.Contains(at.Links, path)
	if p.Layout.Resumes && !own && place.IsDir && !place.Empty {
		// The link is gone that said so, and before it what was the server's. The rest is others'.
		version, err := v.Look(filepath.Join(path, versionDir(p.Backup)))
		if err != nil {
			return err
		}
		own = !version.Exists
	}
	switch {
	case place.UsedBy != "" && !p.Layout.own(place):
		p.obstacle(true, advice, "%s: a directory of the server that runs in %s", what, place.UsedBy)
	case !place.Exists:
		p.obstacle(true, "make an empty directory there that belongs to the server's user", "%s: it does not exist", what)
	case !place.IsDir || !place.Empty && !own:
		p.obstacle(true, advice, "%s: it is not an empty directory", what)
	default:
		p.obstacle(false, "", "%s", what)
	}
	return nil
}

// spare is what has to stay free beside the files: the server writes WAL as soon as it runs.
const spare = 64 << 20

func (p *Plan) judgeSpace(at Place) {
	free := at.Free
	if p.Layout.Replaces || p.Layout.Resumes {
		free += at.Taken
	}
	need := p.Write + spare
	if len(p.Layout.Tablespaces) > 0 {
		// They may lie on other file systems. What the data directory itself takes is not told apart here, so that a
		// lack is said, and found out for sure by writing.
		if need > free {
			p.obstacle(false, "", "%s has %d bytes free, and the backup takes %d with its tablespaces", p.Destination.Dir, free, p.Write)
		}
		return
	}
	if need > free && at.Compresses {
		p.obstacle(false, "", "%s has room for %d bytes, and %d are needed, less what its file system saves by compressing", p.Destination.Dir, free, need)
	} else if need > free {
		p.obstacle(true, "free some space, or choose another directory with --to", "%s has room for %d bytes, and %d are needed", p.Destination.Dir, free, need)
	}
}

// inside tells whether path is dir or lies in it. Both are clean.
func inside(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// SegmentRange names the first and the last segment of the path.
func (p *Plan) SegmentRange() string {
	if len(p.Path) == 0 {
		return "none"
	}
	first, last := p.Path[0], p.Path[len(p.Path)-1]
	a := wal.SegmentName(first.Timeline, first.First, p.Backup.WALSegSize)
	b := wal.SegmentName(last.Timeline, last.Last, p.Backup.WALSegSize)
	if a == b {
		return a
	}
	return a + " to " + b
}
