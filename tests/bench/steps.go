package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// step is one thing to measure; run prepares what it needs, untimed, and removes it again.
type step struct {
	name string
	run  func(round int) (measure, error)
}

func (l *lab) steps() []step {
	return []step{
		{stepZstd, l.zstd},
		{stepPitr1, func(round int) (measure, error) { return l.pitrBackup(round, 1) }},
		{stepRest1, func(round int) (measure, error) { return l.restBackup(round, 1) }},
		{stepPitr3, func(round int) (measure, error) { return l.pitrBackup(round, 3) }},
		{stepRest3, func(round int) (measure, error) { return l.restBackup(round, 3) }},
		{stepRestore, l.pitrRestore},
		{stepRestoreR, l.restRestore},
		{stepDrain, l.pitrDrain},
		{stepHook, l.pitrHook},
		{stepDrainRest, l.restDrain},
	}
}

// timed measures f on the whole machine.
func (l *lab) timed(f func() (measure, error)) (measure, error) {
	if err := l.warm(); err != nil {
		return measure{}, err
	}
	cpu, began := machineCPU(), time.Now()
	m, err := f()
	if m.wall == 0 {
		m.wall = time.Since(began)
	}
	m.cpu = machineCPU() - cpu
	return m, err
}

// warm touches as much free memory as a step may need. A virtual machine gives free memory back to its host, and the first
// touch afterwards costs several times as much as writing to it: without this, whoever comes first pays for all.
func (l *lab) warm() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("ask for free memory: %w", err)
	}
	size := min(int64(l.o.megabytes)<<20*5/4, int64(info.Freeram)*int64(info.Unit)*3/4)
	if size <= 0 {
		return nil
	}
	mem, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("touch free memory: %w", err)
	}
	if err := unix.Munmap(mem); err != nil {
		return err
	}
	// A program's peak memory is at least that of the process that starts it, unless that forgets its own (proc(5)).
	return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// timedRun measures a program; the peak is its own.
func (l *lab) timedRun(name string, args ...string) (measure, error) {
	return l.timed(func() (m measure, err error) {
		c := l.command(name, args...)
		var out bytes.Buffer
		c.Stdout, c.Stderr = &out, &out
		if err := c.Run(); err != nil {
			return m, fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out.String())
		}
		m.peak = c.ProcessState.SysUsage().(*syscall.Rusage).Maxrss * 1024
		return m, nil
	})
}

// machineCPU is the time that all processors together were not idle, in steps of 10 ms.
func machineCPU() time.Duration {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	var ticks int64
	for i, f := range strings.Fields(line)[1:] {
		if n, err := strconv.ParseInt(f, 10, 64); err == nil && i != 3 && i != 4 && i < 8 { // idle, iowait
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func (l *lab) zstd(int) (measure, error) {
	m, err := l.timedRun("bash", "-c", "set -o pipefail; find data/base data/global -type f -print0 | sort -z | xargs -0 cat | zstd -q -1 -T2 -c > /dev/null")
	m.peak = 0
	return m, err
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

// fresh makes an empty directory that the server's user owns.
func (l *lab) fresh(name string) (string, error) {
	dir := l.path(name)
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if _, err := l.run("mkdir", "-m", "700", dir); err != nil {
		return "", err
	}
	return dir, nil
}

// archiveWith sets the server's archive_command; empty stops archiving.
func (l *lab) archiveWith(command string) error {
	_, err := l.sql("ALTER SYSTEM SET archive_command = '"+strings.ReplaceAll(command, "'", "''")+"'", "SELECT pg_reload_conf()")
	return err
}

// pitrConfig writes the configuration for a fresh repository and starts its agent.
func (l *lab) pitrConfig(level int) (string, error) {
	l.stopAgent()
	for _, name := range []string{"pitr-repo", "pitr-service"} {
		if _, err := l.fresh(name); err != nil {
			return "", err
		}
	}
	path := l.path("pitr.yaml")
	text := fmt.Sprintf("postgres: {data_dir: %s, host: %s, port: %s}\nstorage: {url: 'file://%s'}\nservice: {dir: %s}\nbackup: {workers: 2, level: %d, schedule: ''}\narchive: {workers: 2}\n",
		l.data, l.dir, port, l.path("pitr-repo"), l.path("pitr-service"), level)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return "", err
	}
	log, err := os.Create(l.path("agent.log"))
	if err != nil {
		return "", err
	}
	defer log.Close()
	agent := l.command(l.pitr, "--config", path, "agent")
	agent.Stdout, agent.Stderr = log, log
	if err := agent.Start(); err != nil {
		return "", err
	}
	l.agent = agent
	return path, l.wait(10*time.Second, "the agent's socket", func() bool {
		_, err := os.Stat(filepath.Join(l.path("pitr-service"), "agent.sock"))
		return err == nil
	})
}

func (l *lab) stopAgent() {
	if l.agent != nil {
		l.agent.Process.Signal(syscall.SIGTERM)
		l.agent.Wait()
		l.agent = nil
	}
}

// agentPeak is the most memory that the running agent held.
func (l *lab) agentPeak() int64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.agent.Process.Pid))
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb * 1024
		}
	}
	return 0
}

