package repo

import (
	"strings"
	"testing"
)

func TestRollUpKeys(t *testing.T) {
	d := DigestOf([]byte("x"))
	key := RollUpKey(0xA, 0x400, 0x7FF, d)
	if want := "index/0000000A/0000000000000400-00000000000007FF-" + d.String(); key != want {
		t.Errorf("%s, want %s", key, want)
	}
	if tli, first, last, got, ok := ParseRollUpKey(key); !ok || tli != 0xA || first != 0x400 || last != 0x7FF || got != d {
		t.Errorf("%d %X %X %s %v", tli, first, last, got, ok)
	}
	for _, bad := range []string{
		"", "wal" + key[5:], key[:len(key)-1], key + "0", strings.ToLower(key), strings.Replace(key, "0A/", "00/", 1),
		strings.Replace(key, "0A/", "0A-", 1), strings.Replace(key, "0400-", "0800-", 1), strings.Replace(key, "0400", "+400", 1),
	} {
		if bad == key {
			t.Fatal(bad)
		}
		if _, _, _, _, ok := ParseRollUpKey(bad); ok {
			t.Errorf("%q is taken for a key", bad)
		}
	}
}
