package basebackup

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pitr/internal/wal"
)

var expireNow = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// aged makes backups from lines "name timeline days-ago", with positions that rise with time.
func aged(t *testing.T, lines string) []*Header {
	t.Helper()
	var all []*Header
	for line := range strings.SplitSeq(strings.TrimSpace(lines), ";") {
		var name string
		var tli uint32
		var days int
		if _, err := fmt.Sscan(line, &name, &tli, &days); err != nil {
			t.Fatal(err)
		}
		end := expireNow.AddDate(0, 0, -days)
		start := wal.LSN(10000-days) << 24
		all = append(all, &Header{ID: name, Timeline: wal.Timeline(tli), Started: end.Add(-time.Hour), Finished: end, StartLSN: start, StopLSN: start + 1000})
	}
	return all
}

func TestExpire(t *testing.T) {
	day := 24 * time.Hour
	at := func(days int) wal.LSN { return wal.LSN(10000-days)<<24 + 5000 } // after the backup of that day
	fork := wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, At: at(10)}}}
	one := wal.History{Timeline: 1}
	two := []Line{{History: one, WAL: true}, {History: fork, WAL: true}}
	written := []Line{{History: one, WAL: true, Written: expireNow.AddDate(0, 0, -4)}, two[1]}
	lost := []Line{two[0], {History: wal.History{Timeline: 2}, Unknown: true, WAL: true}}
	for name, c := range map[string]struct {
		backups string
		pins    string
		keep    Keep
		lines   []Line
		want    string // those that stay; those alone in parentheses
	}{
		"nothing":                             {"", "", Keep{14 * day, 2}, nil, ""},
		"one, however old":                    {"a 1 900", "", Keep{14 * day, 0}, nil, "a"},
		"the window begins with one":          {"a 1 30; b 1 20; c 1 13; d 1 6; e 1 1", "", Keep{14 * day, 1}, nil, "b c d e"},
		"one that ended as the window begins": {"a 1 30; b 1 14; c 1 1", "", Keep{14 * day, 1}, nil, "b c"},
		"none is within the window":           {"a 1 50; b 1 40; c 1 15", "", Keep{14 * day, 1}, nil, "c"},
		"count beyond the window":             {"a 1 50; b 1 40; c 1 15", "", Keep{14 * day, 2}, nil, "b c"},
		// Either backups have ended, or the clock is ten years ahead.
		"no backup for long":       {"a 1 3650; b 1 3645; c 1 3633; d 1 3630", "", Keep{14 * day, 1}, nil, "b c d"},
		"count alone":              {"a 1 3; b 1 2; c 1 1", "", Keep{0, 2}, nil, "b c"},
		"no rule keeps the newest": {"a 1 3; b 1 2; c 1 1", "", Keep{}, nil, "c"},
		"pinned and old":           {"a 1 90; b 1 40; c 1 15", "a", Keep{14 * day, 1}, nil, "(a) c"},
		"pinned and needed":        {"a 1 90; b 1 20; c 1 5", "b", Keep{14 * day, 1}, nil, "b c"},
		"from the future":          {"a 1 20; b 1 5; c 1 -3", "", Keep{14 * day, 1}, nil, "a b c"},
		// Timeline 2 left 1 ten days ago: a is still where the window begins, and b, on the abandoned end of 1,
		// lies within the window.
		"both sides of a fork": {"a 1 20; b 1 8; c 2 3", "", Keep{14 * day, 1}, two, "a b c"},
		// Timeline 2 has no backup yet: what it left from is all it has.
		"a fork without a backup": {"z 1 60; a 1 12; b 1 8; c 1 3", "", Keep{5 * day, 1}, two, "a b c"},
		// Timeline 2 began its own backups before the window: nothing of timeline 1 is in it.
		"a line left long ago": {"a 1 30; b 1 9; c 2 8; d 2 1", "", Keep{5 * day, 1}, two, "c d"},
		// Timeline 1 went on all the same, as the original does beside a copy that was adopted.
		"a line that goes on":  {"a 1 30; b 1 9; c 2 8; d 2 1", "", Keep{5 * day, 1}, written, "b c d"},
		"a line with a backup": {"a 1 30; c 2 8; b 1 3", "", Keep{5 * day, 1}, []Line{{History: one, WAL: true}, {History: wal.History{Timeline: 2, Switches: []wal.Switch{{Timeline: 1, At: at(20)}}}, WAL: true}}, "a c b"},
		// Where timeline 2 begins is not known, and it has nothing of its own.
		"a lost history":     {"a 1 30; b 1 9; c 1 1", "", Keep{5 * day, 1}, lost, "a b c"},
		"an unknown history": {"a 1 30; c 7 8; d 7 1", "", Keep{5 * day, 1}, nil, "c d"},
		// The newest of all is on timeline 1: the newest on 2 stays as well.
		"the newest is on an old line": {"a 1 30; b 1 9; c 2 8; d 1 1", "", Keep{0, 1}, two, "c d"},
	} {
		t.Run(name, func(t *testing.T) {
			var all []*Header
			if c.backups != "" {
				all = aged(t, c.backups)
			}
			pins := make(map[string]bool)
			for _, p := range strings.Fields(c.pins) {
				pins[p] = true
			}
			verdicts := Expire(all, pins, c.keep, c.lines, expireNow)
			var stay []string
			for i, v := range verdicts {
				if v.ID != all[i].ID || v.Reason == "" {
					t.Errorf("verdict %d: %+v", i, v)
				}
				if v.Keep && v.Alone {
					stay = append(stay, "("+v.ID+")")
				} else if v.Keep {
					stay = append(stay, v.ID)
				}
			}
			if got := strings.Join(stay, " "); got != c.want {
				t.Errorf("stay: %s, want %s\n%+v", got, c.want, verdicts)
			}
			for _, n := range Needs(all, verdicts) {
				if (n.To != 0) != strings.Contains(c.want, "("+strings.TrimPrefix(n.Why, "backup ")+")") {
					t.Errorf("need %+v", n)
				}
			}
		})
	}
}