func (l *lab) pitrHookCommand(config string) string {
	return l.pitr + " --config " + config + " wal push %p"
}

func (l *lab) pitrBackup(_, level int) (measure, error) {
	config, err := l.pitrConfig(level)
	if err != nil {
		return measure{}, err
	}
	if err := l.archiveWith(l.pitrHookCommand(config)); err != nil {
		return measure{}, err
	}
	m, err := l.timedRun(l.pitr, "--config", config, "--quiet", "backup", "create", "--full")
	if err != nil {
		return m, err
	}
	m.peak += l.agentPeak()
	m.bytes, err = l.withoutWAL()
	return m, err
}

// withoutWAL is what the backup takes in pitr's repository.
func (l *lab) withoutWAL() (int64, error) {
	systems, err := filepath.Glob(filepath.Join(l.path("pitr-repo"), "[0-9]*"))
	if err != nil || len(systems) != 1 {
		return 0, errors.Join(err, fmt.Errorf("%d lineages in the repository, want 1", len(systems)))
	}
	return treeSize(systems[0]) - treeSize(filepath.Join(systems[0], "wal")), nil
}

// restConfig writes pgBackRest's configuration and makes its stanza in a fresh repository.
func (l *lab) restConfig(level int, more string) (string, error) {
	for _, name := range []string{"rest-repo", "rest-spool", "rest-lock", "rest-log"} {
		if _, err := l.fresh(name); err != nil {
			return "", err
		}
	}
	path := l.path("pgbackrest.conf")
	text := fmt.Sprintf(`[global]
repo1-path=%s
spool-path=%s
lock-path=%s
log-path=%s
log-level-file=off
log-level-console=warn
process-max=2
compress-type=zst
compress-level=%d
start-fast=y
repo1-retention-full=1
%s
[bench]
pg1-path=%s
pg1-socket-path=%s
pg1-port=%s
pg1-user=postgres
`, l.path("rest-repo"), l.path("rest-spool"), l.path("rest-lock"), l.path("rest-log"), level, more, l.data, l.dir, port)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return "", err
	}
	_, err := l.run("pgbackrest", "--config="+path, "--stanza=bench", "stanza-create")
	return path, err
}

func restHookCommand(config string) string {
	return "pgbackrest --config=" + config + " --stanza=bench archive-push %p"
}

func (l *lab) restBackup(_, level int) (measure, error) {
	config, err := l.restConfig(level, "")
	if err != nil {
		return measure{}, err
	}
	if err := l.archiveWith(restHookCommand(config)); err != nil {
		return measure{}, err
	}
	m, err := l.timedRun("pgbackrest", "--config="+config, "--stanza=bench", "--type=full", "backup")
	m.peak, m.bytes = 0, treeSize(filepath.Join(l.path("rest-repo"), "backup"))
	return m, err
}

