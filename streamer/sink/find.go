package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/ext"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/jackc/pglogrepl"

	"diehard/shared/failure"
	"diehard/streamer/decode"
)

// finder finds the rows that event_log refuses, without writing anything: a SELECT over the
// rows, which go with it as an external table, computes the columns and the constraints as an
// insert does. It names the rows that violate a constraint, and fails on rows from which a
// column cannot be computed; those are found by asking about halves.
type finder struct {
	s      *Sink
	b      Block
	w      Writer
	checks checks

	found    []decode.Reject
	suspects []int // rows that meet a code alone that no list has
	answered bool  // a query about rows had an answer: the server works
}

// rowsTable is the name of the external table.
const rowsTable = "diehard_rows"

const (
	// maxSuspects is how many rows may meet an unknown code before any query had an answer:
	// more of them say nothing of the rows.
	maxSuspects = 8
	// maxFailures is how often the server may fail a question before nothing is found by asking.
	maxFailures = 3
)

// errCannotFind ends the search, and says nothing of the rows.
var errCannotFind = errors.New("the rows that ClickHouse refuses cannot be found without writing")

// findRefused returns rows of b that event_log refuses, in stream order: all of those that violate
// a constraint or from which a column cannot be computed. None means that something else refuses them.
//
// Errors: errCannotFind.
func (s *Sink) findRefused(ctx context.Context, b Block, w Writer) ([]decode.Reject, error) {
	f := &finder{s: s, b: b, w: w}
	from, to := b.Bounds()
	err := f.ask(ctx, func(ctx context.Context) (err error) {
		f.checks, err = s.readChecks(ctx)
		return err
	})
	if Code(err) != 0 {
		return nil, fmt.Errorf("%w: %w", errCannotFind, err)
	}
	if err == nil && len(f.checks.constraints)+len(f.checks.derived) > 0 {
		err = f.findAll(ctx, from, to)
	}
	if err == nil {
		err = f.judgeSuspects(ctx)
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(f.found, func(a, b decode.Reject) int { return a.Compare(b.Position) })
	return f.found, nil
}

// findAll looks at rows [from, to), once the query is known to work on none: what it says is
// of the rows then.
func (f *finder) findAll(ctx context.Context, from, to int) error {
	err := f.askAbout(ctx, from, from+1, "(SELECT * FROM "+rowsTable+" LIMIT 0)")
	if Code(err) != 0 {
		return fmt.Errorf("%w: %w", errCannotFind, err)
	}
	if err != nil {
		return err
	}
	return f.find(ctx, from, to)
}

// find looks at rows [from, to).
func (f *finder) find(ctx context.Context, from, to int) error {
	err := f.askAbout(ctx, from, to, rowsTable)
	class := codes[Code(err)].class
	switch {
	case err == nil:
		f.answered = true
		return nil
	case Code(err) == 0:
		return err
	case to-from > 1 && (class == poison || class == unknown || tooMuch[Code(err)]):
		middle := from + (to-from)/2
		if err := f.find(ctx, from, middle); err != nil {
			return err
		}
		return f.find(ctx, middle, to)
	case class == poison:
		f.found = append(f.found, f.b.Rows.RejectAt(from, Reason(err), Code(err)))
		return nil
	case class == unknown && (f.answered || len(f.suspects) < maxSuspects):
		f.suspects = append(f.suspects, from)
		return nil
	default:
		return fmt.Errorf("%w: %w", errCannotFind, err)
	}
}

// judgeSuspects asks about each suspect once more. When the server answers about other rows,
// and not about this one, this one is to blame.
func (f *finder) judgeSuspects(ctx context.Context) error {
	if !f.answered {
		return nil
	}
	for _, i := range f.suspects {
		err := f.askAbout(ctx, i, i+1, rowsTable)
		switch code := Code(err); {
		case err == nil: // it was the server
		case code == 0:
			return err
		case codes[code].class == poison || codes[code].class == unknown:
			f.found = append(f.found, f.b.Rows.RejectAt(i, Reason(err), code))
		}
	}
	return nil
}

// askAbout asks which of the rows [from, to) violate a constraint, of those that are in table.
func (f *finder) askAbout(ctx context.Context, from, to int, table string) error {
	var found []decode.Reject
	err := f.ask(ctx, func(ctx context.Context) (err error) {
		found, err = f.violations(ctx, from, to, table)
		return err
	})
	f.found = append(f.found, found...)
	return err
}

// ask runs a query. A word of the server is final, and an error of the server itself is soon.
//
// Errors: with a code what the server says of the rows, else what w.Ask returns.
func (f *finder) ask(ctx context.Context, query func(context.Context) error) error {
	var answer error
	failures := 0
	err := f.w.Ask(ctx, func(ctx context.Context) error {
		answer = query(ctx)
		code := Code(answer)
		failures++
		if code == 0 || codes[code].class == transient && !tooMuch[code] && failures < maxFailures {
			return answer
		}
		return nil
	})
	if err != nil {
		return err
	}
	return answer
}

func (f *finder) violations(ctx context.Context, from, to int, table string) (found []decode.Reject, err error) {
	external, err := f.s.externalTable(rowRange{
		rows: f.b.Rows, from: from, to: to, timeline: f.s.timeline, source: f.s.source.String(), ingestedAt: time.Now().UnixMilli(),
	})
	if err != nil {
		return nil, failure.Wrap(failure.Fatal, err)
	}
	op := fmt.Sprintf("look which of %d rows at %s are refused", to-from, f.b.Rows.Position(from).LSN)
	rows, err := f.s.conn.Query(clickhouse.Context(ctx, clickhouse.WithExternalTable(external)), f.checks.query(table))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, classify(err))
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var lsn uint64
		var seq, by uint32
		if err := rows.Scan(&lsn, &seq, &by); err != nil {
			return nil, fmt.Errorf("%s: %w", op, err)
		}
		if by == 0 {
			continue
		}
		i := f.b.Rows.Index(decode.Position{LSN: pglogrepl.LSN(lsn), Seq: seq}) - 1
		found = append(found, f.b.Rows.RejectAt(i, f.checks.constraints[by-1].reason(f.s.table), codeViolatedConstraint))
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", op, classify(err))
	}
	return found, nil
}

// externalTable holds rows as an INSERT into event_log does.
func (s *Sink) externalTable(r rowRange) (*ext.Table, error) {
	described := make([]func(*ext.Table) error, len(eventLog))
	for i, c := range eventLog {
		described[i] = ext.Column(c.name, column.Type(c.kind))
	}
	table, err := ext.NewTable(rowsTable, described...)
	if err != nil {
		return nil, fmt.Errorf("external table: %w", err)
	}
	header := table.Block().Columns
	columns, err := s.encoder.encode(header, r)
	if err != nil {
		return nil, err
	}
	for i, c := range columns {
		if err := header[i].Decode(c.Data.(*native).reader(), r.len()); err != nil {
			return nil, fmt.Errorf("external table: column %s: %w", c.Name, err)
		}
	}
	return table, nil
}
