package basebackup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"pitr/internal/repo"
	"pitr/internal/wal"
)

// A backup that is being taken shows signs of life, so that nobody deletes its packs: no manifest speaks for them yet.
// The first sign comes before anything else of the backup.

const (
	renewEvery = 5 * time.Minute
	// pendingLife is how long a backup counts as alive after its last sign.
	pendingLife = 24 * time.Hour
	// renewGrace is how long a backup goes on although its signs can't be written.
	renewGrace = pendingLife / 2
)

// Pending is one sign of life of a backup that is being taken.
type Pending struct {
	ID      string    `json:"id"`
	N       int       `json:"n"` // of the sign, from 1
	Host    string    `json:"host"`
	Node    string    `json:"node"`
	PID     int       `json:"pid"`
	Process string    `json:"process"` // tells that process from all others, of other hosts too; empty: unknown
	Started time.Time `json:"started"`
	Renewed time.Time `json:"renewed"`
	Parent  string    `json:"parent,omitempty"`
	// Where the backup begins, once the server has said so: the WAL from there on stays. 0: not yet known.
	Timeline wal.Timeline `json:"timeline,omitempty"`
	StartLSN wal.LSN      `json:"start_lsn,omitempty"`
}

// renewer writes signs of life.
type renewer struct {
	repo *repo.Repo
	now  func() time.Time
	log  *slog.Logger

	mu   sync.Mutex
	sign Pending // the last one
}

// began writes a sign that says where the backup begins.
func (p *renewer) began(ctx context.Context, tli wal.Timeline, start wal.LSN) error {
	p.mu.Lock()
	p.sign.Timeline, p.sign.StartLSN = tli, start
	p.mu.Unlock()
	return p.renew(ctx)
}

// renew writes the next sign.
func (p *renewer) renew(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := p.sign
	next.N++
	next.Renewed = p.now().UTC()
	if err := p.repo.PutDocument(ctx, repo.PendingKey(next.ID, next.N), next); err != nil {
		return fmt.Errorf("say that backup %s is being taken: %w", next.ID, err)
	}
	p.sign = next
	return nil
}

// run renews until ctx ends. It fails when others may soon take the backup for dead.
func (p *renewer) run(ctx context.Context) error {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := p.renew(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
		case p.silence() > renewGrace:
			return err
		default:
			p.log.Warn("will be tried again", "error", err)
		}
	}
}

// silence is how long ago the last sign was written.
func (p *renewer) silence() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now().Sub(p.sign.Renewed)
}

// remove takes the signs back.
func (p *renewer) remove(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var keys []string
	for n := 1; n <= p.sign.N; n++ {
		keys = append(keys, repo.PendingKey(p.sign.ID, n))
	}
	return p.repo.Delete(ctx, keys...)
}

// alive tells whether the backup may still be being taken. stored is when the store says that the sign was written: the
// later of the two times counts, should a clock be wrong.
func (p *Pending) alive(now, stored time.Time) bool {
	if me := processName(os.Getpid()); me != "" && sameMachine(me, p.Process) && processName(p.PID) != p.Process {
		return false
	}
	last := p.Renewed
	if stored.After(last) {
		last = stored
	}
	return now.Sub(last) < pendingLife
}

// processName names a process of this machine so that no other ever has the same name: by the kernel's run, the PID
// namespace, the id and the time of its start. Empty if there is no such process, or where these are not to be had.
func processName(pid int) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The name in parentheses may hold anything (proc(5)); the start is field 22, the third is the first behind it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return strings.Join([]string{strings.TrimSpace(string(boot)), space, strconv.Itoa(pid), fields[19]}, "/")
}

// sameMachine tells whether two processes' names are of one run of one kernel and one PID namespace: then each can see
// whether the other lives.
func sameMachine(a, b string) bool {
	boot, rest, ok := strings.Cut(a, "/")
	space, _, _ := strings.Cut(rest, "/")
	return ok && strings.HasPrefix(b, boot+"/"+space+"/")
}

// errMarked reports that somebody is about to delete the packs of a backup.
var errMarked = errors.New("packs are marked for deletion")

// checkMarks fails with errMarked if the packs of one of the backups are.
func checkMarks(ctx context.Context, r *repo.Repo, ids []string) error {
	for _, id := range ids {
		for o, err := range r.List(ctx, repo.MarkKey(id), "") {
			if err != nil {
				return fmt.Errorf("look for marks: %w", err)
			}
			if o.Key == repo.MarkKey(id) {
				return fmt.Errorf("backup %s: its %w", id, errMarked)
			}
		}
	}
	return nil
}