// TestExpireAfterAWrongClock: a backup that was taken with a clock ten years ahead does not keep all that came after it.
func TestExpireAfterAWrongClock(t *testing.T) {
	all := aged(t, "a 1 40; b 1 30; c 1 20; d 1 10; e 1 1")
	all[1].Finished = all[1].Finished.AddDate(10, 0, 0)
	var stay []string
	for _, v := range Expire(all, nil, Keep{Window: 5 * 24 * time.Hour, Count: 1}, nil, expireNow) {
		if v.Keep {
			stay = append(stay, v.ID)
		}
	}
	// b counts as one of the newest by its word, e by its place.
	if got := strings.Join(stay, " "); got != "b d e" {
		t.Errorf("stay: %s", got)
	}
}

// TestExpireKeepsEveryMoment looks at every hour of the window: the newest backup before it must be one that stays.
func TestExpireKeepsEveryMoment(t *testing.T) {
	for seed := range 200 {
		var lines []string
		days := 40
		for i := 0; days > 0; i++ {
			lines = append(lines, fmt.Sprintf("b%d 1 %d", i, days))
			days -= 1 + (seed*7+i*i*3)%9
		}
		all := aged(t, strings.Join(lines, ";"))
		verdicts := Expire(all, nil, Keep{Window: 14 * 24 * time.Hour, Count: 1}, nil, expireNow)
		for m := expireNow.Add(-14 * 24 * time.Hour); !m.After(expireNow); m = m.Add(time.Hour) {
			best := -1
			for i, h := range all {
				if !h.Finished.After(m) {
					best = i
				}
			}
			if best >= 0 && !verdicts[best].Keep {
				t.Fatalf("%s is gone, which %v is reached from; %+v", all[best].ID, m, verdicts)
			}
		}
	}
}
