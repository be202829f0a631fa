package main

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ClickHouse/clickhouse-go/v2/lib/chcol"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// newCells makes something to scan each column into.
func newCells(columns []driver.ColumnType) []any {
	cells := make([]any, len(columns))
	for i, column := range columns {
		if cells[i] = reflect.New(column.ScanType()).Interface(); column.ScanType() == reflect.TypeFor[chcol.JSON]() {
			cells[i] = new(document)
		}
	}
	return cells
}

// document is a value of type JSON, as JSON.
type document string

// DeserializeClickHouseJSON implements chcol.JSONDeserializer.
func (d *document) DeserializeClickHouseJSON(value *chcol.JSON) error {
	encoded, err := json.Marshal(value.NestedMap())
	*d = document(encoded)
	return err
}

// Scan implements sql.Scanner, for servers that send JSON as text.
func (d *document) Scan(value any) error {
	*d = document(fmt.Sprintf("%s", value))
	return nil
}

func (d document) String() string { return oneLine(string(d)) }

// formatCell renders what a cell of newCells points to, on one line.
func formatCell(cell any, databaseType string) string {
	value := reflect.ValueOf(cell).Elem()
	for value.Kind() == reflect.Pointer || value.Kind() == reflect.Interface {
		if value.IsNil() {
			return "NULL"
		}
		value = value.Elem()
	}
	switch v := value.Interface().(type) {
	case time.Time:
		return unwrapped(v).Format(timeLayout(databaseType))
	case fmt.Stringer:
		return v.String()
	case string:
		return oneLine(v)
	case []byte:
		return oneLine(string(v))
	default:
		return oneLine(formatOther(value))
	}
}

// unwrapped is the time that the driver read, whose nanoseconds overflow after the year
// 2262. ClickHouse has no time before 1900.
func unwrapped(t time.Time) time.Time {
	if t.Year() < 1900 {
		for range 4 {
			t = t.Add(1 << 62)
		}
	}
	return t
}

// timeLayout shows the digits that the type has.
func timeLayout(databaseType string) string {
	switch {
	case strings.Contains(databaseType, "DateTime64(3"):
		return "2006-01-02 15:04:05.000"
	case strings.Contains(databaseType, "DateTime64"):
		return "2006-01-02 15:04:05.000000"
	case strings.Contains(databaseType, "DateTime"):
		return time.DateTime
	default:
		return time.DateOnly
	}
}

// formatOther writes collections as JSON, all else as Go does.
func formatOther(value reflect.Value) string {
	switch value.Kind() {
	case reflect.Slice, reflect.Array, reflect.Map:
		if encoded, err := json.Marshal(value.Interface()); err == nil {
			return string(encoded)
		}
	default:
	}
	return fmt.Sprint(value.Interface())
}

// oneLine quotes text that would break the table or the terminal.
func oneLine(text string) string {
	if utf8.ValidString(text) && strings.IndexFunc(text, unicode.IsControl) < 0 {
		return text
	}
	return fmt.Sprintf("%q", text)
}

// printTable aligns the columns under their names.
func printTable(out io.Writer, names []string, lines [][]string) {
	widths := make([]int, len(names))
	for _, line := range append([][]string{names}, lines...) {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	rule := make([]string, len(names))
	for i, width := range widths {
		rule[i] = strings.Repeat("─", width)
	}
	for _, line := range append([][]string{names, rule}, lines...) {
		var text strings.Builder
		for i, cell := range line {
			text.WriteString(cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
		fmt.Fprintln(out, strings.TrimRight(text.String(), " "))
	}
}
