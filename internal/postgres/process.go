package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// StartConfig says how to start a server.
type StartConfig struct {
	BinDir  string   // holds postgres
	DataDir string   // absolute
	Options []string // more arguments for postgres, such as "-c", "port=5433"
	// LogFile takes what the server writes to its standard output and error, appended. It is made with mode 0600 and
	// belongs to the server's user. Where the server's logging collector is on, only the first lines go there.
	LogFile string
	Env     []string // as in exec.Cmd; nil: this process's environment
	User    string   // the operating system user that root becomes; empty: the owner of DataDir
	// Recovering makes it enough that the server recovers and will not accept connections before the end of that
	// (hot_standby = off). A standby never comes to that end.
	Recovering bool
}

// StopMode is how a server is asked to stop (src/backend/postmaster/postmaster.c).
type StopMode int

const (
	// Fast rolls back what is under way, writes a checkpoint and stops.
	Fast StopMode = iota
	// Smart lets sessions end by themselves first.
	Smart
	// Immediate stops as a crash would, so that the next start begins with recovery.
	Immediate
)

func (m StopMode) signal() syscall.Signal {
	switch m {
	case Smart:
		return syscall.SIGTERM
	case Immediate:
		return syscall.SIGQUIT
	}
	return syscall.SIGINT
}

// String is pg_ctl's word for the mode.
func (m StopMode) String() string {
	switch m {
	case Smart:
		return "smart"
	case Immediate:
		return "immediate"
	}
	return "fast"
}

// ExitError says that a server ended by itself.
type ExitError struct {
	// Code is the exit status, -1 after a signal. 0 is an orderly shutdown, as by recovery_target_action = shutdown.
	Code   int
	Signal syscall.Signal // 0: none
	Log    string         // the last lines that the server logged, without a line feed at the end
}

func (e *ExitError) Error() string {
	text := fmt.Sprintf("server exited with status %d", e.Code)
	if e.Signal != 0 {
		text = fmt.Sprintf("server was killed by signal %d (%s)", int(e.Signal), e.Signal)
	}
	if e.Log != "" {
		text += "; its last words:\n" + e.Log
	}
	return text
}

// Process is a server that this process started. All methods may be called by several goroutines at once.
//
// The server runs in a session of its own: it gets no terminal signals and outlives this process unless stopped. Until
// then one goroutine waits for its end.
type Process struct {
	os   *os.Process
	done chan struct{} // closed when the server has ended and exit is set
	exit *ExitError
}

// Start starts the server and returns when it accepts connections; in archive recovery with hot_standby on that is when
// it has become consistent, with hot_standby off when recovery has ended, unless c.Recovering. If the server ends before, the error is an
// *ExitError. If ctx ends before, the server is stopped again. A server that serves the directory already makes it fail,
// as PostgreSQL itself sees to.
func Start(ctx context.Context, c StartConfig) (*Process, error) {
	acct, err := AccountOf(c.DataDir)
	if err == nil && c.User != "" {
		acct, err = LookupAccount(c.User)
	}
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	log, err := openLog(c.LogFile, acct)
	if err != nil {
		return nil, fmt.Errorf("start server: open its log: %w", err)
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("start server: open its log: %w", err)
	}
	cmd := exec.Command(filepath.Join(c.BinDir, "postgres"), append([]string{"-D", c.DataDir}, c.Options...)...)
	cmd.Dir = c.DataDir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = c.Env
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	// A server that finds systemd's socket would report its own readiness as that of pitr's unit.
	cmd.Env = without(cmd.Env, "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := acct.RunAs(cmd); err != nil {
		return nil, fmt.Errorf("start server on %s: %w", c.DataDir, err)
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start server on %s: %w", c.DataDir, err)
	}
	p := &Process{os: cmd.Process, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		// Its output goes to a file, so that nothing but waiting can fail here, and how it ended is in ProcessState.
		cmd.Wait()
		code := cmd.ProcessState.ExitCode()
		lag := collectorLag
		if code == 0 {
			lag = 0
		}
		p.exit = &ExitError{Code: code, Log: lastWords(c, from, began, lag)}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			p.exit.Signal = ws.Signal()
		}
	}()
	if err := p.awaitReady(ctx, c); err != nil {
		return nil, fmt.Errorf("start server on %s: %w", c.DataDir, err)
	}
	return p, nil
}

