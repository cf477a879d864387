package recovery_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pitr/internal/postgres/pgtest"
	"pitr/recovery"
)

// Access files include others in their own syntax, and name lists of names. In a copy beside, all of them are its own.
func TestAccessFilesThatInclude(t *testing.T) {
	for _, bin := range pgtest.Bins(t) {
		for _, inside := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d, inside %t", bin.Major, inside), func(t *testing.T) {
				t.Parallel()
				h := newHouse(t, pgtest.Options{Bin: bin, SegSizeMB: 1})
				h.Exec("CREATE ROLE listed LOGIN", "CREATE TABLE t (v text)", "INSERT INTO t VALUES ('a')")
				etc := mkdir(t, filepath.Join(pgtest.TempDir(t), "it's e t c"))
				quoted := `"` + strings.ReplaceAll(etc, `"`, `""`)
				files := map[string]string{
					"hba.conf":      "local all postgres trust\nlocal replication all trust\n",
					"ident.conf":    "# nothing\n",
					"names":         "nobody listed",
					"more/a.conf":   "local all @" + quoted + "/names\" trust\n",
					"deep.conf":     "local all @names reject\n",
					"ident2.conf":   "m postgres postgres\n",
					"more/not.hba":  "wrong\n",
					"more/b.conf":   "include  \"../deep.conf\" # relative\n",
					"absolute.conf": "# include 'nothing'\n",
				}
				if bin.Major >= 16 {
					files["hba.conf"] += "include_dir \"more\"\ninclude_if_exists nosuch.conf\ninclude " + quoted + "/absolute.conf\"\n"
					files["ident.conf"] = "include ident2.conf\n"
				} else {
					files["hba.conf"] += files["more/a.conf"]
					files["ident.conf"] = "include postgres postgres\n" // the name of a map
				}
				mkdir(t, filepath.Join(etc, "more"))
				for name, text := range files {
					if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if inside {
					in := strings.NewReplacer("include_dir \"more\"", "include_dir "+quoted+"/more\"").Replace(files["hba.conf"])
					if err := os.WriteFile(filepath.Join(h.Dir, "pg_hba.conf"), []byte(in), 0o644); err != nil {
						t.Fatal(err)
					}
				} else {
					h.Conf(map[string]string{"hba_file": etc + "/hba.conf", "ident_file": etc + "/ident.conf"})
				}
				h.Restart()
				const rules = "SELECT string_agg(concat_ws(' ', type, array_to_string(user_name, ','), auth_method, error), '; ' ORDER BY line_number, auth_method) FROM pg_hba_file_rules"
				want := pgtest.QueryOne[string](h.Server, rules)
				if !strings.Contains(want, "nobody,listed trust") {
					t.Fatal(want)
				}
				h.backup()
				h.flush()
				h.stop(h.Server)
				// Elsewhere, none of that is there.
				if err := os.Rename(etc, etc+" gone"); err != nil {
					t.Fatal(err)
				}
				_, p, report := h.put(recovery.Target{}, recovery.Destination{Archive: true})
				if len(report.Warnings) != 0 {
					t.Errorf("warnings %q", report.Warnings)
				}
				s := pgtest.OpenDir(t, p.Layout.Dir, pgtest.Options{Bin: bin})
				s.AwaitPrimary()
				if got := pgtest.QueryOne[string](s, rules); got != want {
					t.Errorf("rules %s\nwant %s", got, want)
				}
				if bin.Major >= 16 && !inside {
					if n := pgtest.QueryOne[int64](s, "SELECT count(*) FROM pg_ident_file_mappings WHERE map_name = 'm' AND error IS NULL"); n != 1 {
						t.Errorf("%d mappings", n)
					}
				}
			})
		}
	}
}
