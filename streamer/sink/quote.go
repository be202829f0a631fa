package sink

import "strings"

// Quote returns the name of a table or column for use in SQL. A table that streamer creates or
// writes must also pass clickhouse.QuoteIdentifier, as those of the settings have.
func Quote(name string) string { return "`" + nameEscaper.Replace(name) + "`" }

// QuoteString returns text as a string literal.
func QuoteString(text string) string { return "'" + stringEscaper.Replace(text) + "'" }

var (
	nameEscaper   = strings.NewReplacer(`\`, `\\`, "`", "\\`")
	stringEscaper = strings.NewReplacer(`\`, `\\`, `'`, `\'`)
)
