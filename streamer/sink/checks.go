package sink

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// checks are what event_log does with each row of an insert that may refuse it.
type checks struct {
	derived     []string // SELECT expressions with their names: the columns that an insert computes
	names       []string // of those, quoted
	constraints []constraint
}

// constraint is CONSTRAINT name CHECK expression, both as ClickHouse writes them.
type constraint struct{ name, expression string }

// readChecks reads them from the server, because users add columns and constraints.
func (s *Sink) readChecks(ctx context.Context) (c checks, err error) {
	definition, err := s.definition(ctx)
	if err != nil {
		return c, err
	}
	c.constraints = constraintsOf(definition)
	rows, err := s.conn.Query(reading(ctx, 0), `SELECT name, type, default_kind, default_expression FROM system.columns
		WHERE database = currentDatabase() AND table = {table:String} AND default_kind != 'ALIAS' ORDER BY position`,
		clickhouse.Named("table", s.tables.EventLog))
	if err != nil {
		return c, fmt.Errorf("read the columns of %s: %w", s.table, classify(err))
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var name, typ, kind, expression string
		if err := rows.Scan(&name, &typ, &kind, &expression); err != nil {
			return c, fmt.Errorf("read the columns of %s: %w", s.table, err)
		}
		if slices.ContainsFunc(eventLog, func(ours col) bool { return ours.name == name }) {
			continue
		}
		if kind == "" || expression == "" {
			expression = "defaultValueOfTypeName(" + QuoteString(typ) + ")"
		}
		c.derived = append(c.derived, "CAST(("+expression+") AS "+typ+") AS "+Quote(name))
		c.names = append(c.names, Quote(name))
	}
	if err := rows.Err(); err != nil {
		return c, fmt.Errorf("read the columns of %s: %w", s.table, classify(err))
	}
	return c, nil
}

// definition is the CREATE TABLE of event_log.
func (s *Sink) definition(ctx context.Context) (definition string, err error) {
	err = s.conn.QueryRow(reading(ctx, 0), "SELECT any(create_table_query) FROM system.tables WHERE database = currentDatabase() AND name = {table:String}",
		clickhouse.Named("table", s.tables.EventLog)).Scan(&definition)
	if err != nil {
		return "", fmt.Errorf("read the definition of %s: %w", s.table, classify(err))
	}
	return definition, nil
}

const refusedBy = "`diehard refused by`"

// query selects those rows of a table that violate a constraint, and which, the first is 1. It
// fails like the insert on rows from which a column cannot be computed: the server computes columns
// of any type when it is asked for the size of an array of them. Rows with 0 violate none.
func (c checks) query(table string) string {
	violated := "0"
	if len(c.constraints) > 0 {
		list := make([]string, len(c.constraints))
		for i, x := range c.constraints {
			list[i] = fmt.Sprintf("NOT ifNull(toUInt8(%s), 0), %d", x.expression, i+1)
		}
		violated = "multiIf(" + strings.Join(list, ", ") + ", 0)"
	}
	columns := strings.Join(append([]string{"*"}, c.derived...), ", ")
	size := "1"
	if len(c.names) > 0 {
		size = "byteSize([" + strings.Join(c.names, "], [") + "])"
	}
	return "SELECT commit_lsn, commit_seq, toUInt32(" + refusedBy + ") FROM (" +
		"SELECT commit_lsn, commit_seq, " + violated + " AS " + refusedBy + ", " + size + " AS size FROM (" +
		"SELECT " + columns + " FROM " + table + ")) WHERE size = 0 OR " + refusedBy + " > 0"
}

// maxExpression bounds what a dead letter quotes of a constraint, in bytes.
const maxExpression = 500

// reason is why a row is a dead letter that violates the constraint.
func (x constraint) reason(table string) string {
	expression := x.expression
	if len(expression) > maxExpression {
		expression = strings.ToValidUTF8(expression[:maxExpression], "") + "…"
	}
	return fmt.Sprintf("code: %d, message: Constraint %s for table %s is violated. Constraint expression: %s. (VIOLATED_CONSTRAINT)",
		codeViolatedConstraint, x.name, table, expression)
}

// constraintsOf finds them in a CREATE TABLE.
func constraintsOf(definition string) (list []constraint) {
	for _, item := range elementsOf(definition) {
		rest, ok := strings.CutPrefix(item, "CONSTRAINT ")
		if !ok {
			continue
		}
		end := endOfName(rest)
		if expression, ok := strings.CutPrefix(rest[end:], " CHECK "); ok {
			list = append(list, constraint{rest[:end], expression})
		}
	}
	return list
}

// elementsOf cuts what is between the first parentheses of a statement at its commas.
func elementsOf(statement string) (list []string) {
	depth, begin := 0, 0
	for i := 0; i < len(statement); i++ {
		switch statement[i] {
		case '\'', '`', '"':
			i = endOfQuoted(statement, i)
		case '(', '[', '{':
			if depth++; depth == 1 {
				begin = i + 1
			}
		case ')', ']', '}':
			if depth--; depth == 0 {
				return append(list, strings.TrimSpace(statement[begin:i]))
			}
		case ',':
			if depth == 1 {
				list = append(list, strings.TrimSpace(statement[begin:i]))
				begin = i + 1
			}
		}
	}
	return nil
}

// endOfQuoted returns the index of the quote that ends what begins at i.
func endOfQuoted(s string, i int) int {
	quote := s[i]
	for i++; i < len(s) && s[i] != quote; i++ {
		if s[i] == '\\' {
			i++
		}
	}
	return i
}

func endOfName(s string) int {
	if s != "" && (s[0] == '`' || s[0] == '"') {
		return min(len(s), endOfQuoted(s, 0)+1)
	}
	if i := strings.IndexByte(s, ' '); i >= 0 {
		return i
	}
	return len(s)
}
