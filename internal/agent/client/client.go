// Package client is how a short-lived command asks the agent on the same host: the protocol of the agent's socket and its
// asking side. It is small on purpose, because PostgreSQL starts a hook for each WAL segment and waits for it. What the
// agent does with a request is package agent's matter, and what to do when there is no agent is the caller's.
//
// # Protocol, version 1
//
// A Unix stream socket, `agent.sock` in the service directory. A connection carries one request: one line of JSON
// ([Request]), at most 64 KiB. The agent answers with lines of JSON ([Answer]), each at most 4 MiB: while it works one
// line with "working" about every second, so that a frozen agent is noticed (and one whose store is, by "moved"), and at last exactly one line without it,
// after which it closes. A client that closes earlier ends its wait, not the work.
//
// Both sides look at the other's credentials (SO_PEERCRED, where the system has it): the agent serves its own user and
// root; a client believes an agent of its own user and of root, and root believes any.
//
// Fields that a side does not know are passed over; a request of a version that the agent does not know is refused as
// [KindElsewhere], so that a newer hook does the work itself.
package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"
	"unicode/utf8"

	"pitr/internal/hint"
)

// Version is the protocol's.
const Version = 1

// SocketName is the socket's name in the service directory.
const SocketName = "agent.sock"

// MaxSocketPath is the length in bytes that a socket's path may have (sun_path of unix(7), less its NUL).
const MaxSocketPath = 107

// MaxRequest and MaxAnswer bound a line of either direction, in bytes.
const (
	MaxRequest = 64 << 10
	MaxAnswer  = 4 << 20
)

// Silence is how long either side waits for the other's next line.
const Silence = 5 * time.Second

// Operations of a Request.
const (
	OpPush   = "push"   // archive the file at Path
	OpFetch  = "fetch"  // bring the archived file Name to Dest
	OpStatus = "status" // say what the agent knows of itself
)

// Request is what a client wants.
type Request struct {
	Version int    `json:"v"`
	Op      string `json:"op"`
	Path    string `json:"path,omitempty"` // push: absolute
	Name    string `json:"name,omitempty"` // fetch: as PostgreSQL calls the file
	Dest    string `json:"dest,omitempty"` // fetch: absolute
	Dir     string `json:"dir,omitempty"`  // fetch: the data directory that is recovering, absolute
	// Partial is, for a fetch, set where the beginning of a segment will do if the segment is not archived.
	Partial bool `json:"partial,omitempty"`
	// System is, for a fetch, the system identifier whose archive is meant.
	System uint64 `json:"system,omitempty,string"`
}

// Kinds of failure in an Answer.
const (
	KindFailed    = "failed"    // it was tried, and the error says what went wrong
	KindAbsent    = "absent"    // fetch: the archive proves that it holds no such file
	KindElsewhere = "elsewhere" // nothing was tried: this is not the agent for it, or it is stopping
)

// Answer is a line of the agent's.
type Answer struct {
	Version int             `json:"v"`
	Working bool            `json:"working,omitempty"` // not the last line
	Moved   uint64          `json:"moved,omitempty"`   // fetch: greater than before if something has come from the store since
	OK      bool            `json:"ok,omitempty"`
	Kind    string          `json:"kind,omitempty"` // where OK is false
	Error   string          `json:"error,omitempty"`
	Hint    string          `json:"hint,omitempty"`
	Status  json.RawMessage `json:"status,omitempty"`
}

var (
	// ErrNoAgent says that no agent did the work or will: the caller does it itself. The agent may have begun, and may
	// even have finished; all of its work can be done twice.
	ErrNoAgent = errors.New("no agent did it")
	// ErrAbsent says that the archive proves that it holds no file of that name.
	ErrAbsent = errors.New("not in the archive")
)

// Failure is an error that the agent met, in its words. Its hint is attached by package hint.
type Failure struct{ Text string }

func (f *Failure) Error() string { return f.Text }

// Agent is the agent of a service directory. The zero value asks nobody. It holds nothing open and may be used by many
// goroutines at once.
type Agent struct {
	socket  string
	silence time.Duration
}

// Of returns the agent whose service directory is dir. Whether it runs shows when it is asked.
func Of(dir string) Agent { return Agent{socket: filepath.Join(dir, SocketName), silence: Silence} }

