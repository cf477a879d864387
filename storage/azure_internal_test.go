package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/internal/hint"
)

func TestAzureNames(t *testing.T) {
	for key, name := range map[string]string{
		"7000000000000000001/wal/00000001/0123456789ABCDEF/x-1.zst": "7000000000000000001/wal/00000001/0123456789ABCDEF/x-1.zst",
		"a b":            "a Ab",
		"tab\tand\nfeed": "tab *and +feed",
		"[x]":            "[!x]",
		`back\slash`:     `back["slash`,
	} {
		if got := azureName(key); got != name {
			t.Errorf("the name of %q is %q, want %q", key, got, name)
		}
		if got, ok := azureKey(name); got != key || !ok {
			t.Errorf("the key of %q is %q, %v, want %q", name, got, ok, key)
		}
	}
	for _, name := range []string{"a b", "a ", "a [", "[", "[#", "[A", " \x7f", "dir/", "a//b", `a\b`, ".hidden", " !"} {
		if key, ok := azureKey(name); ok {
			t.Errorf("%q is taken for the name of %q", name, key)
		}
	}
}

// Names keep the order and the beginnings of keys, and can be read back.
func TestAzureNamesKeepOrder(t *testing.T) {
	const letters = "\x01\t\n\x1f !\"#AZ[\\]^az~\x7f/0."
	rng := rand.New(rand.NewPCG(5, 6))
	keys := make([]string, 3000)
	for i := range keys {
		b := make([]byte, 1+rng.IntN(4))
		for j := range b {
			b[j] = letters[rng.IntN(len(letters))]
		}
		keys[i] = string(b)
	}
	slices.Sort(keys)
	for i, key := range keys {
		name := azureName(key)
		if i > 0 && (keys[i-1] < key) != (azureName(keys[i-1]) < name) {
			t.Fatalf("%q and %q change places as names", keys[i-1], key)
		}
		for _, other := range keys[:min(i, 200)] {
			if strings.HasPrefix(key, other) != strings.HasPrefix(name, azureName(other)) {
				t.Fatalf("%q begins with %q, or its name with the other's, but not both", key, other)
			}
		}
		if CheckKey(key) != nil {
			continue
		}
		if back, ok := azureKey(name); back != key || !ok {
			t.Fatalf("%q came back as %q", key, back)
		}
	}
}

func TestAzureText(t *testing.T) {
	for name, want := range map[string]string{"": "", "abc": "abc", "x \xc3": "x ", "ä": "ä", "a\xffb": "a", "a\nb": "a", "\ufffd": "\ufffd"} {
		if got := azureText(name); got != want {
			t.Errorf("azureText(%q) = %q, want %q", name, got, want)
		}
	}
}

// The blocks of one object are at most 50,000 and at most 4,000 MiB long, and hold more than any database has.
func TestAzureBlockSize(t *testing.T) {
	var total int64
	n := 0
	for ; azureBlockSize(n) > 0; n++ {
		if size := azureBlockSize(n); size < azureBlock || size > 4000<<20 {
			t.Fatalf("block %d has %d bytes", n, size)
		}
		total += int64(azureBlockSize(n))
	}
	if n != 50_000 || total < 1<<40 {
		t.Errorf("%d blocks hold %d bytes", n, total)
	}
}

// A peer that takes the connection and says nothing is given up, one that is slow is not.
func TestMovingConn(t *testing.T) {
	const stall = 200 * time.Millisecond
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	conn := &movingConn{near, stall}
	go func() {
		for range 4 {
			time.Sleep(stall / 2)
			far.Write([]byte("x"))
		}
	}()
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Errorf("a slow peer: %v", err)
	}
	if _, err := conn.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a silent peer: %v", err)
	}
	if _, err := conn.Write(bytes.Repeat([]byte("x"), 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a peer that takes nothing: %v", err)
	}
}

// Errors of the network: which pass, and what none of them keeps.
func TestAzureNetworkErrors(t *testing.T) {
	a := &azure{login: &azureLogin{account: "acct", endpoint: "https://acct.blob.core.windows.net"}}
	const network = "https://acct.blob.core.windows.net does not answer as it should: look at the network, the firewall and the proxy (HTTPS_PROXY)"
	for _, c := range []struct {
		err       error
		temporary bool
		text      string
		advice    string
	}{
		{&net.DNSError{Err: "no such host", Name: "acct.blob.core.windows.net", IsNotFound: true}, false, "lookup acct.blob.core.windows.net: no such host",
			"no host of that name: is storage.azure.account (acct) right? Other clouds than the public one need storage.azure.endpoint"},
		{&net.DNSError{Err: "server misbehaving", Name: "acct", IsTemporary: true}, true, "lookup acct: server misbehaving", network},
		{&net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}, true, "read tcp: i/o timeout", network},
		// The net package's own time-outs say of themselves that they are the context's.
		{&net.OpError{Op: "dial", Net: "tcp", Err: endedLikeContext{}}, true, "dial tcp: i/o timeout", network},
		{io.EOF, true, "EOF", network},
		{errors.New("http: server closed idle connection"), true, "http: server closed idle connection", network},
		{errors.New("unsupported protocol scheme"), false, "unsupported protocol scheme", ""},
	} {
		for _, err := range []error{c.err, &url.Error{Op: "Put", URL: "https://x/?sig=SECRET", Err: c.err}, fmt.Errorf("wrapped: %w", &url.Error{Op: "Put", URL: "https://x/?sig=SECRET", Err: c.err})} {
			got := a.explain(err)
			if got.Error() != c.text || hint.Of(got) != c.advice || Temporary(got) != c.temporary {
				t.Errorf("%v became %v (temporary: %v), hint %s", c.err, got, Temporary(got), hint.Of(got))
			}
			if errors.Is(got, context.DeadlineExceeded) || errors.Is(got, io.EOF) {
				t.Errorf("%v passes for another error", got)
			}
		}
	}
}

// endedLikeContext is an error as net.Dialer gives it after its time-out.
type endedLikeContext struct{}

func (endedLikeContext) Error() string     { return "i/o timeout" }
func (endedLikeContext) Timeout() bool     { return true }
func (endedLikeContext) Temporary() bool   { return true }
func (endedLikeContext) Is(err error) bool { return err == context.DeadlineExceeded }
