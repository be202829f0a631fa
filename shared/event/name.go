package event

import (
	"reflect"
	"strings"
	"sync"
	"unicode"
)

// names keeps what nameOf found: a program has few event types.
var names sync.Map // reflect.Type → string

// nameOf returns the snake_case name of t, or "" if t has no name.
func nameOf(t reflect.Type) string {
	if name, ok := names.Load(t); ok {
		return name.(string)
	}
	named := t
	for named.Kind() == reflect.Pointer {
		named = named.Elem()
	}
	name, _, _ := strings.Cut(named.Name(), "[") // type arguments are no part of it
	if named.PkgPath() == "" {                   // string, int, ...: a kind, not an event
		name = ""
	}
	name = snakeCase(name)
	names.Store(t, name)
	return name
}

// snakeCase splits a Go name into words: UserCreated is user_created,
// HTTPRequestDone is http_request_done.
func snakeCase(name string) string {
	runes := []rune(name)
	var b strings.Builder
	for i, r := range runes {
		if i > 0 && startsWord(runes, i) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// startsWord reports whether a word begins at runes[i], i > 0: at an upper-case
// rune after anything else (userCreated), and at the last upper-case rune
// before a lower-case one (HTTPRequest).
func startsWord(runes []rune, i int) bool {
	if !unicode.IsUpper(runes[i]) || runes[i-1] == '_' {
		return false
	}
	afterLower := !unicode.IsUpper(runes[i-1])
	beforeLower := i+1 < len(runes) && unicode.IsLower(runes[i+1])
	return afterLower || beforeLower
}
