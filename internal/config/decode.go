package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// decoder fills a Config from a syntax tree. The library's own decoder stops at the first error and knows nothing of
// paths; this one goes on, so that one run reports everything.
type decoder struct {
	problems []Problem
	at       map[string]position // where each key of the file stands, by path
}

type position struct{ line, column int }

func (d *decoder) add(path string, tk *token.Token, hint, format string, args ...any) {
	p := Problem{Path: path, Text: fmt.Sprintf(format, args...), Hint: hint}
	if tk != nil && tk.Position != nil {
		p.Line, p.Column = tk.Position.Line, tk.Position.Column
	}
	d.problems = append(d.problems, p)
}

// failed reports whether decoding already complained about path or something in it.
func (d *decoder) failed(path string) bool {
	return slices.ContainsFunc(d.problems, func(p Problem) bool {
		return p.Path == path || path != "" && strings.HasPrefix(p.Path, path+".")
	})
}

// locate adds to p where the file mentions its key.
func (d *decoder) locate(p Problem) Problem {
	if pos, ok := d.at[p.Path]; ok {
		p.Line, p.Column = pos.line, pos.column
	}
	return p
}

// file decodes a whole file into c, which holds the defaults.
func (d *decoder) file(data []byte, c *Config) {
	f, err := parser.ParseBytes(data, 0)
	if err != nil {
		// The library's full text quotes the lines around the error, which may hold anything: only its message is used.
		var ye yaml.Error
		if errors.As(err, &ye) {
			d.add("", ye.GetToken(), "", "not valid YAML: %s", ye.GetMessage())
		} else {
			d.add("", nil, "", "not valid YAML")
		}
		return
	}
	seen := false
	for _, doc := range f.Docs {
		if doc == nil || doc.Body == nil {
			continue
		}
		if seen {
			d.add("", doc.Body.GetToken(), "keep what stands before the second `---`", "more than one document in the file")
			return
		}
		seen = true
		d.value(doc.Body, "", reflect.ValueOf(c).Elem())
	}
}

// value decodes node into v. A null leaves v at its default, as a key without a value would suggest.
func (d *decoder) value(node ast.Node, path string, v reflect.Value) {
	switch node.(type) {
	case *ast.NullNode, *ast.CommentGroupNode:
		return
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.add(path, node.GetToken(), "write the value out", "anchors, aliases, merges and tags are not supported")
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if text, ok := d.scalar(node, path, "a single value"); ok {
			if err := u.UnmarshalText([]byte(text)); err != nil {
				d.add(path, node.GetToken(), "", "%s", err)
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.section(node, path, v)
	case reflect.Map:
		d.mapping(node, path, v)
	case reflect.Slice:
		d.list(node, path, v)
	case reflect.String:
		if text, ok := d.scalar(node, path, "a text"); ok {
			v.SetString(text)
		}
	case reflect.Int:
		text, ok := d.scalar(node, path, "a whole number")
		if !ok {
			return
		}
		n, err := strconv.Atoi(text)
		if err != nil {
			d.add(path, node.GetToken(), "", "%q is not a whole number", text)
			return
		}
		v.SetInt(int64(n))
	case reflect.Bool:
		b, ok := node.(*ast.BoolNode)
		if !ok {
			d.add(path, node.GetToken(), "", "must be true or false (yes, no, on and off are only words)")
			return
		}
		v.SetBool(b.Value)
	default:
		// Reached only by a new kind of field in Config, which every test that loads a file would hit.
		panic(fmt.Sprintf("config: %s has a type that decode does not know: %s", path, v.Type()))
	}
}

// scalar returns the text of a single value as it stands in the file, so that the name 007 and the parameter 1.10 stay
// what was written.
func (d *decoder) scalar(node ast.Node, path, what string) (string, bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return node.GetToken().Value, true
	}
	d.add(path, node.GetToken(), "", "must be %s, not a list or a section", what)
	return "", false
}

// entries returns the keys and values of a section, after recording where each key stands.
func (d *decoder) entries(node ast.Node, path string) []*ast.MappingValueNode {
	var all []*ast.MappingValueNode
	switch n := node.(type) {
	case *ast.MappingNode:
		all = n.Values
	case *ast.MappingValueNode:
		all = []*ast.MappingValueNode{n}
	default:
		what := "the file"
		if path != "" {
			what = "this"
		}
		d.add(path, node.GetToken(), "", "%s must be a section of `key: value` lines", what)
		return nil
	}
	kept := all[:0:0]
	for _, e := range all {
		if _, ok := e.Key.(*ast.MergeKeyNode); ok {
			d.add(path, e.Key.GetToken(), "write the values out", "anchors, aliases, merges and tags are not supported")
			continue
		}
		tk := e.Key.GetToken()
		if tk.Position != nil {
			d.at[join(path, tk.Value)] = position{tk.Position.Line, tk.Position.Column}
		}
		kept = append(kept, e)
	}
	return kept
}

func (d *decoder) section(node ast.Node, path string, v reflect.Value) {
	fields := fieldsOf(v.Type())
	for _, e := range d.entries(node, path) {
		key := e.Key.GetToken().Value
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		if i < 0 {
			d.unknown(e.Key.GetToken(), path, key, fields)
			continue
		}
		d.value(e.Value, join(path, key), v.Field(fields[i].index))
	}
}

// mapping decodes a section whose keys are the user's own.
func (d *decoder) mapping(node ast.Node, path string, v reflect.Value) {
	m := reflect.MakeMap(v.Type())
	for _, e := range d.entries(node, path) {
		key := e.Key.GetToken().Value
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(e.Value, join(path, key), item)
		m.SetMapIndex(reflect.ValueOf(key), item)
	}
	if m.Len() > 0 {
		v.Set(m)
	}
}

func (d *decoder) list(node ast.Node, path string, v reflect.Value) {
	seq, ok := node.(*ast.SequenceNode)
	if !ok {
		d.add(path, node.GetToken(), "", "must be a list, as in [a, b]")
		return
	}
	list := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		p := fmt.Sprintf("%s[%d]", path, i)
		if tk := item.GetToken(); tk != nil && tk.Position != nil {
			d.at[p] = position{tk.Position.Line, tk.Position.Column}
		}
		d.value(item, p, list.Index(i))
	}
	if list.Len() > 0 {
		v.Set(list)
	}
}

// field is one key of a section.
type field struct {
	key   string
	index int
	typ   reflect.Type
}

// fieldsOf lists the keys of a section's type, in its order.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		key, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if key == "" || key == "-" {
			continue
		}
		fields = append(fields, field{key, i, t.Field(i).Type})
	}
	return fields
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
