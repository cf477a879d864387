package repo

import (
	"bytes"
	"errors"
	"testing"
)

func TestDocumentsShowAnyDamage(t *testing.T) {
	type doc struct {
		Name  string `json:"name"`
		Count int    `json:"count"`
	}
	in := doc{Name: "line\nfeed and \"quotes\"", Count: 3}
	data, err := MarshalDocument(in)
	if err != nil {
		t.Fatal(err)
	}
	var out doc
	if err := UnmarshalDocument(data, &out); err != nil || out != in {
		t.Fatalf("read back %+v, %v", out, err)
	}
	for i := range data {
		for bit := range 8 {
			bad := bytes.Clone(data)
			bad[i] ^= 1 << bit
			if err := UnmarshalDocument(bad, &out); !errors.Is(err, ErrDamaged) {
				t.Fatalf("byte %d, bit %d flipped: %v", i, bit, err)
			}
		}
		if err := UnmarshalDocument(data[:i], &out); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
	if err := UnmarshalDocument(append(data, '\n'), &out); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a line more: %v", err)
	}
}
