package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/spf13/cobra"

	"diehard/shared/clickhouse"
)

func queryCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "query SQL",
		Short: "Run a query on ClickHouse and print its result as a table",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sql := strings.TrimSpace(strings.Join(args, " "))
			if sql == "" {
				return errors.New(`no query given: make query SQL="SELECT * FROM event_log LIMIT 10"`)
			}
			return query(cmd.Context(), cmd.OutOrStdout(), sql)
		},
	}
}

// query runs one statement and prints its rows, how many, and how long it took.
func query(ctx context.Context, out io.Writer, sql string) error {
	cfg, err := queryTarget()
	if err != nil {
		return err
	}
	conn, err := clickhouse.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	began := time.Now()
	if !returnsRows(sql) {
		if err := conn.Exec(ctx, sql); err != nil {
			return err
		}
		_, err := fmt.Fprintf(out, "ok (%s)\n", time.Since(began).Round(time.Millisecond))
		return err
	}
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return err
	}
	defer rows.Close()
	lines, err := readRows(rows)
	if err != nil {
		return err
	}
	printTable(out, rows.Columns(), lines)
	noun := "rows"
	if len(lines) == 1 {
		noun = "row"
	}
	_, err = fmt.Fprintf(out, "(%d %s, %s)\n", len(lines), noun, time.Since(began).Round(time.Millisecond))
	return err
}

// queryTarget returns the server of CLICKHOUSE_HOST, or else the embedded one.
func queryTarget() (clickhouse.Config, error) {
	server, err := readDatabases()
	if err != nil {
		return clickhouse.Config{}, err
	}
	if external, err := externalClickHouse(); external || err != nil {
		return server.ClickHouse, err
	}
	engine, err := runningClickHouse()
	if err != nil {
		return clickhouse.Config{}, err
	}
	return engine.Config("default"), nil
}

// returnsRows reports whether a statement returns rows.
func returnsRows(sql string) bool {
	first, _, _ := strings.Cut(strings.TrimLeft(sql, "( \t\n"), " ")
	switch strings.ToUpper(strings.TrimSpace(first)) {
	case "SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK", "TABLE", "FROM", "VALUES":
		return true
	default:
		return false
	}
}

func readRows(rows driver.Rows) ([][]string, error) {
	var lines [][]string
	columns := rows.ColumnTypes()
	for rows.Next() {
		cells := newCells(columns)
		if err := rows.Scan(cells...); err != nil {
			return nil, err
		}
		line := make([]string, len(cells))
		for i, cell := range cells {
			line[i] = formatCell(cell, columns[i].DatabaseTypeName())
		}
		lines = append(lines, line)
	}
	return lines, rows.Err()
}
