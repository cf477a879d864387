package agent

import (
	"log/slog"
	"time"

	"pitr/internal/hint"
)

// rateOver is the time that rates are of.
const rateOver = time.Minute

// logAgain is how long an error that repeats itself is not logged again.
const logAgain = time.Minute

// Failure is an error that was met, for people to read.
type Failure struct {
	Time time.Time `json:"time"`
	File string    `json:"file,omitempty"`
	Text string    `json:"error"`
	Hint string    `json:"hint,omitempty"`
}

func failureOf(now time.Time, file string, err error) *Failure {
	return &Failure{Time: now, File: file, Text: err.Error(), Hint: hint.Of(err)}
}

// pushStats counts what a pusher does. The pusher's lock guards it.
type pushStats struct {
	files, failures int64
	raw, stored     int64
	last            string
	lastAt          time.Time
	lastFailure     *Failure
	ready           int
	recent          counter

	logged   string // the text that was logged last
	loggedAt time.Time
	lookErr  string
}

func (s *pushStats) succeeded(now time.Time, name string, r pushResult) {
	s.files++
	s.raw += r.raw
	s.stored += r.stored
	s.last, s.lastAt = name, now
	s.recent.add(now)
	s.logged = ""
}

// failed notes a failure and tells whether it is worth a line in the log.
func (s *pushStats) failed(now time.Time, name string, err error) bool {
	s.failures++
	s.lastFailure = failureOf(now, name, err)
	if text := err.Error(); text != s.logged || now.Sub(s.loggedAt) >= logAgain {
		s.logged, s.loggedAt = text, now
		return true
	}
	return false
}

// looked notes how many files are ready, or why it could not or must not be looked; that is logged when it begins and when
// it ends.
func (s *pushStats) looked(now time.Time, ready int, err error, log *slog.Logger) {
	text := ""
	if err != nil {
		text = err.Error()
		s.lastFailure = failureOf(now, "", err)
	} else {
		s.ready = ready
	}
	switch {
	case text == s.lookErr:
	case err != nil:
		log.Error("nothing is archived ahead", "error", err, "hint", hint.Of(err))
	default:
		log.Info("archiving ahead works again")
	}
	s.lookErr = text
}

// counter counts events of the last minute by the second. The zero value is ready.
type counter struct {
	counts [rateOver / time.Second]int
	at     int64 // the second that was counted last
}

func (c *counter) add(now time.Time) {
	c.move(now)
	c.counts[c.at%int64(len(c.counts))]++
}

// rate is the events per second over the last minute.
func (c *counter) rate(now time.Time) float64 {
	c.move(now)
	n := 0
	for _, k := range c.counts {
		n += k
	}
	return float64(n) / rateOver.Seconds()
}

// move forgets what is older than a minute. A clock that went back forgets everything.
func (c *counter) move(now time.Time) {
	second, size := now.Unix(), int64(len(c.counts))
	if second < c.at || second-c.at >= size {
		c.counts = [rateOver / time.Second]int{}
	} else {
		for s := c.at + 1; s <= second; s++ {
			c.counts[s%size] = 0
		}
	}
	c.at = second
}
