package basebackup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/internal/repo"
	"pitr/internal/wal"
	"pitr/storage"
	"pitr/storage/storagetest"
)

const testSystem = 7123456789012345678

// testRepo makes a repository of a cluster that doesn't exist, in b.
func testRepo(t testing.TB, b storage.Bucket) *repo.Repo {
	t.Helper()
	r, err := repo.Ensure(context.Background(), b, repo.Facts{SystemID: testSystem, Major: 15, SegmentSize: 16 << 20, BlockSize: 8192}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func testHeader(id string) *Header {
	return &Header{
		Format: Format, ID: id, Type: TypeFull, Label: "a \"label\"\nof two lines", SystemID: testSystem, ServerVersion: 150004,
		Node: "n1", Host: "h", From: "primary", Timeline: 1, StartLSN: 0x2000028, StopLSN: 0x2000138, CheckpointLSN: 0x2000060,
		Started: time.Date(2026, 11, 22, 21, 45, 0, 0, time.UTC), Finished: time.Date(2026, 11, 22, 21, 46, 0, 5000, time.UTC),
		BlockSize: 8192, WALSegSize: 16 << 20, RelSegBlocks: 131072, PacksOf: []string{id},
		BackupLabel: "START WAL LOCATION: \xff\x00", Tablespaces: []Tablespace{{OID: 16400, Name: "ts\xc3(", Path: "/mnt/\xfe"}},
		Compression: Compression{Codec: "zstd", Level: 1}, Why: []string{"first"},
	}
}

const testID = "20261122T214500Z-3fa9c1d2"

func frame(pack uint32, n int) Frame {
	return Frame{Pack: pack, Offset: int64(n) * 1000, Stored: 1000, Raw: 4096, Check: repo.Check{byte(n), byte(n >> 8), 7}, StoredCheck: 0xF0000000 + uint32(n)}
}

// testEntries has one of each kind, with odd names, shared frames, zeros, bad pages, and a file with so many extents that
// its entry is continued.
func testEntries() []*Entry {
	big := &Entry{Type: File, Path: "base/5/16384.1", Mode: 0o600, ModTime: 1, Flags: PagesChecked, BadPages: []uint32{0, 1, 131072, 4294967295}}
	for i := range 3*partExtents + 5 {
		x := Extent{Frame: frame(1+uint32(i/100), i), Length: 4096}
		if i%7 == 0 {
			x = Extent{Zeros: true, Length: 1 << 40}
		}
		big.Extents = append(big.Extents, x)
		big.Size += x.Length
	}
	shared := frame(1, 3)
	return []*Entry{
		{Type: Directory, Path: ".", Mode: 0o700},
		{Type: File, Path: "PG_VERSION", Mode: 0o600, ModTime: -5, Size: 3, Extents: []Extent{{Frame: shared, Offset: 10, Length: 3}}},
		{Type: Directory, Path: "base", Mode: 0o4750},
		{Type: File, Path: "base.conf", Mode: 0o600},
		{Type: Directory, Path: "base/5", Mode: 0o700},
		big,
		{Type: Symlink, Path: "log\n' \xff", Target: "/var/log/\xfe"},
		{Type: Symlink, Path: "pg_tblspc/16400", Target: "../x"},
		{Type: File, Path: "postgresql.auto.conf", Mode: 0o600, Size: 100, Extents: []Extent{{Frame: shared, Offset: 13, Length: 100}}},
		{Type: External, Path: "/etc/postgresql/15/main/pg_hba.conf", Name: "hba_file", Mode: 0o640, Size: 5, Extents: []Extent{{Frame: shared, Offset: 113, Length: 5}}},
		{Type: File, Path: controlPath, Mode: 0o600, Size: 8192, Extents: []Extent{{Frame: frame(2, 9), Length: 4096}, {Zeros: true, Length: 4096}}},
	}
}

// commit stores a manifest of the entries.
func commit(t testing.TB, r *repo.Repo, h *Header, entries []*Entry) {
	t.Helper()
	w, err := NewWriter(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, e := range entries {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(context.Background(), r, h); err != nil {
		t.Fatal(err)
	}
}

func readAll(t testing.TB, r *repo.Repo, id string) (*Header, []*Entry, error) {
	t.Helper()
	m, err := OpenManifest(context.Background(), r, id, t.TempDir())
	if err != nil {
		return nil, nil, err
	}
	defer m.Close()
	var entries []*Entry
	for e, err := range m.Entries() {
		if err != nil {
			return nil, nil, err
		}
		entries = append(entries, e)
	}
	return m.Header, entries, nil
}

func TestManifestRoundTrip(t *testing.T) {
	r := testRepo(t, storagetest.Memory())
	want, entries := testHeader(testID), testEntries()
	commit(t, r, want, entries)
	h, got, err := readAll(t, r, testID)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(h, want) {
		t.Errorf("header\n%+v, want\n%+v", h, want)
	}
	if len(got) != len(entries) {
		t.Fatalf("%d entries, want %d", len(got), len(entries))
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], entries[i]) {
			t.Errorf("entry %d: %.200q, want %.200q", i, fmt.Sprint(*got[i]), fmt.Sprint(*entries[i]))
		}
	}
	if h, err = ReadHeader(context.Background(), r, testID); err != nil || !reflect.DeepEqual(h, want) {
		t.Errorf("header alone: %+v, %v", h, err)
	}
}

func TestManifestOfManyFiles(t *testing.T) {
	r := testRepo(t, storagetest.Memory())
	var entries []*Entry
	for i := range 50_000 {
		entries = append(entries, &Entry{Type: File, Path: fmt.Sprintf("base/5/%08d", i), Mode: 0o600, Size: 10,
			Extents: []Extent{{Frame: frame(1, i/100), Offset: uint32(i%100) * 10, Length: 10}}})
	}
	commit(t, r, testHeader(testID), entries)
	_, got, err := readAll(t, r, testID)
	if err != nil || !reflect.DeepEqual(got, entries) {
		t.Fatalf("%d entries come back, %v", len(got), err)
	}
}

func TestWriterRefusesWhatAReaderWould(t *testing.T) {
	r := testRepo(t, storagetest.Memory())
	w, err := NewWriter(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	first := &Entry{Type: File, Path: "m", Mode: 0o600}
	if err := w.Add(first); err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]*Entry{
		"again":              first,
		"before the last":    {Type: File, Path: "l", Mode: 0o600},
		"leads out":          {Type: File, Path: "n/../../x", Mode: 0o600},
		"absolute":           {Type: File, Path: "/n", Mode: 0o600},
		"empty":              {Type: File, Path: "", Mode: 0o600},
		"ends in a slash":    {Type: Directory, Path: "n/", Mode: 0o700},
		"NUL":                {Type: File, Path: "n\x00", Mode: 0o600},
		"relative external":  {Type: External, Path: "n", Mode: 0o600},
		"link to nothing":    {Type: Symlink, Path: "n"},
		"unknown type":       {Type: 'X', Path: "n"},
		"continuation":       {Type: continuation, Path: "n"},
		"too few extents":    {Type: File, Path: "n", Size: 10},
		"too many extents":   {Type: File, Path: "n", Size: 1, Extents: []Extent{{Zeros: true, Length: 2}}},
		"past the frame":     {Type: File, Path: "n", Size: 4096, Extents: []Extent{{Frame: frame(1, 1), Offset: 1, Length: 4096}}},
		"no pack":            {Type: File, Path: "n", Size: 1, Extents: []Extent{{Frame: Frame{Stored: 1, Raw: 1}, Length: 1}}},
		"extent of nothing":  {Type: File, Path: "n", Extents: []Extent{{Zeros: true}}},
		"more than a mode":   {Type: File, Path: "n", Mode: 0o100600},
		"unknown flag":       {Type: File, Path: "n", Flags: 1 << 20},
		"an endless path":    {Type: File, Path: strings.Repeat("n", maxPath+1)},
		"an endless link":    {Type: Symlink, Path: "n", Target: strings.Repeat("n", maxPath+1)},
		"more than a frame":  {Type: File, Path: "n", Size: 1, Extents: []Extent{{Frame: Frame{Pack: 1, Stored: 1, Raw: MaxFrameRaw + 1}, Length: 1}}},
		"a link called dot":  {Type: File, Path: "n/."},
		"a name called dots": {Type: File, Path: ".."},
	} {
		if err := w.Add(e); err == nil {
			t.Errorf("%s: added", name)
		}
	}
	bad := testHeader(testID)
	bad.StopLSN = bad.StartLSN - 1
	if err := w.Commit(context.Background(), r, bad); err == nil {
		t.Error("a backup that ends before it starts: stored")
	}
	if err := w.Commit(context.Background(), r, testHeader(testID)); err != nil {
		t.Error(err)
	}
	if err := w.Commit(context.Background(), r, testHeader(testID)); !errors.Is(err, storage.ErrExists) {
		t.Errorf("a second time: %v", err)
	}
}

// TestEveryFlippedBitIsNoticed turns each bit of a manifest over, and cuts it at each length.
func TestEveryFlippedBitIsNoticed(t *testing.T) {
	ctx := context.Background()
	b := storagetest.Memory()
	r := testRepo(t, b)
	small := testEntries()
	small = append(small[:5:5], small[6:]...) // without the big one
	commit(t, r, testHeader(testID), small)
	whole, err := r.ReadAll(ctx, repo.BackupKey(testID), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	headerLen := preface + int(binary.LittleEndian.Uint32(whole[len(magic):])) + digestLen
	replace := func(data []byte) {
		if err := r.Delete(ctx, repo.BackupKey(testID)); err != nil {
			t.Fatal(err)
		}
		if err := r.Create(ctx, repo.BackupKey(testID), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range whole {
		data := slices.Clone(whole)
		data[i] ^= 1 << (i % 8)
		replace(data)
		if _, _, err := readAll(t, r, testID); !errors.Is(err, repo.ErrDamaged) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if _, err := ReadHeader(ctx, r, testID); i < headerLen && !errors.Is(err, repo.ErrDamaged) {
			t.Fatalf("byte %d of the header: %v", i, err)
		}
		all, problems, err := List(ctx, r)
		if err != nil || len(all)+len(problems) != 1 || i < headerLen && len(problems) != 1 {
			t.Fatalf("byte %d: listed as %v, %v, %v", i, all, problems, err)
		}
		replace(whole[:i])
		if _, _, err := readAll(t, r, testID); !errors.Is(err, repo.ErrDamaged) {
			t.Fatalf("%d bytes: %v", i, err)
		}
	}
	// Another backup's manifest under this name.
	other := "20261122T214501Z-00000000"
	commit(t, r, testHeader(other), small)
	if data, err := r.ReadAll(ctx, repo.BackupKey(other), 1<<20); err != nil {
		t.Fatal(err)
	} else {
		replace(data)
	}
	if _, err := ReadHeader(ctx, r, testID); !errors.Is(err, repo.ErrDamaged) {
		t.Errorf("another backup's manifest: %v", err)
	}
}

func TestNoBackup(t *testing.T) {
	r := testRepo(t, storagetest.Memory())
	for _, id := range []string{testID, "", "../x", "20261122T214500Z-3FA9C1D2", "20261322T214500Z-3fa9c1d2"} {
		if _, err := ReadHeader(context.Background(), r, id); !errors.Is(err, ErrNoBackup) {
			t.Errorf("header of %q: %v", id, err)
		}
		if _, err := OpenManifest(context.Background(), r, id, ""); !errors.Is(err, ErrNoBackup) {
			t.Errorf("manifest of %q: %v", id, err)
		}
	}
}

func TestNewerFormatIsNotDamage(t *testing.T) {
	ctx := context.Background()
	r := testRepo(t, storagetest.Memory())
	h := testHeader(testID)
	h.Format = Format + 1
	commit(t, r, h, nil)
	_, err := ReadHeader(ctx, r, testID)
	if err == nil || errors.Is(err, repo.ErrDamaged) {
		t.Errorf("a newer format: %v", err)
	}
	all, problems, err := List(ctx, r)
	if err != nil || len(all) != 0 || len(problems) != 1 {
		t.Errorf("listed as %v, %v, %v", all, problems, err)
	}
}

func TestIDs(t *testing.T) {
	id := NewID(time.Date(2026, 11, 22, 22, 45, 0, 999, time.FixedZone("", 3600)), 0x3fa9c1d2)
	if id != testID {
		t.Errorf("made %s", id)
	}
	if err := CheckID(id); err != nil {
		t.Error(err)
	}
}

func TestSegmentRange(t *testing.T) {
	h := &Header{WALSegSize: 16 << 20, StartLSN: 0x2000028}
	for stop, want := range map[wal.LSN]uint64{0x2000028: 2, 0x2000138: 2, 0x3000000: 2, 0x3000001: 3, 0x4000000: 3} {
		h.StopLSN = stop
		if first, last := h.SegmentRange(); first != 2 || last != want {
			t.Errorf("%s to %s: segments %d to %d, want 2 to %d", h.StartLSN, stop, first, last, want)
		}
	}
}

// FuzzEntries gives the reader any bytes as a chunk's content. What it takes, the writer must write the same way.
func FuzzEntries(f *testing.F) {
	var enc entryEncoder
	for _, e := range testEntries() {
		if len(e.Extents) < 100 {
			enc.entry(e)
			f.Add(slices.Clone(enc.buf))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dec := entryDecoder{buf: data}
		var enc entryEncoder
		var read []Entry
		for len(dec.buf) > 0 {
			var e Entry
			if dec.entry(&e) != nil {
				return
			}
			read = append(read, e)
			enc.entry(&e)
		}
		dec = entryDecoder{buf: enc.buf}
		for _, want := range read {
			var got Entry
			if err := dec.entry(&got); err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v comes back as %+v, %v", want, got, err)
			}
		}
	})
}

// FuzzManifest gives the reader any bytes behind a right header and with a right digest, as a forger would.
func FuzzManifest(f *testing.F) {
	b := storagetest.Memory()
	r := testRepo(f, b)
	small := testEntries()
	commit(f, r, testHeader(testID), append(small[:5:5], small[6:]...))
	whole, err := r.ReadAll(context.Background(), repo.BackupKey(testID), 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	headerLen := preface + int(binary.LittleEndian.Uint32(whole[len(magic):])) + digestLen
	f.Add(whole[headerLen : len(whole)-trailerLen])
	f.Add(make([]byte, 8))
	f.Fuzz(func(t *testing.T, body []byte) {
		dec, err := repo.NewDecoder()
		if err != nil {
			t.Fatal(err)
		}
		defer dec.Close()
		it := newEntryReader(bytes.NewReader(body), dec, 1)
		last := ""
		for {
			e, err := it.next()
			if err == io.EOF {
				return
			}
			if err != nil {
				return
			}
			if e.Path == last || e.Type != External && CheckPath(e.Path) != nil || length(e.Extents) != e.Size {
				t.Fatalf("given: %+v", e)
			}
			last = e.Path
		}
	})
}
