package recovery

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"pitr/basebackup"
	"pitr/internal/postgres"
	"pitr/internal/wal"
)

// need is a setting of which a server that recovers with sessions let in must not have less than the one whose WAL it
// replays had: it would pause recovery, and until version 13 end (CheckRequiredParameterValues in
// src/backend/access/transam/xlogrecovery.c).
type need struct {
	name   string
	backup int     // what the server had when the backup was taken
	value  int     // the greatest up to the target
	at     wal.LSN // where that was logged; 0: it is the backup's
}

// parametersNeeded are those of the plan.
func (p *Plan) parametersNeeded() []need {
	b := p.Backup.Settings
	needs := []need{
		{name: "max_connections", backup: b.MaxConnections},
		{name: "max_worker_processes", backup: b.MaxWorkerProcesses},
		{name: "max_wal_senders", backup: b.MaxWALSenders},
		{name: "max_prepared_transactions", backup: b.MaxPreparedXacts},
		{name: "max_locks_per_transaction", backup: b.MaxLocksPerXact},
	}
	for i := range needs {
		needs[i].value = needs[i].backup
	}
	for _, x := range p.parameters {
		for i, value := range []int32{x.MaxConnections, x.MaxWorkerProcesses, x.MaxWALSenders, x.MaxPreparedXacts, x.MaxLocksPerXact} {
			if n := &needs[i]; int(value) > n.value {
				n.value, n.at = int(value), x.Start
			}
		}
	}
	return needs
}

// parametersRaised are those that the WAL raises above what the restored configuration says. One outside of the data
// directory is not restored; what it says is known only when the server's program has read it (raiseParameters).
func (p *Plan) parametersRaised() []need {
	if p.Destination.InPlace && p.config.config != "" {
		return nil
	}
	return slices.DeleteFunc(p.parametersNeeded(), func(n need) bool { return n.value <= n.backup })
}

// judgeParameters notes what settings makes of them.
func (p *Plan) judgeParameters() {
	for _, n := range p.parametersRaised() {
		p.obstacle(false, "after the recovery it may be changed", "%s becomes %d in %s: the backup's is %d, and the server was given more before the target (at %s)",
			n.name, n.value, postgres.AutoConf, n.backup, n.at)
	}
}

// raiseParameters compares what is in force with what recovery needs: files may have been changed without being in force when
// they were backed up, those outside of the directory since, and some of it may have stood on the command line.
//
// That it can't be found out is no error: starting the server will tell.
func (r *restorer) raiseParameters(ctx context.Context) error {
	var raised []postgres.Setting
	for _, n := range r.p.parametersNeeded() {
		text, err := r.inForce(ctx, n.name)
		value := 0
		if err == nil {
			value, err = strconv.Atoi(text)
		}
		if err != nil {
			r.warn("whether the settings are enough for the recovery can't be told: %v", err)
			break
		}
		if value < n.value {
			raised = append(raised, postgres.Setting{Name: n.name, Value: strconv.Itoa(n.value)})
			r.warn("%s, which the configuration sets to %d, is raised to %d in %s: the recovery needs it", n.name, value, n.value, postgres.AutoConf)
		}
	}
	if len(raised) == 0 {
		return nil
	}
	return postgres.EditAutoConf(r.dir, nil, raised)
}

// inForce asks the server's program for the value of a setting by the files that are in place.
func (r *restorer) inForce(ctx context.Context, name string) (string, error) {
	bin, err := r.programs(ctx, r.p.Backup.ServerVersion/10000)
	if err != nil {
		return "", err
	}
	acct, err := postgres.AccountOf(r.dir)
	if err != nil {
		return "", err
	}
	args := append([]string{"-C", name, "-D", r.dir}, r.p.ServerOptions()...)
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), args...)
	cmd.Dir = r.dir
	if err := acct.RunAs(cmd); err != nil {
		return "", err
	}
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("read the restored configuration: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return strings.TrimRight(out.String(), "\r\n"), nil
}

// configPlaces are where the server that was backed up had configuration files outside of its data directory.
type configPlaces struct {
	config, hba, ident string
	linked             [3]bool // the data directory has a link of the usual name instead, in this order
}

// note takes an entry of a manifest into account.
func (c *configPlaces) note(e *basebackup.Entry) {
	for i, x := range []struct {
		setting, file string
		place         *string
	}{{"config_file", "postgresql.conf", &c.config}, {"hba_file", "pg_hba.conf", &c.hba}, {"ident_file", "pg_ident.conf", &c.ident}} {
		switch {
		case e.Type == basebackup.External && e.Name == x.setting:
			*x.place = e.Path
		case e.Type == basebackup.Symlink && e.Path == x.file:
			c.linked[i] = true
		}
	}
}

// ServerOptions are the arguments that the server has to be started with to find its configuration. A copy beside has it in
// its own directory; so has a server in place whose directory has links to it.
func (p *Plan) ServerOptions() []string {
	if !p.Destination.InPlace {
		return nil
	}
	var options []string
	add := func(name, value string) { options = append(options, "-c", name+"="+value) }
	c := p.config
	if c.config != "" && !c.linked[0] {
		add("config_file", c.config)
		add("data_directory", p.Layout.Dir) // it may name another one, where the server would go
	}
	if c.hba != "" && !c.linked[1] {
		add("hba_file", c.hba)
	}
	if c.ident != "" && !c.linked[2] {
		add("ident_file", c.ident)
	}
	return options
}
