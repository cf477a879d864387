package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"pitr/basebackup"
)

// backupDetails is what `backup show --json` adds to the list's fields.
type backupDetails struct {
	backupJSON
	Label         string              `json:"label"`
	ServerVersion int                 `json:"postgresql"`
	SystemID      uint64              `json:"system_identifier,string"`
	Node          string              `json:"node"`
	Host          string              `json:"host"`
	From          string              `json:"from"`
	Files         int64               `json:"files"`
	Packs         int                 `json:"packs"`
	PacksOf       []string            `json:"packs_of"`
	DataChecksums bool                `json:"data_checksums"`
	WALSegSize    int64               `json:"wal_segment_size"`
	Tablespaces   []tablespaceDetails `json:"tablespaces"`
	WALDirLink    string              `json:"wal_dir_link"`
	Compression   string              `json:"compression"`
	Level         int                 `json:"level"`
	Why           []string            `json:"why"`
	Pin           *basebackup.Pin     `json:"pin"`
	BadPages      []badPages          `json:"bad_pages"`
}

type tablespaceDetails struct {
	OID  uint32 `json:"oid"`
	Name string `json:"name"`
	Path string `json:"path"`
}

// badPages are pages of a file that have wrong checksums in the backup, as they had on the server's disk.
type badPages struct {
	Path   string   `json:"path"`
	Blocks []uint32 `json:"blocks"`
}

func (a *app) backupShow(ctx context.Context, f backupFlags, id string) error {
	e, r, err := a.lineage(ctx, f)
	if err != nil {
		return err
	}
	h, err := basebackup.ReadHeader(ctx, r, id)
	if err != nil {
		return err
	}
	pins, err := basebackup.Pins(ctx, r)
	if err != nil {
		return err
	}
	d := details(h, pins)
	if h.BadPages > 0 {
		// Which ones is in the entries, and so costs reading all of the manifest.
		m, err := basebackup.OpenManifest(ctx, r, id, e.spoolDir())
		if err != nil {
			return err
		}
		defer m.Close()
		for entry, err := range m.Entries() {
			if err != nil {
				return err
			}
			if len(entry.BadPages) > 0 {
				d.BadPages = append(d.BadPages, badPages{Path: entry.Path, Blocks: entry.BadPages})
			}
		}
	}
	if f.json {
		return a.printJSONDocument(d)
	}
	return a.print(d.text())
}

func details(h *basebackup.Header, pins map[string]basebackup.Pin) backupDetails {
	pin, pinned := pins[h.ID]
	d := backupDetails{
		backupJSON: brief(h, pinned), Label: string(h.Label), ServerVersion: h.ServerVersion, SystemID: h.SystemID, Node: h.Node, Host: h.Host,
		From: h.From, Files: h.Files, Packs: h.Packs, PacksOf: h.PacksOf, DataChecksums: h.DataChecksums, WALSegSize: h.WALSegSize,
		Tablespaces: []tablespaceDetails{}, WALDirLink: string(h.WALDirLink), Compression: h.Compression.Codec, Level: h.Compression.Level,
		Why: h.Why, BadPages: []badPages{},
	}
	for _, t := range h.Tablespaces {
		d.Tablespaces = append(d.Tablespaces, tablespaceDetails{OID: t.OID, Name: string(t.Name), Path: string(t.Path)})
	}
	if pinned {
		d.Pin = &pin
	}
	return d
}

func (d *backupDetails) text() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	line("backup", "%s", d.ID)
	line("type", "%s (%s)", d.Type, strings.Join(d.Why, "; "))
	line("status", "%s", d.Status)
	if d.Pin != nil {
		line("pinned", "%s by %s: %s", d.Pin.At.Format(time.RFC3339), d.Pin.By, d.Pin.Reason)
	}
	line("label", "%s", d.Label)
	line("server", "PostgreSQL %d.%d, system identifier %d, the %s on node %s (host %s)", d.ServerVersion/10000, d.ServerVersion%10000, d.SystemID, d.From, d.Node, d.Host)
	line("taken", "from %s to %s", d.Started.Format(time.RFC3339), d.Finished.Format(time.RFC3339))
	line("WAL", "from %s to %s on timeline %d, segments of %d MiB", d.StartLSN, d.StopLSN, d.Timeline, d.WALSegSize>>20)
	line("size", "%d files of %s; %s stored in %d packs (%s, level %d)", d.Files, size(d.Size), size(d.Stored), d.Packs, d.Compression, d.Level)
	if others := slices.DeleteFunc(slices.Clone(d.PacksOf), func(id string) bool { return id == d.ID }); len(others) > 0 {
		line("needs", "packs of %s", strings.Join(others, ", "))
	}
	for _, t := range d.Tablespaces {
		line("tablespace", "%d %s at %s", t.OID, t.Name, t.Path)
	}
	if d.WALDirLink != "" {
		line("pg_wal", "a link to %s", d.WALDirLink)
	}
	if !d.DataChecksums {
		line("checksums", "off: the pages could not be checked")
	}
	for _, p := range d.BadPages {
		line("bad pages", "%s: blocks %s", p.Path, strings.Trim(fmt.Sprint(p.Blocks), "[]"))
	}
	return b.String()
}