// Socket is the path of the agent's socket.
func (a Agent) Socket() string { return a.socket }

// Push has the file at path, which must be absolute, archived. It returns nil once the store has that very file. The
// error is ErrNoAgent, a *Failure, or the context's.
func (a Agent) Push(ctx context.Context, path string) error {
	_, err := a.ask(ctx, Request{Op: OpPush, Path: path}, nil)
	return err
}

// Wanted is what a recovery asks for.
type Wanted struct {
	Name   string // of the file, as the server calls it
	Dest   string // where to put it, absolute
	Dir    string // the data directory that is recovering, absolute
	System uint64 // the system identifier whose archive is meant
	// Partial: where the segment is not archived, its beginning will do.
	Partial bool
	// Moved, if not nil, is called when the agent says that something has come from the store.
	Moved func()
}

// Fetch has an archived file put at w.Dest. The error is ErrNoAgent, ErrAbsent, a *Failure, or the context's; only after
// nil is there anything new at w.Dest.
func (a Agent) Fetch(ctx context.Context, w Wanted) error {
	_, err := a.ask(ctx, Request{Op: OpFetch, Name: w.Name, Dest: w.Dest, Dir: w.Dir, System: w.System, Partial: w.Partial}, w.Moved)
	return err
}

// Status returns what the agent says of itself, as JSON. The error is as of Push.
func (a Agent) Status(ctx context.Context) (json.RawMessage, error) {
	answer, err := a.ask(ctx, Request{Op: OpStatus}, nil)
	return answer.Status, err
}

func noAgent(err error) error { return fmt.Errorf("%w: %w", ErrNoAgent, err) }

func (a Agent) ask(ctx context.Context, r Request, moved func()) (Answer, error) {
	if len(a.socket) == 0 || len(a.socket) > MaxSocketPath {
		return Answer{}, noAgent(fmt.Errorf("no socket can be at %q", a.socket))
	}
	for _, s := range []string{r.Path, r.Name, r.Dest, r.Dir} {
		if !utf8.ValidString(s) {
			return Answer{}, noAgent(fmt.Errorf("%q is not UTF-8, so JSON can't hold it", s))
		}
	}
	d := net.Dialer{Timeout: a.silence}
	conn, err := d.DialContext(ctx, "unix", a.socket)
	if err != nil {
		return Answer{}, a.gone(ctx, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := trusted(conn); err != nil {
		return Answer{}, noAgent(err)
	}
	r.Version = Version
	line, err := json.Marshal(r)
	if err != nil {
		return Answer{}, noAgent(err)
	}
	conn.SetWriteDeadline(time.Now().Add(a.silence))
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return Answer{}, a.gone(ctx, err)
	}
	answer, err := a.await(conn, moved)
	if err != nil {
		return Answer{}, a.gone(ctx, err)
	}
	return answer, answer.err()
}

// gone is for a conversation that broke off: by the caller's own wish, or because the agent is no more.
func (a Agent) gone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return noAgent(err)
}

// await reads lines until the last one.
func (a Agent) await(conn net.Conn, moved func()) (Answer, error) {
	var last uint64
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 4<<10), MaxAnswer)
	for {
		conn.SetReadDeadline(time.Now().Add(a.silence))
		if !lines.Scan() {
			if err := lines.Err(); err != nil {
				return Answer{}, fmt.Errorf("the agent does not answer: %w", err)
			}
			return Answer{}, errors.New("the agent went away without an answer")
		}
		var answer Answer
		if err := json.Unmarshal(lines.Bytes(), &answer); err != nil {
			return Answer{}, fmt.Errorf("the agent's answer is not JSON: %w", err)
		}
		if !answer.Working {
			return answer, nil
		}
		if answer.Moved > last && moved != nil {
			last = answer.Moved
			moved()
		}
	}
}

// err is the error that the last line stands for.
func (a Answer) err() error {
	var err error
	switch {
	case a.OK:
		return nil
	case a.Kind == KindAbsent:
		return ErrAbsent
	case a.Kind == KindFailed:
		err = &Failure{Text: a.Error}
	default:
		err = noAgent(errors.New(a.Error))
	}
	if a.Hint != "" {
		err = hint.Wrap(err, "%s", a.Hint)
	}
	return err
}
