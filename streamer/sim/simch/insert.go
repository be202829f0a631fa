package simch

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

var (
	blanks     = regexp.MustCompile(`\s+`)
	insertInto = regexp.MustCompile("^INSERT INTO (?:`?\\w+`?\\.)?`?(\\w+)`? ?\\(([^)]*)\\)")
)

// flatten makes blanks one.
func flatten(sql string) string {
	if !strings.ContainsAny(sql, "\n\t") && !strings.Contains(sql, "  ") {
		return sql
	}
	return blanks.ReplaceAllString(sql, " ")
}

// insert registers the query, waits for its block, and writes it.
func (s *session) insert(q *running, body string) error {
	m := insertInto.FindStringSubmatch(body)
	if m == nil {
		return s.exception(s.node.cluster.stranger(body))
	}
	c := s.node.cluster
	c.mu.Lock()
	t := c.tables[m[1]]
	c.mu.Unlock()
	if t == nil {
		return s.exception(&exception{proto.ErrUnknownTable, "UNKNOWN_TABLE", "Unknown table " + m[1]})
	}
	header, err := t.header(m[2])
	if err != nil {
		return s.exception(err)
	}
	if err := s.header(header); err != nil {
		return err
	}
	rows, err := s.collect(q)
	if err != nil {
		return s.exception(err) // also of a client that is gone
	}
	if len(rows) == 0 {
		proto.ServerCodeEndOfStream.Encode(&s.out)
		return s.flush()
	}
	c.mu.Lock()
	fate := c.options.Fate()
	c.mu.Unlock()
	err = s.write(q, t, rows, fate)
	if fate.Silent {
		return fmt.Errorf("the answer is lost")
	}
	if err != nil {
		return s.exception(err)
	}
	proto.ServerCodeEndOfStream.Encode(&s.out)
	return s.flush()
}

// header finds the types of the columns that the INSERT names.
func (t *table) header(list string) (columns []Column, err error) {
	for name := range strings.SplitSeq(list, ",") {
		name = strings.Trim(strings.TrimSpace(name), "`")
		found := false
		for _, c := range t.columns {
			if c.Name == name {
				columns, found = append(columns, c), true
			}
		}
		if !found {
			return nil, &exception{proto.ErrNoSuchColumnInTable, "NO_SUCH_COLUMN_IN_TABLE", "No such column " + name}
		}
	}
	return columns, nil
}

func (s *session) header(columns []Column) error {
	proto.ServerCodeData.Encode(&s.out)
	s.out.PutString("")
	proto.Block{Columns: len(columns)}.EncodeAware(&s.out, revision)
	for _, c := range columns {
		s.out.PutString(c.Name)
		s.out.PutString(c.Type)
		s.out.PutBool(false)
	}
	return s.flush()
}

// collect reads blocks up to the empty one. receive_timeout counts anew for each packet.
func (s *session) collect(q *running) (rows []Row, err error) {
	for {
		_ = s.conn.SetReadDeadline(time.Now().Add(q.limit("receive_timeout", 300*time.Second)))
		results, err := s.data()
		if err != nil {
			return nil, err
		}
		_ = s.conn.SetReadDeadline(time.Time{})
		if results == nil {
			return rows, nil
		}
		if rows, err = appendRows(rows, results); err != nil {
			return nil, err
		}
	}
}

