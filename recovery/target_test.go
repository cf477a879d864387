package recovery

import (
	"strings"
	"testing"
	"time"
)

func TestParseTime(t *testing.T) {
	utc := func(y int, m time.Month, d, h, mi, s, us int) time.Time {
		return time.Date(y, m, d, h, mi, s, us*1000, time.UTC)
	}
	for in, want := range map[string]struct {
		at   time.Time
		text string
	}{
		"2026-11-22T14:03:05Z":               {utc(2026, 11, 22, 14, 3, 5, 0), "2026-11-22T14:03:05Z"},
		"2026-11-22 14:03:05":                {utc(2026, 11, 22, 14, 3, 5, 0), "2026-11-22T14:03:05Z"},
		"2026-11-22 14:03":                   {utc(2026, 11, 22, 14, 3, 0, 0), "2026-11-22T14:03:00Z"},
		" 2026-11-22 14:03:05.1 ":            {utc(2026, 11, 22, 14, 3, 5, 100000), "2026-11-22T14:03:05.1Z"},
		"2026-11-22 14:03:05.123456+01":      {utc(2026, 11, 22, 13, 3, 5, 123456), "2026-11-22T14:03:05.123456+01:00"},
		"2026-11-22T14:03:05.123456000+0530": {utc(2026, 11, 22, 8, 33, 5, 123456), "2026-11-22T14:03:05.123456+05:30"},
		"2026-11-22 14:03:05 -03:30":         {utc(2026, 11, 22, 17, 33, 5, 0), "2026-11-22T14:03:05-03:30"},
		"2026-11-22 14:03:05 UTC":            {utc(2026, 11, 22, 14, 3, 5, 0), "2026-11-22T14:03:05Z"},
		"2026-11-22 14:03:05+00":             {utc(2026, 11, 22, 14, 3, 5, 0), "2026-11-22T14:03:05Z"},
		"1999-12-31 23:59:59.999999-15:59":   {utc(2000, 1, 1, 15, 58, 59, 999999), "1999-12-31T23:59:59.999999-15:59"},
	} {
		got, err := ParseTime(in)
		if err != nil || !got.Equal(want.at) || formatTime(got) != want.text {
			t.Errorf("%q: %s (%v), want %s", in, formatTime(got), err, want.text)
		}
	}
	for in, want := range map[string]string{
		"":                                "is not a time",
		"now":                             "is not a time",
		"2026-11-22":                      "is not a time",
		"22.11.2026 14:03":                "is not a time",
		"2026-11-22 14:03:05 CET":         "is not a time",
		"2026-11-22 14:03:05.1234567":     "more than six digits",
		"2026-02-30 00:00:00":             "no such date",
		"2026-11-22 24:00:00":             "no such date",
		"2026-11-22 23:59:60":             "no such date",
		"2026-11-22 23:59:59+16":          "no zone is that far",
		"2026-11-22 23:59:59+01; DROP":    "is not a time",
		"2026-11-22T14:03:05.123456789+1": "is not a time",
	} {
		if got, err := ParseTime(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want an error with %q", in, got, err, want)
		}
	}
}

func TestParseTarget(t *testing.T) {
	s := func(v string) *string { return &v }
	for name, c := range map[string]struct {
		flags Flags
		want  string // of the target, or of the error
		fails bool
	}{
		"nothing":         {Flags{}, "the end of the archive", false},
		"time":            {Flags{Time: s("2026-11-22 14:03"), Exclusive: true}, "time 2026-11-22T14:03:00Z, exclusive", false},
		"lsn":             {Flags{LSN: s("16/b374D848")}, "WAL position 16/B374D848", false},
		"xid":             {Flags{XID: s("4294967299")}, "transaction 3", false},
		"name":            {Flags{Name: s("it's \"odd\"\n")}, `restore point "it's \"odd\"\n"`, false},
		"immediate":       {Flags{Immediate: true}, "the end of the backup", false},
		"two":             {Flags{XID: s("5"), Immediate: true}, "more than one target: give one of --target-time, --target-lsn, --target-xid, --target-name and --target-immediate", true},
		"exclusive name":  {Flags{Name: s("a"), Exclusive: true}, "--exclusive goes with --target-time, --target-lsn and --target-xid only", true},
		"exclusive end":   {Flags{Exclusive: true}, "--exclusive goes with --target-time, --target-lsn and --target-xid only", true},
		"exclusive imm.":  {Flags{Immediate: true, Exclusive: true}, "--exclusive goes with --target-time, --target-lsn and --target-xid only", true},
		"empty name":      {Flags{Name: s("")}, "--target-name: a restore point has a name", true},
		"long name":       {Flags{Name: s(strings.Repeat("x", 64))}, `--target-name: "` + strings.Repeat("x", 64) + `" is too long: a restore point's name has at most 63 bytes`, true},
		"special xid":     {Flags{XID: s("2")}, "--target-xid: 2 is not the number of any ordinary transaction", true},
		"wrong xid":       {Flags{XID: s("-5")}, `--target-xid: "-5" is not a transaction's number`, true},
		"wrong lsn":       {Flags{LSN: s("16")}, `--target-lsn: invalid WAL position "16": want two hexadecimal numbers with a slash between, such as 16/B374D848`, true},
		"hex timeline":    {Flags{Timeline: "0000000A"}, `--target-timeline: "0000000A" is not latest, current or a decimal number from 1 on`, true},
		"timeline 0":      {Flags{Timeline: "0"}, `--target-timeline: "0" is not latest, current or a decimal number from 1 on`, true},
		"unknown action":  {Flags{Action: "stop"}, `--target-action: "stop" is not one of promote, pause and shutdown`, true},
		"timeline number": {Flags{Timeline: "7"}, "the end of the archive", false},
	} {
		got, err := ParseTarget(c.flags)
		text := got.String()
		if err != nil {
			text = err.Error()
		}
		if (err != nil) != c.fails || text != c.want {
			t.Errorf("%s: %s (failed: %v), want %s", name, text, err != nil, c.want)
		}
	}
}

func TestParseMapping(t *testing.T) {
	for in, want := range map[string]Mapping{
		"ts1=/a//b":        {"ts1", "/a/b"},
		`odd\=name=/a=b`:   {"odd=name", "/a=b"},
		"/old/place=/new ": {"/old/place", "/new "},
	} {
		if got, err := ParseMapping(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "ts1", "=/a", "ts1=relative", `ts1\=/a`} {
		if got, err := ParseMapping(in); err == nil {
			t.Errorf("%q: %q, want an error", in, got)
		}
	}
}

func TestPreloadedLibraries(t *testing.T) {
	for in, want := range map[string]string{
		"":                                      "",
		"pg_stat_statements":                    `"pg_stat_statements"`,
		"pg_cron, pg_stat_statements":           `"pg_stat_statements"`,
		`"$libdir/pg_cron.so" , auto_explain`:   `"auto_explain"`,
		`"odd, ""name""",pg_cron`:               `"odd, ""name"""`,
		"timescaledb,pg_partman_bgw,custom_wal": `"timescaledb", "custom_wal"`,
	} {
		if got, _ := withoutJobs(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
