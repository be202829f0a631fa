package chserver

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"
)

// request is a query packet made ready to run.
type request struct {
	statement  statement
	params     []parameter
	compressed bool
	running    *running
}

// errBroken means that the position in the client's stream is lost.
var errBroken = errors.New("protocol")

// handleQuery reads a query packet, runs it and answers. An error is one of the
// connection; what is wrong with the query goes to the client as an exception.
func (c *client) handleQuery() error {
	var packet proto.Query
	if err := packet.DecodeAware(c.r, revision); err != nil {
		return fmt.Errorf("read query: %w", err)
	}
	c.compressed = packet.Compression == proto.CompressionEnabled
	tables, err := c.readExternalTables()
	defer closeAll(tables)
	if err != nil {
		return err
	}
	refused := c.runQuery(packet, tables)
	switch {
	case refused == nil:
		return c.out.endOfStream()
	case errors.Is(refused, errBroken):
		_ = c.out.exception(asException(refused)) // the client may have disconnected, which is then the reason
		return refused
	default:
		return c.out.exception(asException(refused))
	}
}

func (c *client) runQuery(packet proto.Query, tables []*externalTable) error {
	q := &request{statement: parseStatement(packet.Body), compressed: c.compressed, running: c.newRunning(packet)}
	for _, p := range packet.Parameters {
		q.params = append(q.params, parameter{name: p.Key, value: unquoteDump(p.Value)})
	}
	if err := checkAccess(packet.Body); err != nil {
		return err
	}
	if err := c.replica.registry.add(q.running); err != nil {
		return err
	}
	defer c.replica.registry.end(q.running)
	if done, err := c.replica.fetch(packet.Body); done || err != nil {
		return err
	}
	if err := c.applySettings(q, packet.Settings); err != nil {
		return err
	}
	if q.statement.verb == "CREATE" || q.statement.verb == "ATTACH" {
		c.server.hasViews.Store(c.server.hasViews.Load() || strings.Contains(strings.ToUpper(packet.Body), "MATERIALIZED"))
	}
	switch {
	case q.statement.kind == statementInsertData:
		defer c.releaseMemory()
		return c.insertData(q)
	case q.statement.verb == "INSERT":
		return c.replica.insert(func() error { return c.execute(q) })
	default:
		return c.withExternalTables(tables, func() error { return c.execute(q) })
	}
}

func (c *client) newRunning(packet proto.Query) *running {
	id := packet.ID
	if id == "" {
		id = uuid.NewString()
	}
	return &running{
		id: id, number: c.server.queries.Add(1), user: c.user, address: c.conn.RemoteAddr().String(), sql: packet.Body,
		started: time.Now(), done: make(chan struct{}),
	}
}

// execute runs a statement that needs no more data from the client, and cancels it
// when the client disconnects.
func (c *client) execute(q *request) error {
	if err := q.running.begin(); err != nil {
		return err
	}
	stop := c.watch(func() { c.replica.cancel(q.running) })
	defer stop()
	result := &resultWriter{out: &c.out, compressed: q.compressed, types: c.blocks.types}
	switch q.statement.kind {
	case statementSelect:
		return c.selectRows(q, result)
	case statementKill:
		return c.kill(q, result)
	default:
		if err := c.session.query(q.engineSQL(q.statement.sql), q.params, result.write); err != nil {
			return err
		}
		return result.beginEmpty(q.statement)
	}
}

// engineSQL marks sql, so that the query can be found in the engine's own list.
// Rows in the statement would be read together with the mark.
func (q *request) engineSQL(sql string) string {
	if q.statement.inline {
		return sql
	}
	return strings.TrimRight(sql, "; \t\r\n") + "\n" + q.running.marker()
}

func (c *client) selectRows(q *request, result *resultWriter) error {
	sql := c.replica.query(q.statement.sql)
	err := c.session.stream(q.engineSQL(sql), q.params, func(native []byte) error {
		if q.running.killed() {
			return cancelled()
		}
		return result.write(native)
	})
	if err != nil || result.started {
		return err
	}
	d, err := c.describe("("+sql+"\n)", q.params)
	if err != nil {
		return err
	}
	columns := make([]columnInfo, len(d.names))
	for i, name := range d.names {
		columns[i] = columnInfo{name, d.types[i]}
	}
	return result.begin(headerBlock(columns))
}

// beginEmpty sends the header of a SHOW without rows. The engine does not return
// one; every SHOW that can be empty has one column, name.
func (w *resultWriter) beginEmpty(st statement) error {
	if w.started || st.verb != "SHOW" {
		return nil
	}
	return w.begin(headerBlock([]columnInfo{{"name", "String"}}))
}

// unquoteDump takes the quotes and one level of escapes off a parameter's value.
func unquoteDump(s string) string {
	if len(s) < 2 || s[0] != '\'' || s[len(s)-1] != '\'' {
		return s
	}
	return dumpUnescaper.Replace(s[1 : len(s)-1])
}

var dumpUnescaper = strings.NewReplacer(
	`\\`, `\`, `\'`, `'`, `\n`, "\n", `\t`, "\t", `\r`, "\r", `\0`, "\x00", `\b`, "\b", `\f`, "\f")

// backquote renders a name as an SQL identifier.
func backquote(name string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(name) + "`"
}