// write does the work of an insert that has all its data.
func (s *session) write(q *running, t *table, rows []Row, fate Fate) error {
	c := s.node.cluster
	if err := s.work(q, fate); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fate.Error = cmp.Or(fate.Error, t.failure)
	if fate.Error != 0 {
		return &exception{proto.Error(fate.Error), "ERROR", "an injected fault"}
	}
	if t.maxRows > 0 && len(rows) > t.maxRows {
		return &exception{proto.ErrMemoryLimitExceeded, "MEMORY_LIMIT_EXCEEDED", "(for query) memory limit exceeded"}
	}
	if t.constraint {
		for i, r := range rows {
			if strings.Contains(r.Context, "poison") {
				return &exception{proto.ErrViolatedConstraint, "VIOLATED_CONSTRAINT", fmt.Sprintf("Constraint `c` for table %s is violated at row %d", t.name, i+1)}
			}
		}
	}
	if t.index && slices.ContainsFunc(rows, func(r Row) bool { return strings.Contains(r.Context, "toxic") }) {
		return &exception{proto.ErrFunctionThrowIfValueIsNonZero, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO", "an index cannot be computed"}
	}
	copies := int(q.limit("insert_quorum", 0) / time.Second)
	if copies > 1 && c.options.Kind == Replicated && q.settings["insert_quorum_parallel"] == "0" {
		if n := len(t.parts); n > 0 && t.parts[n-1].copies(time.Now()) < t.parts[n-1].asked {
			return &exception{proto.ErrUnsatisfiedQuorumForPreviousWrite, "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE", "Quorum for previous write has not been satisfied yet"}
		}
	}
	dependent := q.settings["deduplicate_blocks_in_dependent_materialized_views"] != "0"
	token := q.settings["insert_deduplication_token"]
	if q.settings["insert_deduplicate"] == "0" || q.settings["deduplicate_insert"] == "disable" {
		token = ""
	}
	p := &Part{Table: t.name, Token: token, QueryID: q.id, Rows: rows, asked: copies}
	view := t.view
	if fate.ViewError != 0 && view != nil {
		t.view = nil
	}
	c.commit(s.node.number, t, p, dependent)
	t.view = view
	c.changed.Broadcast()
	if fate.ViewError != 0 && view != nil && q.settings["materialized_views_ignore_errors"] != "1" {
		return &exception{proto.Error(fate.ViewError), "ERROR", "while pushing to view"}
	}
	if copies > 1 && c.options.Kind == Replicated && p.seen != nil {
		return c.awaitQuorum(q, p, copies)
	}
	return nil
}

// awaitQuorum gives the lock up meanwhile.
func (c *Cluster) awaitQuorum(q *running, p *Part, copies int) error {
	d := time.Until(p.settledAt(copies))
	limit := q.limit("insert_quorum_timeout", 600*time.Second)
	c.mu.Unlock()
	defer c.mu.Lock()
	<-time.After(min(d, limit))
	if d > limit {
		return &exception{proto.ErrUnknownStatusOfInsert, "UNKNOWN_STATUS_OF_INSERT", "Timeout while waiting for quorum"}
	}
	return nil
}

// work takes the time that the fate says, unless it runs out of time.
func (s *session) work(q *running, fate Fate) error {
	limit := q.limit("max_execution_time", 0)
	if fate.Stalled || limit == 0 || fate.Work <= limit {
		<-time.After(fate.Work)
		return nil
	}
	<-time.After(limit)
	return &exception{proto.ErrTimeoutExceeded, "TIMEOUT_EXCEEDED", "Timeout exceeded"}
}

// appendRows takes the columns that the model has a use for.
func appendRows(rows []Row, results proto.Results) ([]Row, error) {
	from := len(rows)
	rows = append(rows, make([]Row, results.Rows())...)
	for _, c := range results {
		for i := range results.Rows() {
			if err := rows[from+i].set(c.Name, c.Data, i); err != nil {
				return nil, err
			}
		}
	}
	return rows, nil
}

func (r *Row) set(name string, data proto.ColResult, i int) error {
	switch name {
	case "event_id":
		id, ok := data.(*proto.ColUUID)
		if ok {
			r.ID = (*id)[i]
		}
	case "source":
		r.Source = text(data, i)
	case "event_type":
		r.Type = text(data, i)
	case "event_context", "raw":
		r.Context = text(data, i)
	case "commit_lsn":
		v, _ := data.(*proto.ColUInt64)
		r.LSN = (*v)[i]
	case "commit_seq":
		v, _ := data.(*proto.ColUInt32)
		r.Seq = (*v)[i]
	case "timeline":
		v, _ := data.(*proto.ColUInt32)
		r.Timeline = (*v)[i]
	case "ingested_at", "failed_at", "commit_time":
		v, ok := data.(interface{ Row(i int) time.Time })
		if !ok {
			return fmt.Errorf("column %s is %T", name, data)
		}
		if name == "commit_time" {
			r.CommitTime = v.Row(i).UnixMicro()
		} else {
			r.IngestedAt = v.Row(i).UnixMilli()
		}
	}
	return nil
}

func text(data proto.ColResult, i int) string {
	if v, ok := data.(interface{ Row(i int) string }); ok {
		return v.Row(i)
	}
	return ""
}

// SetIndex makes the table refuse what is toxic, as an index does that cannot be computed from it, or take it.
func (c *Cluster) SetIndex(name string, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tables[name].index = on
}

// SetMaxRows makes inserts of more rows exceed a limit of memory; 0 for none.
func (c *Cluster) SetMaxRows(name string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tables[name].maxRows = n
}