// awaitReady returns when the server's postmaster.pid says that it has come as far as c wants: "ready" means that it
// accepts connections, hot standby included, "standby" that it won't before the end of recovery
// (src/backend/postmaster/postmaster.c).
func (p *Process) awaitReady(ctx context.Context, c StartConfig) error {
	// pg_ctl looks ten times a second; a server mostly needs less than that.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			return p.exit
		case <-ctx.Done():
			if err := p.stopForSure(); err != nil {
				return errors.Join(ctx.Err(), err)
			}
			return ctx.Err()
		case <-tick.C:
		}
		post, err := ReadPostmaster(c.DataDir)
		if err == nil && post.PID == p.os.Pid && (post.Status == "ready" || post.Status == "standby" && c.Recovering) {
			return nil
		}
	}
}

// stopForSure ends a server that nobody waits for any longer, step by step less politely.
func (p *Process) stopForSure() error {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
		if err := p.signal(sig); err != nil {
			return err
		}
		select {
		case <-p.done:
			return nil
		case <-time.After(10 * time.Second):
		}
	}
	return fmt.Errorf("stop server with process id %d: still there 10 s after SIGKILL", p.os.Pid)
}

// PID is the postmaster's process id.
func (p *Process) PID() int { return p.os.Pid }

// Done is closed when the server has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns how the server ended, once it has, or ctx's error.
func (p *Process) Wait(ctx context.Context) (*ExitError, error) {
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Stop asks the server to stop and waits until it has. One that has ended already is fine. If ctx ends before, the server
// is still stopping, and Stop may be called again, with a harder mode too.
func (p *Process) Stop(ctx context.Context, mode StopMode) error {
	if err := p.signal(mode.signal()); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop server with process id %d (%s): %w", p.os.Pid, mode, ctx.Err())
	}
}

// signal sends sig to the postmaster unless that has ended.
func (p *Process) signal(sig syscall.Signal) error {
	if err := p.os.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal server with process id %d: %w", p.os.Pid, err)
	}
	return nil
}

func openLog(path string, acct Account) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return f, nil
	}
	// Only an ordinary file is given away: the log may be a device.
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		err = f.Chown(int(acct.UID), int(acct.GID))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lastLines is how many lines of a failed server's log an error carries.
const lastLines = 15

// collectorLag is how long a server that ended is waited for to have said why. Its logging collector outlives it a little.
const collectorLag = time.Second

// lastWords returns the end of what a server logged since it began: in its log file from offset from on, and, where the
// logging collector took over, in the newest file named by current_logfiles, for whose last line it waits as long as lag.
func lastWords(c StartConfig, from int64, began time.Time, lag time.Duration) string {
	for end := time.Now().Add(lag); ; time.Sleep(20 * time.Millisecond) {
		words := strings.Join(logged(c, from, began, lastLines), "\n")
		_, collected := collectorLog(c.DataDir, began)
		// In some languages it is said otherwise: then the time passes.
		if !collected || strings.Contains(words, "FATAL:") || strings.Contains(words, "PANIC:") || time.Now().After(end) {
			return words
		}
	}
}

// LastLogged returns the last lines, at most n of them, that a server has logged which was started with this LogFile: there,
// and where its logging collector writes as text, if it has written since the given time. It is for messages and for what
// nothing but the log tells: what can't be read is left out.
func LastLogged(dataDir, logFile string, since time.Time, n int) []string {
	return logged(StartConfig{DataDir: dataDir, LogFile: logFile}, 0, since, n)
}

func logged(c StartConfig, from int64, since time.Time, n int) []string {
	words := tail(c.LogFile, from, n)
	if path, ok := collectorLog(c.DataDir, since); ok {
		words = append(words, tail(path, 0, n)...)
	}
	return words[max(0, len(words)-n):]
}

// collectorLog returns the file that the logging collector writes as text, if it has written since the given time.
func collectorLog(dataDir string, since time.Time) (string, bool) {
	data, err := os.ReadFile(filepath.Join(dataDir, "current_logfiles"))
	if err != nil {
		return "", false
	}
	for _, line := range strings.Split(string(data), "\n") {
		kind, path, _ := strings.Cut(line, " ")
		if kind != "stderr" && kind != "csvlog" {
			continue
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(dataDir, path)
		}
		// File times are coarser than the clock.
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.ModTime().After(since.Add(-time.Second)) {
			return path, true
		}
	}
	return "", false
}

// tail returns the last lines, at most n of them and at most 1 KiB for each, of the file at path that begin at offset from
// or later. It is for messages: what can't be read is left out.
func tail(path string, from int64, n int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Mode()&fs.ModeType != 0 {
		return nil
	}
	begin := max(from, info.Size()-int64(n)<<10)
	buf := make([]byte, max(0, info.Size()-begin))
	got, _ := f.ReadAt(buf, begin)
	text := strings.TrimRight(string(buf[:got]), "\n")
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	if begin > from && len(lines) > 1 {
		lines = lines[1:] // cut in the middle
	}
	return lines[max(0, len(lines)-n):]
}
