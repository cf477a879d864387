package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const (
	day  = 24 * time.Hour
	week = 7 * day
)

// Duration is a length of time as the file writes it: whole numbers with units, as in 60s, 1h30m, 14d or 2w.
// A day is 24 hours. There are no months and no years, because they have no fixed length.
type Duration time.Duration

// units, longest first, which is the order they are written in.
var units = []struct {
	name string
	size time.Duration
}{{"w", week}, {"d", day}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}}

const durationForm = "a whole number and a unit (ms, s, m, h, d, w), as in 60s, 1h30m or 14d"

// ParseDuration reads what String writes, and also weeks. A number without a unit is an error, because guessing
// seconds where days were meant would shorten what is kept.
func ParseDuration(s string) (Duration, error) {
	if s == "" {
		return 0, fmt.Errorf("empty, but must be %s", durationForm)
	}
	var total time.Duration
	next := 0 // in units: each may occur once, in descending order
	for rest := s; rest != ""; {
		n := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		if n == 0 {
			return 0, fmt.Errorf("%q is not a length of time: it must be %s", s, durationForm)
		}
		number, err := strconv.ParseInt(rest[:n], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is too long a time", s)
		}
		rest = rest[n:]
		u := len(rest)
		if i := strings.IndexAny(rest, "0123456789"); i >= 0 {
			u = i
		}
		if u == 0 {
			return 0, fmt.Errorf("%q has no unit: it must be %s", s, durationForm)
		}
		i := next
		for i < len(units) && units[i].name != rest[:u] {
			i++
		}
		if i == len(units) {
			return 0, fmt.Errorf("%q is not a length of time: it must be %s, with longer units first", s, durationForm)
		}
		size := units[i].size
		if number > int64((math.MaxInt64-total)/size) {
			return 0, fmt.Errorf("%q is too long a time", s)
		}
		total += time.Duration(number) * size
		next, rest = i+1, rest[u:]
	}
	return Duration(total), nil
}

// String writes d with the fewest units from days down, as in 14d or 1h30m.
func (d Duration) String() string {
	if d <= 0 {
		return "0s"
	}
	var b strings.Builder
	rest := time.Duration(d)
	for _, u := range units[1:] {
		if n := rest / u.size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			rest -= n * u.size
		}
	}
	return b.String()
}

// MarshalText is String, for encoders.
func (d Duration) MarshalText() ([]byte, error) {
	if d < 0 || time.Duration(d)%time.Millisecond != 0 {
		return nil, errors.New("a duration that the file cannot express")
	}
	return []byte(d.String()), nil
}

// UnmarshalText is ParseDuration, for decoders.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := ParseDuration(string(text))
	if err != nil {
		return err
	}
	*d = v
	return nil
}
