package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func at(s string) time.Time {
	t, err := time.ParseInLocation("2006-01-02 15:04:05", s, time.UTC)
	if err != nil {
		panic(err)
	}
	return t
}

func TestTimetable(t *testing.T) {
	type look struct {
		at  string
		due bool
	}
	for name, looks := range map[string][]look{
		"each night once": {
			{"2026-11-22 00:59:59", false}, {"2026-11-22 01:00:00", true}, {"2026-11-22 01:00:01", false},
			{"2026-11-23 00:59:59", false}, {"2026-11-23 01:00:30", true}, {"2026-11-23 01:00:31", false},
		},
		"a jump over ten nights is one run": {
			{"2026-11-22 00:10:00", false}, {"2026-12-02 12:00:00", true}, {"2026-12-02 12:00:01", false}, {"2026-12-03 01:00:00", true},
		},
		"after a jump back the next night counts": {
			{"2026-11-22 01:00:00", true}, {"2026-11-20 12:00:00", false}, {"2026-11-20 12:00:01", false}, {"2026-11-21 01:00:00", true},
		},
		"jumping around is no storm": {
			{"2026-11-22 01:00:00", true}, {"2026-11-22 00:00:00", false}, {"2026-11-22 00:59:59", false}, {"2026-11-21 23:00:00", false},
		},
		"a clock that is adjusted across the time runs once": {
			{"2026-11-22 01:00:00", true}, {"2026-11-22 00:59:58", false}, {"2026-11-22 00:59:59", false}, {"2026-11-22 01:00:00", false}, {"2026-11-22 01:00:01", false},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tt, err := newTimetable("0 1 * * *", at("2026-11-22 00:00:00"))
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range looks {
				if due := tt.due(at(l.at)); due != l.due {
					t.Errorf("due at %s: %v, next %v", l.at, due, tt.next)
				}
			}
		})
	}
	if _, err := newTimetable("0 1 * *", time.Now()); err == nil {
		t.Error("four fields are taken for a schedule")
	}
	never, err := newTimetable("0 0 31 2 *", at("2026-11-22 00:00:00"))
	if err != nil || never.due(at("2036-11-22 00:00:00")) {
		t.Errorf("February 31 comes; %v", err)
	}
}

func TestMissed(t *testing.T) {
	tt, err := newTimetable("0 1 * * *", at("2026-11-22 12:00:00"))
	if err != nil {
		t.Fatal(err)
	}
	now := at("2026-11-22 12:00:00")
	for since, want := range map[string]bool{
		"2026-11-22 01:00:00": false, // began as it should
		"2026-11-22 08:00:00": false, // taken by hand
		"2026-11-22 00:59:59": true,
		"2026-11-01 01:00:00": true,
		"2026-11-25 01:00:00": false, // from a clock that was wrong
	} {
		if got := tt.missed(at(since), now); got != want {
			t.Errorf("since %s: %v", since, got)
		}
	}
}

// wallClock is a clock that tests set back and forth.
type wallClock struct {
	mu  sync.Mutex
	off time.Duration
}

func (c *wallClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().UTC().Add(c.off)
}

func (c *wallClock) jump(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off += d
}

// recorder is a log that tests read.
type recorder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *recorder) count(s string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(r.b.String(), s)
}

func (r *recorder) logger() *slog.Logger { return slog.New(slog.NewTextHandler(r, nil)) }

func TestScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // begins at 2000-01-01 00:00 UTC
		var clock wallClock
		var log recorder
		var mu sync.Mutex
		ran := map[string]int{}
		count := func(name string) int {
			mu.Lock()
			defer mu.Unlock()
			return ran[name]
		}
		took := time.Minute
		var fail error
		work := func(name string) func(context.Context) error {
			return func(ctx context.Context) error {
				mu.Lock()
				ran[name]++
				d, err := took, fail
				mu.Unlock()
				select {
				case <-time.After(d):
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		timetable := func(spec string) *timetable {
			tt, err := newTimetable(spec, clock.now())
			if err != nil {
				t.Fatal(err)
			}
			return tt
		}
		prune := &job{name: "prune", when: timetable("30 4 * * *"), run: work("prune")}
		asks := 0
		backup := &job{name: "backup", when: timetable("0 1 * * *"), run: work("backup"), then: prune,
			missed: func(context.Context) (bool, string, error) {
				if asks++; asks < 3 {
					return false, "", errors.New("store away")
				}
				return true, "the newest is old", nil
			}}
		s := &scheduler{jobs: []*job{backup, prune}, log: log.logger(), now: clock.now}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.run(ctx)
		}()
		expect := func(when string, b, p int) {
			t.Helper()
			synctest.Wait()
			if count("backup") != b || count("prune") != p {
				t.Errorf("%s: %d backups, %d prunes; want %d, %d", when, count("backup"), count("prune"), b, p)
			}
		}
		time.Sleep(10 * time.Second)
		expect("while the store is away", 0, 0)
		time.Sleep(2 * time.Minute)
		expect("when it is back, the missed one runs", 1, 0)
		time.Sleep(2 * time.Minute)
		expect("and retention behind it", 1, 1)
		time.Sleep(time.Hour) // 01:04
		expect("the scheduled one", 2, 2)
		if asks != 3 {
			t.Errorf("asked %d times whether one was missed", asks)
		}
		time.Sleep(4 * time.Hour) // 05:04
		expect("retention by its own schedule", 2, 3)

		// A jump over days is one run of each; the backup's own retention follows.
		clock.jump(5 * 24 * time.Hour)
		time.Sleep(10 * time.Minute)
		expect("after a jump ahead", 3, 4)
		if log.count("was skipped") != 1 {
			t.Error("retention that was due while the backup ran is not logged")
		}
		clock.jump(-10 * 24 * time.Hour)
		time.Sleep(10 * time.Minute)
		expect("after a jump back", 3, 4)

		// Failures are tried again, less and less often.
		mu.Lock()
		fail = errors.New("no space")
		mu.Unlock()
		time.Sleep(26 * time.Hour) // from 05:24 past 01:00 and 04:30, when retention fails, too
		failed := count("backup") - 3
		if failed < 4 || failed > 7 {
			t.Errorf("%d tries of a failing backup", failed)
		}
		for _, j := range s.report() {
			if j.Failure == nil || j.Failure.Text != "no space" || j.Next.IsZero() {
				t.Errorf("state %+v", j)
			}
		}
		mu.Lock()
		fail = nil
		mu.Unlock()
		time.Sleep(30 * time.Hour)
		for _, j := range s.report() {
			if j.Failure != nil {
				t.Errorf("state %+v", j)
			}
		}

		// One that is due while the last one runs is skipped.
		mu.Lock()
		took = 30 * time.Hour
		mu.Unlock()
		skipped, began := log.count("was skipped"), count("backup")
		time.Sleep(50 * time.Hour)
		if log.count("was skipped") == skipped || count("backup")-began > 2 {
			t.Errorf("%d begun, %d skipped", count("backup")-began, log.count("was skipped")-skipped)
		}
		cancel() // ends the one that runs
		<-ended
	})
}

func TestSkippedJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log recorder
		var clock wallClock
		n := 0
		tt, err := newTimetable("0 1 * * *", clock.now())
		if err != nil {
			t.Fatal(err)
		}
		j := &job{name: "backup", when: tt, run: func(context.Context) error {
			n++
			return fmt.Errorf("%w: %w", errSkip, ErrStandby)
		}}
		s := &scheduler{jobs: []*job{j}, log: log.logger(), now: clock.now}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.run(ctx)
		}()
		time.Sleep(49 * time.Hour)
		cancel()
		<-ended
		if n != 2+1 || log.count("the server is a standby") != n || j.failure != nil {
			t.Errorf("%d runs, failure %v, log %s", n, j.failure, log.b.String())
		}
	})
}
