package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"pitr/internal/postgres"
)

// look tells what is at a path of this machine.
func look(ctx context.Context, path string) (Place, error) {
	var p Place
	at, err := os.Lstat(path)
	if err == nil && at.Mode()&fs.ModeSymlink != 0 {
		at, err = os.Stat(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return p, fmt.Errorf("look at %s: %w", path, err)
	default:
		p.Exists, p.IsDir = true, at.IsDir()
	}
	if p.Free, p.Compresses, err = free(path); err != nil {
		return p, err
	}
	if p.UsedBy, err = usedBy(path); err != nil {
		return p, err
	}
	if !p.IsDir {
		return p, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return p, fmt.Errorf("look at %s: %w", path, err)
	}
	p.Empty = len(entries) == 0 || len(entries) == 1 && entries[0].Name() == "lost+found"
	if p.Journal, err = ReadJournal(path); err != nil {
		return p, err
	}
	if p.Journal != nil && p.Journal.Phase == phaseFinish {
		// A server takes the label away when it begins to recover.
		_, control := os.Stat(filepath.Join(path, "global", "pg_control"))
		_, label := os.Stat(filepath.Join(path, "backup_label"))
		p.Ran = control == nil && errors.Is(label, fs.ErrNotExist)
	}
	if _, err := os.Stat(filepath.Join(path, "PG_VERSION")); err == nil {
		p.DataDir = true
		// A directory that is to be replaced may well be damaged.
		if c, err := postgres.ReadControl(ctx, path); err == nil {
			p.SystemID = c.SystemID
			if m, err := ReadMarker(path); err == nil && m != nil && p.Journal == nil {
				p.Marker = m
				if p.Stage, err = stage(path, m, c); err != nil {
					return p, fmt.Errorf("look at %s: %w", path, err)
				}
			}
		}
	}
	if p.DataDir || p.Journal != nil {
		p.Links, p.WALLink = links(path)
		if p.Taken, err = taken(path); err != nil {
			return p, err
		}
	}
	pid, running, err := postgres.Running(path)
	if err != nil {
		return p, err
	}
	if running {
		p.PID, p.UsedBy = pid, ""
	}
	return p, nil
}

// links gives where a data directory's tablespaces and its linked pg_wal are.
func links(dataDir string) (spaces []string, walDir string) {
	resolve := func(path string) string {
		target, err := os.Readlink(path)
		if err != nil {
			return ""
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		return filepath.Clean(target)
	}
	// A directory that does not exist has no links.
	entries, _ := os.ReadDir(filepath.Join(dataDir, "pg_tblspc"))
	for _, e := range entries {
		if target := resolve(filepath.Join(dataDir, "pg_tblspc", e.Name())); target != "" {
			spaces = append(spaces, target)
		}
	}
	return spaces, resolve(filepath.Join(dataDir, "pg_wal"))
}

// The file systems that compress files (statfs(2) and, for ZFS, its include/sys/fs/zfs.h).
const (
	magicBtrfs = 0x9123683e
	magicZFS   = 0x2fc12fc1
)

// free is the space left to an ordinary user on the file system where path is, or would be, and whether that may compress.
func free(path string) (n int64, compresses bool, err error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		if err == nil {
			kind := uint32(st.Type)
			return int64(st.Bavail) * int64(st.Bsize), kind == magicBtrfs || kind == magicZFS, nil
		}
		if parent := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) && parent != path {
			path = parent
			continue
		}
		return 0, false, fmt.Errorf("find out how much space is left at %s: %w", path, err)
	}
}

// taken is the space that the files of a directory take on their disks, without following links.
func taken(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("add up %s: %w", dir, err)
	}
	return n, err
}

// usedBy gives the data directory of a running server that path is part of: inside it or around it, or likewise with its
// tablespaces or its WAL. A server works in its data directory, which is how it is found.
func usedBy(path string) (string, error) {
	path = real(path)
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return "", fmt.Errorf("look for running servers: %w", err)
	}
	seen := map[string]bool{}
	for _, proc := range procs {
		if _, err := strconv.Atoi(proc.Name()); err != nil {
			continue
		}
		// Processes end, and some may not be looked at: those of others than the servers' user.
		dir, err := os.Readlink(filepath.Join("/proc", proc.Name(), "cwd"))
		if err != nil || seen[dir] {
			continue
		}
		seen[dir] = true
		if _, err := os.Stat(filepath.Join(dir, "postmaster.pid")); err != nil {
			continue
		}
		if _, running, err := postgres.Running(dir); err != nil || !running {
			continue
		}
		spaces, walDir := links(dir)
		for _, used := range append(spaces, dir, walDir) {
			if used == "" {
				continue
			}
			if used = real(used); inside(used, path) || inside(path, used) {
				return dir, nil
			}
		}
	}
	return "", nil
}

// real follows links as far as the path exists.
func real(path string) string {
	path = filepath.Clean(path)
	rest := ""
	for p := path; ; {
		if r, err := filepath.EvalSymlinks(p); err == nil {
			return filepath.Join(r, rest)
		}
		parent := filepath.Dir(p)
		if parent == p {
			return path
		}
		rest = filepath.Join(filepath.Base(p), rest)
		p = parent
	}
}

// SocketFits tells whether a server's socket in dir has a path that the kernel takes (struct sockaddr_un has 108 bytes, with
// an end), and that the server takes for one directory and writes as one line of its postmaster.pid.
func SocketFits(dir string, port int) bool {
	return len(filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(port))) <= 107 && !strings.ContainsAny(dir, "\",\n")
}
