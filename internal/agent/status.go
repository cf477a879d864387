package agent

import (
	"os"
	"time"
)

// Running is what a running agent says of itself. Times are of the host's clock; those of what has not happened are left
// out.
type Running struct {
	PID     int       `json:"pid"`
	User    int       `json:"user"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	DataDir string    `json:"data_dir"`

	Push  Pushing    `json:"push"`
	Fetch Fetching   `json:"fetch"`
	Jobs  []JobState `json:"jobs"`
}

// Pushing is how archiving goes.
type Pushing struct {
	// Ready is how many files the server waits to see archived, as of the last look.
	Ready     int       `json:"ready"`
	InFlight  int       `json:"in_flight"`
	Files     int64     `json:"files"`  // since the start, as are the following
	Bytes     int64     `json:"bytes"`  // of WAL
	Stored    int64     `json:"stored"` // what these took in the store
	Failures  int64     `json:"failures"`
	PerSecond float64   `json:"per_second"` // files, over the last minute
	Last      string    `json:"last,omitempty"`
	LastAt    time.Time `json:"last_at,omitzero"`
	Failing   bool      `json:"failing"` // the last push failed
	Failure   *Failure  `json:"last_failure,omitempty"`
}

// Fetching is how recoveries are served.
type Fetching struct {
	Recoveries int       `json:"recoveries"` // that are fetched ahead of now
	Files      int64     `json:"files"`      // asked for, since the start
	Ahead      int64     `json:"ahead"`      // of these, had been fetched before
	Absent     int64     `json:"absent"`     // of these, were not archived
	Failures   int64     `json:"failures"`
	Last       string    `json:"last,omitempty"`
	LastAt     time.Time `json:"last_at,omitzero"`
	Failure    *Failure  `json:"last_failure,omitempty"`
}

// JobState is a job that is done by schedule.
type JobState struct {
	Name    string    `json:"name"`
	Running bool      `json:"running"`
	Next    time.Time `json:"next,omitzero"`
	Began   time.Time `json:"began,omitzero"`    // the last run, or this one
	Ended   time.Time `json:"ended,omitzero"`    // the last run
	Failure *Failure  `json:"failure,omitempty"` // of the last run
}

func (a *agent) report() Running {
	now := a.d.Now()
	r := Running{PID: os.Getpid(), User: os.Geteuid(), Version: a.o.Version, Started: a.started, DataDir: a.o.DataDir}
	r.Push = a.pusher.report(now)
	r.Fetch = a.fetcher.report()
	r.Jobs = a.jobs.report()
	return r
}

func (p *pusher) report(now time.Time) Pushing {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.stats
	return Pushing{
		Ready: s.ready, InFlight: len(p.jobs) - len(p.asked),
		Files: s.files, Bytes: s.raw, Stored: s.stored, Failures: s.failures, PerSecond: s.recent.rate(now),
		Last: s.last, LastAt: s.lastAt,
		Failing: p.pause != 0 || len(p.failed) > 0 || s.lookErr != "", Failure: s.lastFailure,
	}
}

func (f *fetcher) report() Fetching {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.stats
	return Fetching{
		Recoveries: len(f.open), Files: s.asked, Ahead: s.ahead, Absent: s.absent, Failures: s.failures,
		Last: s.last, LastAt: s.lastAt, Failure: s.lastFailure,
	}
}

func (s *scheduler) report() []JobState {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]JobState, len(s.jobs))
	for i, j := range s.jobs {
		states[i] = JobState{Name: j.name, Running: j.running, Next: j.nextRun(), Began: j.began, Ended: j.ended, Failure: j.failure}
	}
	return states
}
