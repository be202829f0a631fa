package simpg

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgproto3"
)

// prepared is a parsed statement.
type prepared struct {
	sql       string
	statement *statement
}

// portal is a statement bound to its arguments.
type portal struct {
	prepared
	args    []any
	formats []int16
}

// handle answers one message of the client; false ends the session.
func (ses *session) handle(msg pgproto3.FrontendMessage) bool {
	switch m := msg.(type) {
	case *pgproto3.Query:
		return ses.simple(m.String)
	case *pgproto3.Terminate:
		return false
	case *pgproto3.Sync:
		ses.failed = false
		ses.ready()
		return ses.flush() == nil
	case *pgproto3.Flush:
		return ses.flush() == nil
	}
	if ses.failed {
		return true
	}
	if err := ses.extended(msg); err != nil {
		ses.failed = true
		ses.fail(err)
	}
	return true
}

func (ses *session) extended(msg pgproto3.FrontendMessage) error {
	switch m := msg.(type) {
	case *pgproto3.Parse:
		st, err := ses.server.lookup(m.Query)
		if err != nil {
			return err
		}
		ses.prepared[m.Name] = &prepared{m.Query, st}
		ses.send(&pgproto3.ParseComplete{})
	case *pgproto3.Describe:
		ses.describe(m)
	case *pgproto3.Bind:
		return ses.bind(m)
	case *pgproto3.Execute:
		return ses.execute(ses.portal)
	case *pgproto3.Close:
		delete(ses.prepared, m.Name)
		ses.send(&pgproto3.CloseComplete{})
	default:
		return &sqlError{pgerrcode.ProtocolViolation, fmt.Sprintf("the model does not know the message %T", msg)}
	}
	return nil
}

func (ses *session) describe(m *pgproto3.Describe) {
	var st *statement
	formats := []int16(nil)
	if m.ObjectType == 'S' {
		st = ses.prepared[m.Name].statement
		ses.send(&pgproto3.ParameterDescription{ParameterOIDs: st.params})
	} else {
		st, formats = ses.portal.statement, ses.portal.formats
	}
	if len(st.columns) == 0 {
		ses.send(&pgproto3.NoData{})
		return
	}
	ses.send(rowDescription(st.columns, formats))
}

func rowDescription(columns []uint32, formats []int16) *pgproto3.RowDescription {
	d := &pgproto3.RowDescription{}
	for i, oid := range columns {
		d.Fields = append(d.Fields, pgproto3.FieldDescription{
			Name: fmt.Appendf(nil, "c%d", i), DataTypeOID: oid, DataTypeSize: -1, TypeModifier: -1, Format: formatOf(formats, i),
		})
	}
	return d
}

// formatOf is the format of column i: none, one for all, or one each.
func formatOf(formats []int16, i int) int16 {
	switch len(formats) {
	case 0:
		return 0
	case 1:
		return formats[0]
	default:
		return formats[i]
	}
}

func (ses *session) bind(m *pgproto3.Bind) error {
	p := ses.prepared[m.PreparedStatement]
	if p == nil {
		return &sqlError{"26000", "prepared statement does not exist"}
	}
	args := make([]any, len(m.Parameters))
	for i, raw := range m.Parameters {
		if raw == nil {
			continue
		}
		oid := p.statement.params[i]
		if oid == tLSN { // pgx has no such type and sends text
			args[i] = string(raw)
			continue
		}
		t, ok := ses.server.types.TypeForOID(oid)
		if !ok {
			return &sqlError{pgerrcode.UndefinedObject, fmt.Sprintf("the model has no type %d", oid)}
		}
		v, err := t.Codec.DecodeValue(ses.server.types, oid, formatOf(m.ParameterFormatCodes, i), raw)
		if err != nil {
			return &sqlError{pgerrcode.InvalidTextRepresentation, err.Error()}
		}
		args[i] = v
	}
	ses.portal = &portal{*p, args, append([]int16(nil), m.ResultFormatCodes...)}
	ses.send(&pgproto3.BindComplete{})
	return nil
}

// execute runs a portal and sends its rows.
func (ses *session) execute(p *portal) error {
	rows, err := ses.run(p.statement, p.sql, p.args)
	if err != nil {
		return err
	}
	for _, row := range rows {
		data := &pgproto3.DataRow{}
		for i, v := range row {
			raw, err := ses.value(p.statement.columns[i], formatOf(p.formats, i), v)
			if err != nil {
				return err
			}
			data.Values = append(data.Values, raw)
		}
		ses.send(data)
	}
	ses.send(&pgproto3.CommandComplete{CommandTag: fmt.Appendf(nil, "%s %d", p.statement.tag(), len(rows))})
	return nil
}

