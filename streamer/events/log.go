package events

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"

	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// ParsePosition reads LSN/SEQ, such as 0/16B3748/3.
func ParsePosition(text string) (decode.Position, error) {
	wrong := fmt.Errorf("%q is not a position LSN/SEQ such as 0/16B3748/3", text)
	i := strings.LastIndexByte(text, '/')
	if i < 0 {
		return decode.Position{}, wrong
	}
	lsn, err := pglogrepl.ParseLSN(text[:i])
	if err != nil {
		return decode.Position{}, wrong
	}
	seq, err := strconv.ParseUint(text[i+1:], 10, 32)
	if err != nil {
		return decode.Position{}, wrong
	}
	return decode.Position{LSN: lsn, Seq: uint32(seq)}, nil
}

// FormatPosition is the reverse of ParsePosition.
func FormatPosition(p decode.Position) string { return fmt.Sprintf("%s/%d", p.LSN, p.Seq) }

const (
	// pageRows bounds the rows of one step, and so its memory.
	pageRows = 1000
	// The part of the WAL that one step looks at adapts itself to the events in it: an
	// upper bound is what lets ClickHouse skip the parts behind it.
	firstSpan = pglogrepl.LSN(16 << 20)
	leastSpan = pglogrepl.LSN(64 << 10)
)

// Log is the events of one source in commit order: one total order, in which no row
// appears behind one that was read before. The exceptions are an operator's: a
// dead letter that is retried, and a row that `replay` fills, get their own
// position, which may lie behind. Not safe for concurrent use.
type Log struct {
	table  *Table
	filter Filter
	after  decode.Position
	span   pglogrepl.LSN
}

// Log reads the events of filter.Source that filter chooses and that lie behind after.
func (t *Table) Log(filter Filter, after decode.Position) *Log {
	return &Log{table: t, filter: filter, after: after, span: firstSpan}
}

// End is the position of the last row of a source.
func (t *Table) End(ctx context.Context, source string) (decode.Position, error) {
	end, err := sink.ReadEnd(ctx, t.conn, t.name, source)
	return end.Position, err
}

// Next returns the next events, at most pageRows; none when everything was read that
// the table has now.
//
// The rows of a source are written in commit order, a batch at once. So when the
// table's end is read first, every row before it is there, and a step that ends
// before it misses none.
func (l *Log) Next(ctx context.Context) ([]Event, error) {
	condition, args := l.filter.condition()
	end, err := l.table.End(ctx, l.filter.Source)
	if err != nil {
		return nil, err
	}
	for end.After(l.after) {
		upTo := end
		if end.LSN-l.after.LSN > l.span {
			upTo = decode.Position{LSN: l.after.LSN + l.span, Seq: math.MaxUint32}
		}
		if l.after == (decode.Position{}) {
			if upTo, err = l.first(ctx, end); err != nil {
				return nil, err
			}
		}
		rest := fmt.Sprintf(`commit_lsn >= %d AND commit_lsn <= %d AND (commit_lsn, commit_seq) > (%d, %d) AND (commit_lsn, commit_seq) <= (%d, %d)
			AND %s ORDER BY commit_lsn, commit_seq LIMIT %d`,
			uint64(l.after.LSN), uint64(upTo.LSN), uint64(l.after.LSN), l.after.Seq, uint64(upTo.LSN), upTo.Seq, condition, pageRows)
		list, err := l.table.read(ctx, rest, args)
		if err != nil {
			return nil, err
		}
		if len(list) == pageRows {
			l.after, l.span = list[len(list)-1].Position, max(leastSpan, l.span/2)
			return list, nil
		}
		l.after = upTo
		if len(list) < pageRows/2 {
			l.span = min(l.span*2, math.MaxInt64)
		}
		if len(list) > 0 {
			return list, nil
		}
	}
	return nil, nil
}

// first is where the first step from the beginning of the log ends: the first row
// may lie far from 0.
func (l *Log) first(ctx context.Context, end decode.Position) (decode.Position, error) {
	var lsn uint64
	err := l.table.conn.QueryRow(ctx, fmt.Sprintf(`SELECT min(commit_lsn) FROM %s WHERE source = %s`, l.table.name, sink.QuoteString(l.filter.Source))).Scan(&lsn)
	if err != nil {
		return end, fmt.Errorf("read %s: %w", l.table.name, sink.Classify(err))
	}
	if from := pglogrepl.LSN(lsn); end.LSN-from > l.span {
		return decode.Position{LSN: from + l.span, Seq: math.MaxUint32}, nil
	}
	return end, nil
}
