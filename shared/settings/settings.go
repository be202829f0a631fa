// Package settings reads the environment into structs and documents it.
//
// The struct tags of a field are the only description of a variable: parsing,
// error messages, .env.example and the README's table all come from them.
//
//	type Config struct {
//		Rows  int           `env:"CLICKHOUSE_BATCH_SIZE" envDefault:"100000" min:"1" doc:"rows of a batch"`
//		Every time.Duration `env:"CLICKHOUSE_FLUSH_INTERVAL" envDefault:"1s" min:"1ms" doc:"longest wait of a row for its batch"`
//		Key   string        `env:"API_KEY,required" secret:"true" doc:"key of the caller"`
//		telemetry.LogConfig // structs without an env tag are parts of the whole
//	}
//
// Tags: env (name, and ",required"), envDefault, doc (meaning, unit, special
// values), min and max (numbers, durations, [Bytes]), oneof (words separated by
// a space), secret ("true": the value is never printed), example (for
// .env.example, where there is no default).
//
// A struct with a method Validate() error is asked once all of its variables
// could be read; it reports what tags cannot say, one error a line.
package settings

import (
	"errors"
	"fmt"
	"os"
	"reflect"
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
	problems := parseStruct(reflect.ValueOf(&config).Elem(), environment)
	if len(problems) == 0 {
		return config, nil
	}
	noun := "settings are"
	if len(problems) == 1 {
		noun = "setting is"
	}
	return config, fmt.Errorf("%s: %d %s wrong:\n  %s", what, len(problems), noun, strings.Join(problems, "\n  "))
}

// parseStruct fills the struct v and returns a line for each problem.
func parseStruct(v reflect.Value, environment map[string]string) []string {
	var problems []string
	for i := range v.NumField() {
		field := v.Type().Field(i)
		switch {
		case !field.IsExported():
		case field.Tag.Get("env") != "":
			if problem := parseField(v.Field(i), field, environment); problem != "" {
				problems = append(problems, problem)
			}
		case field.Type.Kind() == reflect.Struct:
			problems = append(problems, parseStruct(v.Field(i), environment)...)
		}
	}
	if len(problems) == 0 {
		problems = validate(v)
	}
	return problems
}

// parseField reads one variable into target. It gives the field to the env
// library in a struct of its own, so that an error is surely this variable's.
func parseField(target reflect.Value, field reflect.StructField, environment map[string]string) string {
	variable := describe(field)
	if variable.Required && environment[variable.Name] == "" {
		return complaint(variable, "is not set")
	}
	alone := reflect.New(reflect.StructOf([]reflect.StructField{field}))
	if err := env.ParseWithOptions(alone.Interface(), env.Options{Environment: environment}); err != nil {
		if errors.Is(err, env.NoParserError{}) || errors.Is(err, env.NoSupportedTagOptionError{}) {
			return fmt.Sprintf("%s cannot be read: %v", variable.Name, err)
		}
		return complaint(variable, shown(variable, environment)+" is not "+kindOf(field.Type))
	}
	value := alone.Elem().Field(0)
	switch broken, err := outOfBounds(value, field); {
	case err != nil:
		return fmt.Sprintf("%s cannot be checked: %v", variable.Name, err)
	case broken != "":
		return complaint(variable, shown(variable, environment)+" "+broken)
	}
	target.Set(value)
	return ""
}

func complaint(v Var, problem string) string {
	line := v.Name + " " + problem
	if v.Doc != "" {
		line += "; expected: " + v.Doc
	}
	return line
}

// shown is the value as a message may show it.
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
