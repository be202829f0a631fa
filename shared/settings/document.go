package settings

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Var describes a variable of the environment.
type Var struct {
	Name, Default, Doc string
	Example            string // shown in .env.example where there is no default
	Required           bool   // the program does not start without it
	Secret             bool   // its value is never printed
}

// Vars returns the variables of T in the order of its fields, those of
// embedded and nested structs in their place.
func Vars[T any]() []Var {
	return varsOf(reflect.TypeFor[T]())
}

func varsOf(t reflect.Type) []Var {
	var vars []Var
	for i := range t.NumField() {
		field := t.Field(i)
		switch {
		case !field.IsExported():
		case field.Tag.Get("env") != "":
			vars = append(vars, describe(field))
		case field.Type.Kind() == reflect.Struct:
			vars = append(vars, varsOf(field.Type)...)
		}
	}
	return vars
}

func describe(field reflect.StructField) Var {
	parts := strings.Split(field.Tag.Get("env"), ",")
	doc := field.Tag.Get("doc")
	if words := strings.Fields(field.Tag.Get("oneof")); len(words) > 0 {
		doc = strings.TrimSpace(doc + " (one of " + strings.Join(words, ", ") + ")")
	}
	return Var{
		Name:     parts[0],
		Default:  field.Tag.Get("envDefault"),
		Doc:      doc,
		Example:  field.Tag.Get("example"),
		Required: slices.Contains(parts[1:], "required") || slices.Contains(parts[1:], "notEmpty"),
		Secret:   field.Tag.Get("secret") == "true",
	}
}

// Section is a titled group of variables in .env.example.
type Section struct {
	Title string
	Vars  []Var
}

// Table returns the variables of T as a Markdown table.
func Table[T any]() string {
	return TableOf(Vars[T]())
}

// TableOf returns variables as a Markdown table, each name once.
func TableOf(vars []Var) string {
	var out strings.Builder
	out.WriteString("| Variable | Default | Meaning |\n|---|---|---|\n")
	for _, v := range firstOfEach(vars, map[string]bool{}) {
		fmt.Fprintf(&out, "| `%s` | %s | %s |\n", v.Name, defaultCell(v), strings.ReplaceAll(sentence(v.Doc), "|", `\|`))
	}
	return out.String()
}

func defaultCell(v Var) string {
	switch {
	case v.Required:
		return "required"
	case v.Default == "":
		return ""
	default:
		return "`" + v.Default + "`"
	}
}

// EnvFile returns the text of .env.example: every variable with its meaning,
// commented out, so that a copy changes nothing until a line is edited. A
// variable that several sections share is listed in the first.
func EnvFile(sections ...Section) string {
	var out strings.Builder
	out.WriteString("# Settings of Die Hard. Each line shows a variable's default (or an example);\n" +
		"# remove the # in front of a name to change it.\n#\n" +
		"# The programs and make read the environment alone. docker compose reads a copy\n" +
		"# of this file that is called .env; for the others: set -a; . ./.env; set +a\n" +
		"# (there a value with spaces, ?, & or $ needs 'quotes', which compose takes, too).\n")
	seen := map[string]bool{}
	for _, section := range sections {
		vars := firstOfEach(section.Vars, seen)
		if len(vars) == 0 {
			continue
		}
		fmt.Fprintf(&out, "\n# ---- %s ----\n", section.Title)
		for _, v := range vars {
			writeEnv(&out, v)
		}
	}
	return out.String()
}

func writeEnv(out *strings.Builder, v Var) {
	doc := sentence(v.Doc)
	if v.Required {
		doc += " (required)"
	}
	fmt.Fprintf(out, "\n# %s\n#%s=%s\n", doc, v.Name, cmp.Or(v.Default, v.Example))
}

// firstOfEach returns the variables that are not in seen, and adds them to it.
func firstOfEach(vars []Var, seen map[string]bool) []Var {
	var kept []Var
	for _, v := range vars {
		if !seen[v.Name] {
			seen[v.Name] = true
			kept = append(kept, v)
		}
	}
	return kept
}

// sentence returns doc with its first letter in upper case.
func sentence(doc string) string {
	first, size := utf8.DecodeRuneInString(doc)
	if size == 0 {
		return doc
	}
	return string(unicode.ToUpper(first)) + doc[size:]
}
