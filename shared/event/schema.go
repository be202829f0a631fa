package event

import (
	"fmt"
	"regexp"
	"strings"
)

// Schema is the PostgreSQL schema that holds the outbox. Empty is [DefaultSchema].
type Schema string

// DefaultSchema holds the outbox where OUTBOX_SCHEMA names no other.
const DefaultSchema Schema = "public"

// placeholder stands for the schema in the queries of [Schema.SQL].
const placeholder = "{outbox}"

// schemaName allows what needs no escaping inside double quotes, and stays in PostgreSQL's NAMEDATALEN.
var schemaName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,62}$`)

// UnmarshalText implements [encoding.TextUnmarshaler]. Names that PostgreSQL
// keeps for itself, and those with other characters than letters, digits, _ and -,
// are errors.
func (s *Schema) UnmarshalText(text []byte) error {
	name := string(text)
	if !schemaName.MatchString(name) || strings.HasPrefix(name, "pg_") || name == "information_schema" {
		return fmt.Errorf("%q is not a schema's name: use letters, digits, _ and -, at most 63", name)
	}
	*s = Schema(name)
	return nil
}

// Name returns the schema's name.
func (s Schema) Name() string {
	if s == "" {
		return string(DefaultSchema)
	}
	return string(s)
}

// Quoted returns the name as an identifier of SQL.
func (s Schema) Quoted() string {
	if s.Name() == string(DefaultSchema) {
		return s.Name() // reads better
	}
	return `"` + strings.ReplaceAll(s.Name(), `"`, `""`) + `"`
}

// SQL returns query with the schema where it says {outbox}:
//
//	schema.SQL("SELECT count(*) FROM {outbox}.outbox")
func (s Schema) SQL(query string) string {
	return strings.ReplaceAll(query, placeholder, s.Quoted())
}
