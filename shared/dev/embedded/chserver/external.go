package chserver

import (
	"fmt"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// externalTable is a table that a client sends with its query. For as long as the query
// runs, the engine has it as a temporary table of the client's session.
type externalTable struct {
	name    string
	columns []columnInfo
	spool   spool
}

// readExternalTables reads the tables that come with a query, up to the empty block.
func (c *client) readExternalTables() (tables []*externalTable, err error) {
	for {
		code, err := c.in.ReadByte()
		if err != nil {
			return tables, fmt.Errorf("read query data: %w", err)
		}
		if proto.ClientCode(code) != proto.ClientCodeData {
			return tables, fmt.Errorf("read query data: unexpected packet %d", code)
		}
		t := new(externalTable)
		rows, err := c.readTable(t)
		if err != nil {
			t.spool.close()
			return tables, err
		}
		if rows < 0 {
			t.spool.close()
			return tables, nil
		}
		tables = append(tables, t)
	}
}

// readTable reads the rest of a Data packet as t; -1 for an empty block.
func (c *client) readTable(t *externalTable) (rows int, err error) {
	if t.name, err = c.r.Str(); err != nil {
		return 0, fmt.Errorf("read data: table name: %w", err)
	}
	if err := t.spool.start(); err != nil {
		return 0, err
	}
	rows, err = c.readBlock(c.compressed, &t.spool, func(column columnBytes) {
		t.columns = append(t.columns, columnInfo{column.name, column.typ})
	})
	if err != nil {
		return 0, err
	}
	return rows, t.spool.finish()
}

// withExternalTables runs a query that reads tables.
func (c *client) withExternalTables(tables []*externalTable, run func() error) error {
	defer c.dropExternalTables(tables)
	for _, t := range tables {
		if err := c.createExternalTable(t); err != nil {
			return err
		}
	}
	return run()
}

func (c *client) createExternalTable(t *externalTable) error {
	columns := make([]string, len(t.columns))
	for i, column := range t.columns {
		columns[i] = backquote(column.name) + " " + column.typ
	}
	err := c.session.exec("CREATE TEMPORARY TABLE " + backquote(t.name) + " (" + strings.Join(columns, ", ") + ") ENGINE = Memory")
	if err != nil || t.spool.size == 0 {
		return err
	}
	return c.session.exec("INSERT INTO " + backquote(t.name) + " FROM INFILE '" + t.spool.path() + "' FORMAT Native")
}

func (c *client) dropExternalTables(tables []*externalTable) {
	for _, t := range tables {
		_ = c.session.exec("DROP TEMPORARY TABLE IF EXISTS " + backquote(t.name))
	}
}

func closeAll(tables []*externalTable) {
	for _, t := range tables {
		t.spool.close()
	}
}
