package recovery

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"pitr/internal/postgres"
)

// The files that make a server begin in recovery.
const (
	recoverySignal = "recovery.signal"
	standbySignal  = "standby.signal"
)

// targetSettings are the ways to name a recovery target. The server takes one of them at most; an empty value is none.
var targetSettings = []string{"recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"}

// obsolete tells which settings in postgresql.auto.conf, left there by an earlier recovery or by whoever cloned the server,
// are taken out of force.
func obsolete(name string, standby bool) bool {
	switch name {
	case "restore_command", "recovery_end_command", "archive_cleanup_command", "promote_trigger_file", "recovery_min_apply_delay":
		return true
	case "primary_conninfo", "primary_slot_name":
		return !standby
	}
	return name == "recovery_target" || strings.HasPrefix(name, "recovery_target_")
}

// settings are what goes to the end of postgresql.auto.conf, the file that the server reads last, and the name of the
// signal file. They don't depend on what stands in the files restored, of which some may not be readable here.
func settings(p *Plan) ([]postgres.Setting, string, error) {
	var s []postgres.Setting
	add := func(name, value string) { s = append(s, postgres.Setting{Name: name, Value: value}) }
	d := p.Destination
	command := postgres.ShellQuote(d.Program)
	if d.Config != "" {
		command += " --config " + postgres.ShellQuote(d.Config)
	}
	add("restore_command", command+" wal fetch %f %p")
	add("recovery_end_command", "")
	add("archive_cleanup_command", "")
	timeline := strconv.FormatUint(uint64(p.Timeline), 10)
	if t := p.Target.Timeline; p.following() && t.Number == 0 && t.Word != TimelineCurrent {
		timeline = TimelineLatest // it follows a promotion, too
	}
	add("recovery_target_timeline", timeline)
	if !d.Standby {
		add("recovery_min_apply_delay", "0") // a standby's, that a recovery would mind as well
	}

	name, value := "recovery_target_lsn", p.Stop.LSN.String()
	switch {
	case p.following():
		name = "" // it goes on following
	case p.Target.Kind == Immediate:
		name, value = "recovery_target", "immediate"
	}
	// First what may stand in another file, since the server refuses two targets while it reads them.
	for _, other := range targetSettings {
		if other != name {
			add(other, "")
		}
	}
	if name != "" {
		add(name, value)
		add("recovery_target_inclusive", onOff(p.Stop.Inclusive))
		add("recovery_target_action", string(p.Target.Action))
	}
	if name != "" && p.Target.Action == Pause || d.Standby && d.Start {
		add("hot_standby", "on") // without it the server shuts down instead, and a standby never can be asked
	}
	for _, x := range p.parametersRaised() {
		add(x.name, strconv.Itoa(x.value))
	}
	signal := recoverySignal
	if d.Standby {
		signal = standbySignal
	}
	if !d.Archive {
		add("archive_mode", "off")
	}
	if !d.InPlace {
		s = append(s, outside(p)...)
	}
	for _, x := range s {
		if _, err := postgres.QuoteConf(x.Value); err != nil {
			return nil, "", fmt.Errorf("setting %s: %w", x.Name, err)
		}
	}
	return s, signal, nil
}

// outside are the settings that keep a server beside another one from touching that one's files, and a scratch copy from
// touching anything else outside of its directory: it is not to stand in its parent's place on the network, nor to want
// files for that.
func outside(p *Plan) []postgres.Setting {
	var s []postgres.Setting
	add := func(name, value string) { s = append(s, postgres.Setting{Name: name, Value: value}) }
	d := p.Destination
	add("external_pid_file", "pitr_external.pid") // an empty name would make the server complain
	if p.Backup.ServerVersion < 150000 {
		add("stats_temp_directory", "pg_stat_tmp") // Debian's is elsewhere
	}
	if !d.Scratch() {
		return s
	}
	add("listen_addresses", "")
	add("unix_socket_directories", d.SocketDir)
	add("unix_socket_permissions", "0700")
	add("port", strconv.Itoa(d.Port))
	add("hba_file", filepath.Join(d.Dir, scratchHBA))
	add("ssl", "off")
	add("logging_collector", "off")
	add("log_destination", "stderr")
	add("synchronous_standby_names", "")
	add("max_logical_replication_workers", "0") // no subscription of the parent's is served
	add("huge_pages", "try")                    // the parent may have them all
	return s
}

// scratchHBA is the access file of a scratch copy, whose socket only its own user can reach.
const scratchHBA = "pitr_scratch_hba.conf"

const scratchHBAText = "# written by pitr for a scratch copy: the socket's directory lets only the server's own user in\nlocal all all trust\nlocal replication all trust\n"

// jobLibraries run jobs by themselves, which a scratch copy must not: those jobs write elsewhere, send mail, or work twice.
var jobLibraries = []string{"pg_cron", "pg_partman_bgw", "pg_squeeze", "pglogical", "pg_timetable", "bdr", "spock", "pgagent", "powa"}

// withoutJobs takes the job libraries from a value of shared_preload_libraries. All others stay: redo may need them.
func withoutJobs(value string) (kept string, dropped []string) {
	var names []string
	for _, name := range splitList(value) {
		base := strings.TrimSuffix(filepath.Base(name), ".so")
		if slices.Contains(jobLibraries, base) {
			dropped = append(dropped, name)
			continue
		}
		names = append(names, quoteListItem(name))
	}
	return strings.Join(names, ", "), dropped
}

// splitList takes a list of file names apart as the server does: separated by commas, in double quotes where they hold
// odd characters (SplitDirectoriesString in src/backend/utils/adt/varlena.c).
func splitList(value string) []string {
	var out []string
	for value = strings.TrimSpace(value); value != ""; {
		var item string
		if value[0] == '"' {
			var b strings.Builder
			i := 1
			for ; i < len(value); i++ {
				if value[i] == '"' {
					if i+1 < len(value) && value[i+1] == '"' {
						i++
					} else {
						break
					}
				}
				b.WriteByte(value[i])
			}
			item = b.String()
			value = value[min(i+1, len(value)):]
			if _, rest, ok := strings.Cut(value, ","); ok {
				value = rest
			} else {
				value = ""
			}
		} else {
			item, value, _ = strings.Cut(value, ",")
			item = strings.TrimSpace(item)
		}
		if item != "" {
			out = append(out, item)
		}
		value = strings.TrimSpace(value)
	}
	return out
}

func quoteListItem(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
