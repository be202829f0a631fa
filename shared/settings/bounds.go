package settings

import (
	"cmp"
	"encoding"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// kindOf describes the values of type t.
func kindOf(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "a duration such as 500ms, 10s or 5m"
	case reflect.TypeFor[Bytes]():
		return "a size such as 64KiB, 8MiB or 1048576"
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return "a valid value"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number in range"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number in range, 0 or more"
	case reflect.Float32, reflect.Float64:
		return "a number"
	default:
		return "a valid value"
	}
}

// outOfBounds says which of the tags oneof, form, min and max value violates, or "".
// The error is about a tag that cannot be parsed.
func outOfBounds(value reflect.Value, field reflect.StructField) (string, error) {
	if words := strings.Fields(field.Tag.Get("oneof")); len(words) > 0 {
		if text := fmt.Sprint(value.Interface()); text != "" && !slices.Contains(words, text) {
			return "is not one of " + strings.Join(words, ", "), nil
		}
	}
	switch form := field.Tag.Get("form"); {
	case form != "" && form != "address":
		return "", fmt.Errorf("unknown form %q", form)
	case form == "address" && value.String() != "" && !isAddress(value.String()):
		return "is not HOST:PORT, such as 127.0.0.1:8080, or :8080 for every address of this machine", nil
	}
	if text, ok := field.Tag.Lookup("min"); ok {
		if order, err := compare(value, text); order < 0 || err != nil {
			return "is less than " + text, err
		}
	}
	if text, ok := field.Tag.Lookup("max"); ok {
		if order, err := compare(value, text); order > 0 || err != nil {
			return "is more than " + text, err
		}
	}
	return "", nil
}

// isAddress reports whether text is an address to listen on: HOST:PORT or :PORT.
func isAddress(text string) bool {
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// compare orders value and a bound, which is text in the syntax of value's type.
func compare(value reflect.Value, text string) (int, error) {
	field := reflect.StructField{Name: "Bound", Type: value.Type(), Tag: `env:"BOUND"`}
	holder := reflect.New(reflect.StructOf([]reflect.StructField{field}))
	err := env.ParseWithOptions(holder.Interface(), env.Options{Environment: map[string]string{"BOUND": text}})
	if err != nil {
		return 0, fmt.Errorf("bound %q: %w", text, err)
	}
	bound := holder.Elem().Field(0)
	switch {
	case value.CanInt():
		return cmp.Compare(value.Int(), bound.Int()), nil
	case value.CanUint():
		return cmp.Compare(value.Uint(), bound.Uint()), nil
	case value.CanFloat():
		return cmp.Compare(value.Float(), bound.Float()), nil
	default:
		return 0, fmt.Errorf("bound %q: %s has no order", text, value.Type())
	}
}
