// Package settings reads the environment into structs and documents it.
//
// The struct tags of a field are the only description of a variable: parsing,
// error messages, .env.example and the README's table all come from them.
//
//	type Config struct {
//		Rows  int           `env:"CLICKHOUSE_BATCH_SIZE" envDefault:"100000" min:"1" doc:"rows of a batch"`
//		Every time.Duration `env:"CLICKHOUSE_FLUSH_INTERVAL" envDefault:"1s" min:"1ms" doc:"longest time that a row waits for its batch"`
//		Key   string        `env:"API_KEY,required" secret:"true" doc:"key of the caller"`
//		telemetry.LogConfig // structs without an env tag are parts of the whole
//	}
//
// Tags: env (name, and ",required"), envDefault, doc (meaning, unit, special
// values), min and max (numbers, durations, [Bytes]), oneof (words separated by
// a space), form ("address": an address to listen on), secret ("true": the value
// is never printed), example (for .env.example if there is no default).
//
// A struct may have a method Validate() error for what tags cannot say: one error
// per line, each naming its variables. A variable that is wrong by itself has its
// default there, and errors that name it are left out.
package settings

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/caarlos0/env/v11"
)

// Parse reads T from the environment. what names the program in the message.
//
// The error names every bad variable with its value (unless secret), what is
// wrong with it and what is expected. An empty variable counts as not set.
func Parse[T any](what string) (T, error) {
	return ParseFrom[T](what, env.ToMap(os.Environ()))
}

// ParseFrom is Parse for a given environment.
func ParseFrom[T any](what string, environment map[string]string) (T, error) {
	var config T
	r := reading{environment: environment, bad: map[string]bool{}}
	r.readStruct(reflect.ValueOf(&config).Elem())
	if len(r.problems) == 0 {
		return config, nil
	}
	noun := "settings are"
	if len(r.problems) == 1 {
		noun = "setting is"
	}
	return config, fmt.Errorf("%s: %d %s wrong:\n  %s", what, len(r.problems), noun, strings.Join(r.problems, "\n  "))
}

// reading is one pass over the environment.
type reading struct {
	environment map[string]string
	bad         map[string]bool // names of variables that are wrong by themselves
	problems    []string        // a line each
}

// readStruct fills the struct v, nested structs first, so that Validate is called
// when all variables are known.
func (r *reading) readStruct(v reflect.Value) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		switch {
		case !field.IsExported():
		case field.Tag.Get("env") != "":
			r.readField(v.Field(i), field)
		case field.Type.Kind() == reflect.Struct:
			r.readStruct(v.Field(i))
		}
	}
	for _, problem := range validate(v) {
		if !r.isReported(problem) {
			r.problems = append(r.problems, problem)
		}
	}
}

// readField reads one variable into target, which gets the default if the
// variable is wrong.
func (r *reading) readField(target reflect.Value, field reflect.StructField) {
	value, problem := parseField(field, r.environment)
	if problem != "" {
		r.bad[describe(field).Name] = true
		r.problems = append(r.problems, problem)
		value, problem = parseField(field, map[string]string{}) // a nil map means the process environment
	}
	if problem == "" {
		target.Set(value)
	}
}

var variableNames = regexp.MustCompile(`\b[A-Z][A-Z0-9_]+\b`)

// isReported reports whether a line of Validate names a variable that is wrong by itself.
func (r *reading) isReported(line string) bool {
	return slices.ContainsFunc(variableNames.FindAllString(line, -1), func(name string) bool { return r.bad[name] })
}

// parseField reads one variable. The env library gets a struct of this field alone,
// so that an error belongs to this variable.
func parseField(field reflect.StructField, environment map[string]string) (value reflect.Value, problem string) {
	variable := describe(field)
	if variable.Required && environment[variable.Name] == "" {
		return value, complaint(variable, "is not set")
	}
	alone := reflect.New(reflect.StructOf([]reflect.StructField{field}))
	if err := env.ParseWithOptions(alone.Interface(), env.Options{Environment: environment}); err != nil {
		if errors.Is(err, env.NoParserError{}) || errors.Is(err, env.NoSupportedTagOptionError{}) {
			return value, fmt.Sprintf("%s cannot be read: %v", variable.Name, err)
		}
		return value, complaint(variable, shown(variable, environment)+" is not "+kindOf(field.Type))
	}
	value = alone.Elem().Field(0)
	switch broken, err := outOfBounds(value, field); {
	case err != nil:
		return value, fmt.Sprintf("%s cannot be checked: %v", variable.Name, err)
	case broken != "":
		return value, complaint(variable, shown(variable, environment)+" "+broken)
	}
	return value, ""
}

func complaint(v Var, problem string) string {
	line := v.Name + " " + problem
	if v.Doc != "" {
		line += "; expected: " + v.Doc
	}
	return line
}

// shown returns the value for a message, unless it is secret.
func shown(v Var, environment map[string]string) string {
	if v.Secret {
		return "(secret, not shown)"
	}
	if value := environment[v.Name]; value != "" {
		return fmt.Sprintf("= %q", value)
	}
	return fmt.Sprintf("= %q (default)", v.Default)
}

func validate(v reflect.Value) []string {
	checked, ok := v.Addr().Interface().(interface{ Validate() error })
	if !ok {
		return nil
	}
	if err := checked.Validate(); err != nil {
		return strings.Split(err.Error(), "\n")
	}
	return nil
}
