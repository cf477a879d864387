package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"pitr/internal/durable"
)

// Setting is one assignment in a configuration file.
type Setting struct{ Name, Value string }

// AutoConf is the name of the file in the data directory that ALTER SYSTEM writes and that the server reads last.
const AutoConf = "postgresql.auto.conf"

// removedMark stands before a line that EditConf has taken out of force.
const removedMark = "# removed by pitr: "

// errNUL: the server reads configuration files as C strings.
var errNUL = errors.New("holds a NUL character, which PostgreSQL's configuration files can't hold")

// QuoteConf returns s as a quoted value for postgresql.conf and postgresql.auto.conf, on one line: the server reads
// backslash sequences in quoted values, and no line feed (the STRING rule and DeescapeQuotedString in
// src/backend/utils/misc/guc-file.l). Anything can be quoted but a NUL.
func QuoteConf(s string) (string, error) {
	if strings.ContainsRune(s, 0) {
		return "", errNUL
	}
	return "'" + confEscapes.Replace(s) + "'", nil
}

var confEscapes = strings.NewReplacer("'", "''", `\`, `\\`, "\n", `\n`, "\r", `\r`)

// ShellQuote returns s as one word for the shell within restore_command, archive_command and the like, where PostgreSQL
// first replaces sequences that begin with a percent sign, so that these stand doubled. A result for a configuration file
// still goes through QuoteConf, which also refuses a NUL.
func ShellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@,", r)
	}
	if s != "" && strings.TrimFunc(s, plain) == "" {
		return s
	}
	return "'" + strings.NewReplacer("'", `'\''`, "%", "%%").Replace(s) + "'"
}

// ReadAutoConf returns the content of dataDir's postgresql.auto.conf, nothing where there is none.
func ReadAutoConf(dataDir string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dataDir, AutoConf))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// EditAutoConf applies EditConf to dataDir's postgresql.auto.conf, durably: a crash leaves the old file or the new one.
// A file that is missing is made. The file's owner is the data directory's, its mode 0600. The server, if one runs, must
// not be executing ALTER SYSTEM meanwhile, and reads the change when told to reload.
func EditAutoConf(dataDir string, remove func(name string) bool, add []Setting) error {
	old, err := ReadAutoConf(dataDir)
	if err != nil {
		return err
	}
	edited, err := EditConf(old, remove, add)
	if err != nil {
		return fmt.Errorf("edit %s: %w", filepath.Join(dataDir, AutoConf), err)
	}
	uid, gid, err := OwnerOf(dataDir)
	if err != nil {
		return err
	}
	f, err := durable.Create(filepath.Join(dataDir, AutoConf), 0o600)
	if err != nil {
		return err
	}
	defer f.Abort()
	if os.Geteuid() == 0 {
		if err := f.Chown(int(uid), int(gid)); err != nil {
			return err
		}
	}
	if _, err := f.Write(edited); err != nil {
		return err
	}
	return f.Commit()
}

// EditConf returns the configuration file data with each assignment that remove asks for commented out, and add at the
// end, in their order. remove gets names in lower case, since the server ignores case; nil removes nothing. All other
// lines, comments among them, stay as and where they are. It is an error if an added name or value can't be written.
func EditConf(data []byte, remove func(name string) bool, add []Setting) ([]byte, error) {
	var out bytes.Buffer
	for line := range bytes.Lines(data) {
		if name := settingName(line); name != "" && remove != nil && remove(name) {
			out.WriteString(removedMark)
		}
		out.Write(line)
	}
	if len(data) > 0 && len(add) > 0 && data[len(data)-1] != '\n' {
		out.WriteByte('\n')
	}
	for _, s := range add {
		if !validSettingName(s.Name) {
			return nil, fmt.Errorf("%q can't be the name of a setting", s.Name)
		}
		value, err := QuoteConf(s.Value)
		if err != nil {
			return nil, fmt.Errorf("value of %s: %w", s.Name, err)
		}
		fmt.Fprintf(&out, "%s = %s\n", s.Name, value)
	}
	return out.Bytes(), nil
}

// settingName returns, in lower case, the name that a line of a configuration file assigns to, or nothing if the line is
// empty, a comment or no assignment. Lines end with a line feed and with nothing else (guc-file.l).
func settingName(line []byte) string {
	line = bytes.TrimLeft(line, " \t\r")
	n := 0
	for n < len(line) && (nameChar(line[n], n == 0 || line[n-1] == '.') || n > 0 && line[n] == '.') {
		n++
	}
	return strings.ToLower(string(line[:n]))
}

// validSettingName tells whether name is an identifier, or several joined by dots, as in a setting of an extension.
func validSettingName(name string) bool {
	for part := range strings.SplitSeq(name, ".") {
		for i := range len(part) {
			if !nameChar(part[i], i == 0) {
				return false
			}
		}
		if part == "" {
			return false
		}
	}
	return true
}

// nameChar is LETTER, and where it is not the first LETTER_OR_DIGIT, of guc-file.l.
func nameChar(c byte, first bool) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c >= 0x80:
		return true
	}
	return !first && c >= '0' && c <= '9'
}
