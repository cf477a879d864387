package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"pitr/archive"
	"pitr/internal/agent/client"
	"pitr/internal/hint"
)

const (
	// maxConversations is how many clients are served at once; more wait in the socket's queue.
	maxConversations = 64
	// heartbeat is how often a client that waits hears that it is being worked for; much less than client.Silence.
	heartbeat = time.Second
)

// errElsewhere says that what was asked is not for this agent. Its text is for the one who asked.
type errElsewhere struct{ text string }

func (e *errElsewhere) Error() string { return e.text }

// A server answers on the agent's socket.
type server struct {
	push func(ctx context.Context, path string) error
	// fetch calls moved whenever something has come from the store.
	fetch  func(ctx context.Context, r client.Request, moved func()) error
	status func() any
	log    *slog.Logger
	// uid is who may ask, beside root.
	uid int

	all sync.WaitGroup
}

// listen makes the socket in dir.
func listen(dir string) (*net.UnixListener, error) {
	path := filepath.Join(dir, client.SocketName)
	if len(path) > client.MaxSocketPath {
		return nil, hint.Wrap(fmt.Errorf("listen on %s: a socket's path can have %d bytes, this one has %d", path, client.MaxSocketPath, len(path)),
			"set `service.dir` to a shorter path")
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// serve answers until l is closed. What is under way then goes on until ctx ends; wait waits for that.
func (s *server) serve(ctx context.Context, l *net.UnixListener) error {
	free := make(chan struct{}, maxConversations)
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// Such as too many open files: it passes.
			s.log.Error("can't accept on the agent's socket", "error", err)
			select {
			case <-time.After(time.Second):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		free <- struct{}{}
		s.all.Go(func() {
			defer func() { <-free }()
			defer conn.Close()
			s.converse(ctx, conn)
		})
	}
}

func (s *server) wait() { s.all.Wait() }

// converse reads one request and answers it.
func (s *server) converse(ctx context.Context, conn net.Conn) {
	uid, known, err := client.PeerUID(conn)
	refused := err != nil || known && uid != 0 && uid != s.uid
	if refused {
		s.log.Warn("refused a client on the agent's socket", "user", uid, "error", err)
	}
	// Read in any case: a client that can't get rid of its request does not hear the answer either.
	r, err := readRequest(conn)
	if refused {
		err = fmt.Errorf("the agent serves user %d and root, not user %d", s.uid, uid)
	}
	if err != nil {
		s.write(conn, client.Answer{Kind: client.KindElsewhere, Error: err.Error()})
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answer := make(chan client.Answer, 1)
	var moved atomic.Uint64
	go func() { answer <- s.answer(ctx, r, func() { moved.Add(1) }) }()

	// A client sends nothing more, so the end of reading is the end of its interest.
	go func() {
		defer cancel()
		conn.SetReadDeadline(time.Time{})
		var b [1]byte
		conn.Read(b[:])
	}()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	if r.Op != client.OpStatus && !s.write(conn, client.Answer{Working: true}) {
		cancel()
	}
	for {
		select {
		case a := <-answer:
			s.write(conn, a)
			return
		case <-beat.C:
			if !s.write(conn, client.Answer{Working: true, Moved: moved.Load()}) {
				cancel()
			}
		}
	}
}

func readRequest(conn net.Conn) (client.Request, error) {
	var r client.Request
	conn.SetReadDeadline(time.Now().Add(client.Silence))
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 1<<10), client.MaxRequest)
	if !lines.Scan() {
		return r, fmt.Errorf("no request came: %w", errors.Join(lines.Err()))
	}
	if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
		return r, fmt.Errorf("the request is not JSON: %w", err)
	}
	if r.Version != client.Version {
		return r, fmt.Errorf("the request is of protocol version %d, this agent speaks %d", r.Version, client.Version)
	}
	return r, nil
}

func (s *server) write(conn net.Conn, a client.Answer) bool {
	a.Version = client.Version
	line, err := json.Marshal(a)
	if err != nil {
		s.log.Error("can't write an answer", "error", err)
		return false
	}
	conn.SetWriteDeadline(time.Now().Add(client.Silence))
	_, err = conn.Write(append(line, '\n'))
	return err == nil
}

// answer does what a request asks.
func (s *server) answer(ctx context.Context, r client.Request, moved func()) client.Answer {
	var err error
	switch r.Op {
	case client.OpPush:
		err = s.push(ctx, r.Path)
	case client.OpFetch:
		err = s.fetch(ctx, r, moved)
	case client.OpStatus:
		var data []byte
		if data, err = json.Marshal(s.status()); err == nil {
			return client.Answer{OK: true, Status: data}
		}
	default:
		err = &errElsewhere{fmt.Sprintf("operation %q is not known", r.Op)}
	}
	_, elsewhere := errors.AsType[*errElsewhere](err)
	switch {
	case err == nil:
		return client.Answer{OK: true}
	case elsewhere, errors.Is(err, errStopping), errors.Is(err, context.Canceled):
		return client.Answer{Kind: client.KindElsewhere, Error: err.Error()}
	case r.Op == client.OpFetch && errors.Is(err, archive.ErrNotArchived):
		return client.Answer{Kind: client.KindAbsent, Error: err.Error()}
	}
	return client.Answer{Kind: client.KindFailed, Error: err.Error(), Hint: hint.Of(err)}
}
