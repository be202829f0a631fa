package simpg

import (
	"fmt"
	"maps"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"
)

// statement is one that the model can answer. SQL is not parsed: what the streamer
// sends is known by a part of its text.
type statement struct {
	has     string   // in the text, with its blanks made one
	params  []uint32 // types
	columns []uint32
	run     func(*query) ([][]any, error)
}

func (st *statement) tag() string {
	if len(st.columns) > 0 {
		return "SELECT"
	}
	return "UPDATE"
}

// query is a statement in execution. The server's lock is held.
type query struct {
	ses      *session
	server   *Server
	sql      string
	args     []any
	implicit bool
}

func (q *query) text(i int) string { s, _ := q.args[i].(string); return s }
func (q *query) int(i int) int64 {
	switch v := q.args[i].(type) {
	case int32:
		return int64(v)
	case int64:
		return v
	case uint32:
		return int64(v)
	}
	return 0
}

// lock waits until no other transaction has the row.
func (q *query) lock(table, key string) error {
	name := table + " " + key
	for q.server.locks[name] != nil && q.server.locks[name] != q.ses {
		q.server.changed.Wait()
		if q.ses.gone {
			return errTerminated
		}
	}
	q.server.locks[name] = q.ses
	return nil
}

// advisoryLock waits for a lock of the session's.
func (q *query) advisoryLock(key string) error {
	held := q.server.advisory
	for held[key] != nil && held[key] != q.ses {
		q.server.changed.Wait()
		if q.ses.gone {
			return errTerminated
		}
	}
	held[key] = q.ses
	return nil
}

func (q *query) tryAdvisoryLock(key string) bool {
	held := q.server.advisory
	if held[key] != nil && held[key] != q.ses {
		return false
	}
	held[key] = q.ses
	return true
}

func (q *query) advisoryUnlock(key string) bool {
	if q.server.advisory[key] != q.ses {
		return false
	}
	delete(q.server.advisory, key)
	q.server.changed.Broadcast()
	return true
}

// gap lets time pass within the statement.
func (q *query) gap() {
	if q.server.Delay == nil {
		return
	}
	d := q.server.Delay()
	q.server.mu.Unlock()
	<-time.After(d)
	q.server.mu.Lock()
}

var errTerminated = &sqlError{pgerrcode.AdminShutdown, "terminating connection due to administrator command"}

// row reads a row as the transaction sees it; nil if there is none.
func (q *query) row(table, key string) Row {
	for i := len(q.ses.tx.changes) - 1; i >= 0; i-- {
		if c := q.ses.tx.changes[i]; c.table == table && c.key == key {
			return maps.Clone(c.row)
		}
	}
	return maps.Clone(q.server.tables[table][key])
}

// write changes a row; nil deletes it.
func (q *query) write(table, key string, row Row) error {
	if q.server.readOnly && q.ses.options["default_transaction_read_only"] != "off" {
		return &sqlError{pgerrcode.ReadOnlySQLTransaction, "cannot execute UPDATE in a read-only transaction"}
	}
	if err := q.lock(table, key); err != nil {
		return err
	}
	q.ses.tx.changes = append(q.ses.tx.changes, change{table, key, row})
	return nil
}

func one(values ...any) [][]any { return [][]any{values} }

// lsn reads an argument that is a position.
func (q *query) lsn(i int) pglogrepl.LSN {
	lsn, _ := pglogrepl.ParseLSN(q.text(i))
	return lsn
}

var blanks = regexp.MustCompile(`\s+`)

// known are the texts that were looked up.
var known sync.Map

// lookup returns the statement for sql.
func (s *Server) lookup(sql string) (*statement, error) {
	if st, ok := known.Load(sql); ok {
		return st.(*statement), nil //nolint:forcetypeassert // nothing else is stored
	}
	flat := blanks.ReplaceAllString(sql, " ")
	for i := range statements {
		if strings.Contains(flat, statements[i].has) {
			known.Store(sql, &statements[i])
			return &statements[i], nil
		}
	}
	err := &sqlError{pgerrcode.FeatureNotSupported, "the model does not know the statement: " + flat}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unknown == nil {
		s.unknown = fmt.Errorf("PostgreSQL model: %w", err)
	}
	return nil, err
}

const (
	tText  = pgtype.TextOID
	tBool  = pgtype.BoolOID
	tInt4  = pgtype.Int4OID
	tInt8  = pgtype.Int8OID
	tTexts = pgtype.TextArrayOID
	tTime  = pgtype.TimestamptzOID
	tJSONB = pgtype.JSONBOID
	tUUID  = pgtype.UUIDOID
	tLSN   = 3220
)

type oids = []uint32