// pitrRestore restores a backup of level 1, made untimed.
func (l *lab) pitrRestore(round int) (measure, error) {
	if _, err := l.pitrBackup(round, 1); err != nil {
		return measure{}, err
	}
	to := l.path("restored")
	if err := os.RemoveAll(to); err != nil {
		return measure{}, err
	}
	defer os.RemoveAll(to)
	m, err := l.timedRun(l.pitr, "--config", l.path("pitr.yaml"), "--quiet", "restore", "--to", to)
	m.bytes = treeSize(to)
	return m, err
}

func (l *lab) restRestore(round int) (measure, error) {
	if _, err := l.restBackup(round, 1); err != nil {
		return measure{}, err
	}
	to, err := l.fresh("restored")
	if err != nil {
		return measure{}, err
	}
	defer os.RemoveAll(to)
	m, err := l.timedRun("pgbackrest", "--config="+l.path("pgbackrest.conf"), "--stanza=bench", "--pg1-path="+to, "restore")
	m.peak, m.bytes = 0, treeSize(to)
	return m, err
}

// drain marks the segments as ready, switches the server's own archiver to the command, and waits
// until it has marked every one as done.
func (l *lab) drain(command string) (measure, error) {
	if err := l.archiveWith(""); err != nil {
		return measure{}, err
	}
	time.Sleep(200 * time.Millisecond) // the archiver has read its settings
	status := filepath.Join(l.data, "pg_wal", "archive_status")
	for _, n := range l.segments {
		if err := os.Rename(filepath.Join(status, n+".done"), filepath.Join(status, n+".ready")); err != nil {
			return measure{}, err
		}
	}
	return l.timed(func() (measure, error) {
		if err := l.archiveWith(command); err != nil {
			return measure{}, err
		}
		return measure{}, l.wait(5*time.Minute, "the segments to be archived", func() bool {
			return !slices.ContainsFunc(l.segments, func(n string) bool {
				_, err := os.Stat(filepath.Join(status, n+".done"))
				return err != nil
			})
		})
	})
}

func (l *lab) pitrDrain(int) (measure, error) {
	config, err := l.pitrConfig(1)
	if err != nil {
		return measure{}, err
	}
	m, err := l.drain(l.pitrHookCommand(config))
	if err != nil {
		return m, err
	}
	m.peak = l.agentPeak()
	systems, err := filepath.Glob(filepath.Join(l.path("pitr-repo"), "[0-9]*"))
	for _, s := range systems {
		m.bytes += treeSize(filepath.Join(s, "wal"))
	}
	return m, err
}

func (l *lab) restDrain(int) (measure, error) {
	config, err := l.restConfig(1, "archive-async=y")
	if err != nil {
		return measure{}, err
	}
	m, err := l.drain(restHookCommand(config))
	if err != nil {
		return m, err
	}
	if err := l.archiveWith(""); err != nil {
		return m, err
	}
	m.bytes = treeSize(filepath.Join(l.path("rest-repo"), "archive"))
	_, err = l.run("pgbackrest", "--config="+config, "--stanza=bench", "stop") // ends its background process
	return m, errors.Join(err, os.RemoveAll(l.path("rest-lock")))
}

// pitrHook times single calls of the hook, started as the server starts them but for the shell,
// for a segment that the agent has stored: the drain before left it running.
func (l *lab) pitrHook(int) (measure, error) {
	segment := filepath.Join("pg_wal", l.segments[len(l.segments)-1])
	var calls []measure
	m, err := l.timed(func() (measure, error) {
		for range l.o.hooks {
			c := exec.CommandContext(l.ctx, l.pitr, "--config", l.path("pitr.yaml"), "wal", "push", segment)
			c.Dir, c.SysProcAttr = l.data, &syscall.SysProcAttr{Credential: l.cred}
			began := time.Now()
			if out, err := c.CombinedOutput(); err != nil {
				return measure{}, fmt.Errorf("hook: %w\n%s", err, out)
			}
			calls = append(calls, measure{wall: time.Since(began)})
		}
		return measure{}, nil
	})
	m.wall = middle(calls, func(m measure) time.Duration { return m.wall })
	return m, err
}
