package recovery_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/archive"
	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
	"pitr/internal/repo"
	"pitr/recovery"
	"pitr/storage"
	"pitr/storage/storagetest"
)

// tree tells everything about a directory but when it was restored.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		what := info.Mode().String()
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += target
		case info.Mode().IsRegular() && d.Name() != recovery.MarkerFile:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += fmt.Sprintf("%x", sha256.Sum256(data))
		}
		all[strings.TrimPrefix(path, dir)] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func compareTrees(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for path, w := range want {
		if got[path] != w {
			t.Errorf("%s: %s is %q, want %q", what, path, got[path], w)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s: %s should not be there", what, path)
		}
	}
}

// planWith plans on another view of the store.
func (h *house) planWith(b storage.Bucket, d recovery.Destination) (*recovery.World, *recovery.Plan, error) {
	ctx := h.t.Context()
	r, err := repo.Open(ctx, b, h.repo.SystemID())
	if err != nil {
		return nil, nil, err
	}
	w, err := recovery.Observe(ctx, archive.New(r, archive.Options{}), recovery.Surroundings{BinDir: h.Bin.Dir})
	if err != nil {
		return nil, nil, err
	}
	d.Program, d.Config, d.SocketDir, d.Port = h.program, h.config, d.Dir, 5432
	p, err := recovery.MakePlan(w.View, recovery.Target{Action: recovery.Promote}, d)
	return w, p, errors.Join(err)
}

// Each operation of the store fails in turn. After each failure no server can start, and the next call ends with exactly
// what one undisturbed gives.
func TestEveryReadFails(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1, Tablespaces: 1})
	h.Exec("CREATE TABLE a TABLESPACE ts1 AS SELECT generate_series(1, 50000) AS x")
	h.backup()
	h.flush()
	h.Stop(postgres.Fast)
	d := recovery.Destination{Dir: filepath.Join(pgtest.TempDir(t), "copy")}
	restore := func(b storage.Bucket) error {
		w, p, err := h.planWith(b, d)
		if err != nil {
			return err
		}
		defer w.Close()
		_, err = w.Restore(t.Context(), p, options())
		return err
	}
	if err := restore(h.bucket); err != nil {
		t.Fatal(err)
	}
	want := tree(t, d.Dir)
	for n := 1; ; n++ {
		if err := os.RemoveAll(d.Dir); err != nil {
			t.Fatal(err)
		}
		counter := storagetest.FailNth(n, storagetest.Dead)
		err := restore(storagetest.Faulty(h.bucket, counter.Fault))
		if !counter.Fired() {
			if err != nil || n < 10 {
				t.Errorf("operation %d was not needed: %v", n, err)
			}
			break
		}
		what := fmt.Sprintf("operation %d", n)
		if !errors.Is(err, storagetest.ErrFault) {
			t.Errorf("%s failed: %v", what, err)
		}
		if _, err := os.Stat(filepath.Join(d.Dir, "global", "pg_control")); err == nil {
			t.Errorf("%s failed, and there is a pg_control", what)
		}
		if err := restore(h.bucket); err != nil {
			t.Errorf("after %s had failed: %v", what, err)
		}
		compareTrees(t, what, tree(t, d.Dir), want)
	}
}

// Any changed bit of what the packs hold is noticed before it is written.
func TestDamagedPack(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.backup()
	h.flush()
	for range 20 {
		d := recovery.Destination{Dir: filepath.Join(pgtest.TempDir(t), "copy")}
		bad := storagetest.Corrupt(h.bucket, func(key string, data []byte) []byte {
			if !strings.Contains(key, "/"+repo.PackPrefix) {
				return data
			}
			data = append([]byte(nil), data...)
			data[rand.IntN(len(data))] ^= 1 << rand.IntN(8)
			return data
		})
		w, p, err := h.planWith(bad, d)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Restore(t.Context(), p, options())
		w.Close()
		if err == nil {
			// The bits between frames don't exist; each read damages another place, perhaps one that is not used then.
			continue
		}
		if !errors.Is(err, repo.ErrDamaged) || !strings.Contains(err.Error(), "file ") && !strings.Contains(err.Error(), "pg_control") {
			t.Errorf("a flipped bit: %v", err)
		}
		if _, err := os.Stat(filepath.Join(d.Dir, "global", "pg_control")); err == nil {
			t.Error("a flipped bit, and there is a pg_control")
		}
	}
}

// A restore in place that is killed at any moment goes on when called again, and can't be started before.
func TestKilledRestore(t *testing.T) {
	t.Parallel()
	h := newHouse(t, pgtest.Options{SegSizeMB: 1})
	h.Exec("CREATE TABLE a AS SELECT generate_series(1, 300000) AS x")
	h.backup()
	h.Exec("INSERT INTO a SELECT generate_series(1, 1000)")
	want := digest(h.Server)
	h.flush()
	h.Stop(postgres.Fast)
	if err := h.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.give(filepath.Join(h.base, "repo"))
	run := func(life time.Duration) error {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+h.Dir, childEnv+"_CONFIG="+h.config, childEnv+"_PROGRAM="+h.program, "TMPDIR="+h.base)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			return err
		}
		if life > 0 {
			timer := time.AfterFunc(life, func() { cmd.Process.Kill() })
			defer timer.Stop()
		}
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%w: %s", err, out.String())
		}
		return nil
	}
	// What has come to its end is not done again, as long as this is there.
	forget := func() {
		if err := os.Remove(filepath.Join(h.Dir, recovery.MarkerFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if err := run(0); err != nil {
		t.Fatal(err)
	}
	whole := time.Since(began)
	forget()
	killed := 0
	for range 15 {
		err := run(time.Duration(rand.Int64N(int64(whole))))
		if err == nil {
			forget()
			continue
		}
		if !strings.Contains(err.Error(), "signal: killed") {
			t.Fatal(err)
		}
		killed++
		j, err := recovery.ReadJournal(h.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(h.Dir, "global", "pg_control")); err == nil && j != nil && j.Phase == "copy" {
			t.Error("a copy that is not complete has a pg_control")
		}
	}
	if killed == 0 {
		t.Error("none was killed")
	}
	if err := run(0); err != nil {
		t.Fatal(err)
	}
	h.give(filepath.Join(h.base, "repo"))
	h.Start()
	h.AwaitPrimary()
	if digest(h.Server) != want {
		t.Error("contents differ")
	}
	h.Server.CheckPages()
}