func (ses *session) value(oid uint32, format int16, v any) ([]byte, error) {
	if v == nil {
		return nil, nil
	}
	if oid == tLSN {
		return fmt.Append(nil, v), nil
	}
	raw, err := ses.server.types.Encode(oid, format, v, []byte{})
	if err != nil {
		return nil, &sqlError{pgerrcode.InternalError, fmt.Sprintf("the model cannot send %T as type %d: %v", v, oid, err)}
	}
	return raw, nil
}

// run executes a statement at one instant.
func (ses *session) run(st *statement, sql string, args []any) ([][]any, error) {
	s := ses.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if ses.gone {
		return nil, errTerminated
	}
	if ses.tx != nil && ses.tx.failed {
		return nil, &sqlError{pgerrcode.InFailedSQLTransaction, "current transaction is aborted, commands ignored until end of transaction block"}
	}
	q := &query{ses: ses, server: s, sql: sql, args: args, implicit: ses.tx == nil}
	if q.implicit {
		ses.tx = &transaction{}
	}
	rows, err := st.run(q)
	switch {
	case q.implicit:
		if err == nil && len(ses.tx.changes) > 0 && s.Delay != nil {
			q.gap() // with the locks of its rows
		}
		ses.finish(err == nil)
		if err == nil && ses.gone {
			err = errTerminated
		}
	case err != nil:
		ses.tx.failed = true
	}
	return rows, err
}

// finish ends the transaction.
func (ses *session) finish(commit bool) {
	s, tx := ses.server, ses.tx
	ses.tx = nil
	if commit && !tx.failed && len(tx.changes) > 0 && !ses.gone {
		s.append(0x90*len(tx.changes), record{changes: tx.changes})
	}
	for key, holder := range s.locks {
		if holder == ses {
			delete(s.locks, key)
		}
	}
	s.changed.Broadcast()
}

// simple answers a Query message.
func (ses *session) simple(sql string) bool {
	word := strings.ToUpper(strings.Trim(strings.TrimSpace(sql), ";"))
	var err error
	switch {
	case strings.HasPrefix(word, "START_REPLICATION"):
		return ses.startReplication(sql)
	case word == "BEGIN" || strings.HasPrefix(word, "BEGIN "):
		ses.begin()
	case word == "COMMIT", word == "ROLLBACK":
		ses.commit(word)
	case word == "":
		ses.send(&pgproto3.EmptyQueryResponse{})
	case ses.replicationCommand(word, &err):
	default:
		var st *statement
		if st, err = ses.server.lookup(sql); err == nil {
			if len(st.columns) > 0 {
				ses.send(rowDescription(st.columns, nil))
			}
			err = ses.execute(&portal{prepared: prepared{sql, st}})
		}
	}
	if err != nil {
		ses.fail(err)
	}
	ses.ready()
	return ses.flush() == nil
}

func (ses *session) begin() {
	ses.server.mu.Lock()
	defer ses.server.mu.Unlock()
	ses.tx = &transaction{}
	ses.send(&pgproto3.CommandComplete{CommandTag: []byte("BEGIN")})
}

func (ses *session) commit(word string) {
	ses.server.mu.Lock()
	defer ses.server.mu.Unlock()
	if ses.tx != nil {
		if word == "COMMIT" && ses.tx.failed {
			word = "ROLLBACK"
		}
		ses.finish(word == "COMMIT")
	}
	ses.send(&pgproto3.CommandComplete{CommandTag: []byte(word)})
}

func (ses *session) fail(err error) {
	e, ok := errors.AsType[*sqlError](err)
	if !ok {
		e = &sqlError{pgerrcode.InternalError, err.Error()}
	}
	severity := "ERROR"
	if e.code == pgerrcode.AdminShutdown {
		severity = "FATAL"
	}
	ses.send(errorResponse(severity, e.code, e.text))
}

// result sends a result of one row, as a walsender does.
func (ses *session) result(columns []uint32, values []any) error {
	ses.send(rowDescription(columns, nil))
	data := &pgproto3.DataRow{}
	for i, v := range values {
		raw, err := ses.value(columns[i], 0, v)
		if err != nil {
			return err
		}
		data.Values = append(data.Values, raw)
	}
	ses.send(data)
	ses.send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
	return nil
}
