package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/token"
)

// unknown reports a key that does not exist, with the one that was probably meant.
func (d *decoder) unknown(tk *token.Token, section, key string, fields []field) {
	path := join(section, key)
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.key
	}
	// A password written where only its file's name belongs: say that first, and never the value.
	if slices.Contains(keys, key+"_file") {
		d.add(path, tk, fmt.Sprintf("put the value into a file that only pitr's user can read, and name the file in %s", path+"_file"),
			"no such key: secrets never stand in the configuration")
		return
	}
	if path == "postgres.password" || path == "postgres.passfile" {
		d.add(path, tk, "pitr reads the password as every PostgreSQL client does: from ~/.pgpass, $PGPASSFILE or $PGPASSWORD",
			"no such key: secrets never stand in the configuration")
		return
	}
	where := "at the top of the file"
	if section != "" {
		where = "in " + section
	}
	d.add(path, tk, meant(section, key, keys), "no such key: allowed %s are %s", where, strings.Join(keys, ", "))
}

// meant guesses which key was meant by key in section, whose keys are given, and asks whether it was. It is empty
// where nothing is near enough to be likely.
func meant(section, key string, keys []string) string {
	var best []string
	least := len(key)/3 + 1
	consider := func(path, last string, extra int) {
		switch n := distance(strings.ToLower(strings.ReplaceAll(key, "-", "_")), last) + extra; {
		case n < least:
			best, least = []string{path}, n
		case n == least && !slices.Contains(best, path):
			best = append(best, path)
		}
	}
	for _, k := range keys {
		consider(join(section, k), k, 0)
	}
	// The right word in the wrong section is as common as a slip of the finger.
	for path := range allKeys(reflect.TypeFor[Config](), "") {
		consider(path, path[strings.LastIndexByte(path, '.')+1:], 1)
	}
	if len(best) == 0 || len(best) > 3 {
		return ""
	}
	slices.Sort(best)
	return "did you mean " + strings.Join(best, " or ") + "?"
}

// allKeys gives the path and type of every key, sections included, in the order of the types.
func allKeys(t reflect.Type, path string) func(yield func(string, reflect.Type) bool) {
	return func(yield func(string, reflect.Type) bool) {
		walkKeys(t, path, yield)
	}
}

func walkKeys(t reflect.Type, path string, yield func(string, reflect.Type) bool) bool {
	for _, f := range fieldsOf(t) {
		p := join(path, f.key)
		if !yield(p, f.typ) || f.typ.Kind() == reflect.Struct && !walkKeys(f.typ, p, yield) {
			return false
		}
	}
	return true
}

// distance counts the letters to insert, delete, replace or swap with the next one to make b of a (optimal string
// alignment).
func distance(a, b string) int {
	older, old, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range old {
		old[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(old[j]+cost, old[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], older[j-1]+1)
			}
		}
		older, old, row = old, row, older
	}
	return old[len(b)]
}
