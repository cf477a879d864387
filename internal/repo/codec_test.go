package repo

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

func codec(t testing.TB, level int) (*Encoder, *Decoder) {
	t.Helper()
	e, err := NewEncoder(level)
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close(); d.Close() })
	return e, d
}

func samples() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	return map[string][]byte{
		"nothing":    {},
		"one byte":   {7},
		"zeros":      make([]byte, 1<<20),
		"text":       []byte(strings.Repeat("the quick brown fox jumps over the lazy dog. ", 20000)),
		"noise":      noise,
		"odd length": noise[:8193],
	}
}

func TestFramesRoundTrip(t *testing.T) {
	for _, level := range []int{MinLevel, 3, MaxLevel} {
		e, d := codec(t, level)
		for name, raw := range samples() {
			frame, err := e.Append([]byte("before"), raw)
			if err != nil {
				t.Fatalf("%s at level %d: %v", name, level, err)
			}
			if !bytes.HasPrefix(frame, []byte("before")) {
				t.Fatalf("%s: what stood before the frame is gone", name)
			}
			if n := len(frame) - len("before"); n > Bound(len(raw)) {
				t.Errorf("%s: %d bytes from %d, the bound is %d", name, n, len(raw), Bound(len(raw)))
			}
			got, err := d.Decode(nil, frame[len("before"):], len(raw))
			if err != nil || !bytes.Equal(got, raw) {
				t.Errorf("%s at level %d: read back %d bytes, %v", name, level, len(got), err)
			}
		}
	}
}

// The format promises that any zstd reads it.
func TestFramesAreReadByTheZstdProgram(t *testing.T) {
	prog, err := exec.LookPath("zstd")
	if err != nil {
		t.Fatal("the zstd program is missing: install the package zstd")
	}
	e, _ := codec(t, 1)
	var joined, want []byte
	for _, raw := range samples() {
		if joined, err = e.Append(joined, raw); err != nil {
			t.Fatal(err)
		}
		want = append(want, raw...)
	}
	cmd := exec.Command(prog, "-dc")
	cmd.Stdin = bytes.NewReader(joined)
	got, err := cmd.Output()
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("zstd -dc gave %d bytes, want %d: %v", len(got), len(want), err)
	}
}

func TestDamagedFramesAreRefused(t *testing.T) {
	e, d := codec(t, 1)
	raw := samples()["text"]
	frame, err := e.Append(nil, raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		frame []byte
		n     int
	}{
		"empty":            {nil, len(raw)},
		"cut":              {frame[:len(frame)-1], len(raw)},
		"another length":   {frame, len(raw) - 1},
		"longer":           {frame, len(raw) + 1},
		"not a frame":      {[]byte("not a frame at all"), 18},
		"negative":         {frame, -1},
		"too long a claim": {frame, MaxFrame + 1},
		"garbage behind":   {append(bytes.Clone(frame), "garbage"...), len(raw)},
	} {
		if got, err := d.Decode(nil, c.frame, c.n); !errors.Is(err, ErrFrame) || got != nil {
			t.Errorf("%s: got %d bytes, %v; want ErrFrame", name, len(got), err)
		}
	}
	// Where the decompressor itself sees nothing wrong, the check does.
	check := CheckOf(raw)
	for i := 0; i < len(frame); i++ {
		bad := bytes.Clone(frame)
		bad[i] ^= 1 << (i % 8)
		got, err := d.Decode(nil, bad, len(raw))
		if err == nil && CheckOf(got) == check && !bytes.Equal(got, raw) {
			t.Fatalf("byte %d flipped: wrong content passes", i)
		}
	}
}

func TestLevelsAreBounded(t *testing.T) {
	for _, level := range []int{-1, 0, MaxLevel + 1} {
		if _, err := NewEncoder(level); err == nil {
			t.Errorf("level %d is accepted", level)
		}
	}
}

func FuzzDecode(f *testing.F) {
	e, d := codec(f, 1)
	for _, raw := range samples() {
		frame, err := e.Append(nil, raw)
		if err != nil {
			f.Fatal(err)
		}
		if len(frame) < 1<<16 {
			f.Add(frame, len(raw))
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte, n int) {
		got, err := d.Decode(nil, frame, n)
		if err == nil && len(got) != n {
			t.Fatalf("got %d bytes, want %d", len(got), n)
		}
	})
}
