package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/robfig/cron/v3"

	"pitr/internal/hint"
)

const (
	// jumpBack is how far the clock may go back before schedules are counted anew. Less is the clock being adjusted.
	jumpBack = time.Minute
	// firstRetry is how long after a failure a job is tried again; it doubles from failure to failure.
	firstRetry = 15 * time.Minute
	// askAgain is how long after an error it is asked again whether a run was missed.
	askAgain = time.Minute
)

// A timetable says when a job is due, by the wall clock, at most once for each time that was looked at. However far the
// clock jumps ahead, or however long nobody looked, that is one due time; when it jumps back, the time to come is
// counted from there. It is not safe for concurrent use.
type timetable struct {
	spec cron.Schedule
	next time.Time // zero: never
	seen time.Time // when it was looked at last
}

func newTimetable(spec string, now time.Time) (*timetable, error) {
	s, err := cron.ParseStandard(spec)
	if err != nil {
		return nil, fmt.Errorf("schedule %q: %w", spec, err)
	}
	return &timetable{spec: s, next: s.Next(now), seen: now}, nil
}

// due tells whether a time of the schedule has come since the last look.
func (t *timetable) due(now time.Time) bool {
	back := now.Before(t.seen.Add(-jumpBack))
	if back || now.After(t.seen) {
		t.seen = now
	}
	if back {
		t.next = t.spec.Next(now)
		return false
	}
	if t.next.IsZero() || now.Before(t.next) {
		return false
	}
	t.next = t.spec.Next(now)
	return true
}

// missed tells whether a time of the schedule lies after since and not after now.
func (t *timetable) missed(since, now time.Time) bool {
	next := t.spec.Next(since)
	return !next.IsZero() && !next.After(now)
}

// A job is work that is done by a schedule.
type job struct {
	name string
	when *timetable
	run  func(context.Context) error
	// then is begun after each success; it may be nil.
	then *job
	// missed tells whether a run was missed before the scheduler began, and what there is to say about it. It is asked
	// until it gives an answer. It may be nil.
	missed  func(context.Context) (missed bool, why string, err error)
	askedAt time.Time

	// The scheduler's lock guards what follows.
	running  bool
	began    time.Time
	ended    time.Time
	failure  *Failure // of the last run
	failures int      // in a row
	retry    time.Time
}

// errSkip is returned by jobs that have nothing to do, with the reason. That is neither a success nor a failure.
var errSkip = errors.New("skipped")

// A scheduler runs jobs, one at a time.
type scheduler struct {
	jobs []*job
	log  *slog.Logger
	now  func() time.Time

	mu   sync.Mutex
	busy *job
	all  sync.WaitGroup
}

// run looks every second what is due until ctx ends, which also ends what runs.
func (s *scheduler) run(ctx context.Context) {
	defer s.all.Wait()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		s.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look begins what is due.
func (s *scheduler) look(ctx context.Context) {
	for _, j := range s.jobs {
		s.catchUp(ctx, j)
		now := s.now()
		s.mu.Lock()
		due := j.when.due(now)
		again := !j.retry.IsZero() && !now.Before(j.retry)
		if again || due {
			j.retry = time.Time{}
		}
		s.mu.Unlock()
		if due || again {
			s.begin(ctx, j)
		}
	}
}

// catchUp begins a job that should have run while no agent did. That is asked until there is an answer, once.
func (s *scheduler) catchUp(ctx context.Context, j *job) {
	now := s.now()
	if j.missed == nil || now.Sub(j.askedAt).Abs() < askAgain {
		return
	}
	j.askedAt = now
	limited, cancel := context.WithTimeout(ctx, askAgain)
	missed, why, err := j.missed(limited)
	cancel()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.log.Warn("can't tell whether a scheduled run was missed", "job", j.name, "error", err, "hint", hint.Of(err))
	default:
		j.missed = nil
		if missed {
			s.log.Info("a scheduled run was missed, so it begins now", "job", j.name, "reason", why)
			s.begin(ctx, j)
		} else if why != "" {
			s.log.Warn(why, "job", j.name, "next", j.when.next)
		}
	}
}

// begin starts a job unless one runs.
func (s *scheduler) begin(ctx context.Context, j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy != nil {
		s.log.Warn("a scheduled run was skipped, since another one still runs", "job", j.name, "running", s.busy.name, "since", s.busy.began)
		return
	}
	s.busy, j.running, j.began = j, true, s.now()
	s.all.Go(func() {
		s.log.Info("scheduled run begins", "job", j.name)
		err := j.run(ctx)
		s.finish(ctx, j, err)
	})
}

func (s *scheduler) finish(ctx context.Context, j *job, err error) {
	s.mu.Lock()
	now := s.now()
	s.busy, j.running, j.ended = nil, false, now
	took := now.Sub(j.began).Round(time.Millisecond)
	switch {
	case err == nil:
		j.failure, j.failures = nil, 0
		s.log.Info("scheduled run done", "job", j.name, "took", took)
	case errors.Is(err, errSkip):
		s.log.Info("scheduled run skipped", "job", j.name, "reason", err)
	case ctx.Err() != nil:
		s.log.Info("scheduled run interrupted, since the agent stops", "job", j.name)
	default:
		j.failure = failureOf(now, "", err)
		j.retry = now.Add(firstRetry << min(j.failures, 6))
		j.failures++
		s.log.Error("scheduled run failed", "job", j.name, "error", err, "hint", hint.Of(err), "took", took, "again", j.retry)
	}
	s.mu.Unlock()
	if err == nil && j.then != nil && ctx.Err() == nil {
		s.begin(ctx, j.then)
	}
}

// nextRun is when the job runs next; zero: never. The scheduler's lock is held.
func (j *job) nextRun() time.Time {
	if !j.retry.IsZero() && (j.when.next.IsZero() || j.retry.Before(j.when.next)) {
		return j.retry
	}
	return j.when.next
}
