package storage

import (
	"strings"
	"unicode/utf8"
)

// Azure allows no control characters in the names of blobs, whose listing, being XML, has no place for most of them, and
// takes a backslash for a slash. Since the order of names must be that of keys, such a character is written as two, of which
// the first is the next lower one that can stand for itself, and that one is written as two likewise: 0x01 to 0x1F and the
// space begin with a space, "[" and the backslash with "[". The second is 0x21 more than the character is beyond the lowest
// of its group. The names of other keys are the keys. The prefix in the URL is never rewritten: see checkAzureURL.

// azureEscape gives the two characters that stand for c.
func azureEscape(c byte) (first, second byte, ok bool) {
	switch {
	case c <= ' ':
		return ' ', '!' + c, true
	case c == '[' || c == '\\':
		return '[', '!' + c - '[', true
	}
	return 0, 0, false
}

// azureUnescape is the reverse. What no azureEscape gave makes some character, whose own escape is another one.
func azureUnescape(first, second byte) byte {
	if first == '[' {
		return second - '!' + '['
	}
	return second - '!'
}

// azureName is the name that the blob of a key has below the prefix. It keeps order and beginnings: the name of a key's
// beginning is the beginning of its name.
func azureName(key string) string {
	var name strings.Builder
	for i := range len(key) {
		if first, second, ok := azureEscape(key[i]); ok {
			name.WriteByte(first)
			name.WriteByte(second)
		} else {
			name.WriteByte(key[i])
		}
	}
	return name.String()
}

// azureKey is the key of a blob with that name, if there can be one.
func azureKey(name string) (key string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == ' ' || c == '[' {
			if i++; i == len(name) {
				return "", false
			}
			c = azureUnescape(c, name[i])
		}
		b.WriteByte(c)
	}
	key = b.String()
	return key, CheckKey(key) == nil && azureName(key) == name
}

// azureText cuts a name where it stops being text, as one does that ends in the middle of a character: nothing else can be
// asked for.
func azureText(name string) string {
	for i := 0; i < len(name); {
		c, n := utf8.DecodeRuneInString(name[i:])
		if c == utf8.RuneError && n <= 1 || c < ' ' {
			return name[:i]
		}
		i += n
	}
	return name
}
