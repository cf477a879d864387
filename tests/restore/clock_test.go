package restore_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pitr/internal/postgres"
	"pitr/internal/postgres/pgtest"
)

// clockSource is a library that shifts the clock of the server it is loaded into by the seconds that a file holds.
const clockSource = `
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile long long none, *shift = &none;
static int (*real_gettimeofday)(struct timeval *, void *);
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static time_t (*real_time)(time_t *);
__attribute__((constructor)) static void begin(void) {
	const char *path = getenv("TEST_CLOCK");
	int fd = path ? open(path, O_RDONLY) : -1;
	void *at = fd < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
	if (at != MAP_FAILED) shift = at;
	real_gettimeofday = dlsym(RTLD_NEXT, "gettimeofday");
	real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
	real_time = dlsym(RTLD_NEXT, "time");
}
int gettimeofday(struct timeval *tv, void *tz) {
	int r = real_gettimeofday(tv, tz);
	tv->tv_sec += *shift;
	return r;
}
int clock_gettime(clockid_t id, struct timespec *ts) {
	int r = real_clock_gettime(id, ts);
	if (id == CLOCK_REALTIME) ts->tv_sec += *shift;
	return r;
}
time_t time(time_t *out) {
	time_t t = real_time(0) + *shift;
	if (out) *out = t;
	return t;
}
`

// TestClockJumps: the server's clock is set forward by a day and back again, and then back by an hour. A target time means
// what it means to PostgreSQL: recovery stops before the first transaction that ended later.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler, which it takes to give a server a clock of its own")
	}
	s := newSite(t, pgtest.Options{SegSizeMB: 1, NotYet: true}, "")
	library, clock := filepath.Join(s.base, "clock.so"), filepath.Join(s.base, "clock")
	source := library + ".c"
	write(t, source, clockSource)
	shell(t, cc, "-shared", "-fPIC", "-o", library, source, "-ldl")
	give(t, library)
	set := func(shift time.Duration) {
		t.Helper()
		f, err := os.OpenFile(clock, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := binary.Write(f, binary.NativeEndian, int64(shift/time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	set(0)
	give(t, clock)
	cmd := exec.Command(filepath.Join(s.Bin.Dir, "postgres"), "-D", s.Dir)
	cmd.Env = append(os.Environ(), "LD_PRELOAD="+library, "TEST_CLOCK="+clock)
	pgtest.AsServerUser(cmd)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt) // it may be gone
		<-ended
	})
	eventually(t, "the server accepts connections", func() bool { return s.Try(t.Context(), "postgres", "SELECT 1") == nil })
	s.Server = pgtest.Attach(t, s.Dir, pgtest.Options{Bin: s.Bin})

	now := func() time.Time { return pgtest.QueryOne[time.Time](s.Server, "SELECT clock_timestamp()") }
	s.Exec("CREATE TABLE t (n serial, v text)", "INSERT INTO t (v) VALUES ('1')")
	first := s.backup(t)
	s.Exec("INSERT INTO t (v) VALUES ('2')")
	before := now()
	set(24 * time.Hour)
	if at := now(); at.Sub(before) < 23*time.Hour {
		t.Fatalf("the server's clock did not jump: %v, then %v\n%s", before, at, log.String())
	}
	s.Exec("INSERT INTO t (v) VALUES ('a day ahead')")
	ahead := now()
	future := s.backup(t) // by its clock it ends tomorrow
	set(0)
	time.Sleep(100 * time.Millisecond)
	s.Exec("INSERT INTO t (v) VALUES ('3')")
	after := now()
	set(-time.Hour)
	s.Exec("INSERT INTO t (v) VALUES ('an hour back')")
	back := now()
	s.Exec("INSERT INTO t (v) VALUES ('4')")
	set(0)
	s.Exec("INSERT INTO t (v) VALUES ('5')")
	s.flush(t)

	for _, x := range []struct {
		args []string
		want string
	}{
		{[]string{"--target-time", stamp(before)}, "1 2"},
		// From the first backup, the first later transaction is the one of tomorrow, whatever follows it.
		{[]string{"--target-time", stamp(after), "--backup", first}, "1 2"},
		{[]string{"--target-time", stamp(after), "--backup", future}, "1 2 a day ahead 3 an hour back 4"},
		{nil, "1 2 a day ahead 3 an hour back 4 5"},
	} {
		r := s.pitr(t, append([]string{"restore", "--to", filepath.Join(pgtest.TempDir(t), "copy"), "--plan"}, x.args...)...)
		if r.code != 0 {
			t.Errorf("%q: exit status %d: %s", x.args, r.code, r.err)
			continue
		}
		c := s.restore(t, x.args...)
		if got := rows(c.Server); got != x.want {
			t.Errorf("%q: rows %q, want %q: stop %s", x.args, got, x.want, c.Plan.StopRecord)
		}
		c.Stop(postgres.Fast)
	}
	// Before everything that a backup leads to, and after everything that is archived.
	for _, at := range []time.Time{back, ahead.Add(time.Hour)} {
		if r := s.pitr(t, "restore", "--to", filepath.Join(pgtest.TempDir(t), "copy"), "--target-time", stamp(at)); r.code != 4 {
			t.Errorf("%s: exit status %d: %s%s", at, r.code, r.out, r.err)
		}
	}
	s.must(t, "wal", "verify")
}
