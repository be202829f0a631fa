package sink

// Quote returns the name of a table for use in SQL. CLICKHOUSE_EVENT_LOG_TABLE_NAME and
// its like are checked when they are parsed; check another name with
// clickhouse.QuoteIdentifier first.
func Quote(name string) string { return quote(name) }
