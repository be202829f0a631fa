// Package deadletter lists the rows of the dead-letter table, retries them after
// their cause is fixed, or drops them.
package deadletter

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// Record is a row of the dead-letter table.
type Record struct {
	Source string // as in event_log
	decode.Position
	Timeline   uint32
	CommitTime time.Time
	EventID    uuid.UUID // zero if it could not be read
	EventType  string    // empty if it could not be read
	Reason     string
	Code       int32 // of the ClickHouse exception, 0 if it was none
	FailedAt   time.Time
	RetriedAt  time.Time // when it was written to event_log; zero if it was not
	DroppedAt  time.Time // when it was dropped; zero if it was not

	raw string // see decode.Tuple; List does not read it
}

// Filter chooses records. An empty field does not restrict.
type Filter struct {
	IDs     []uuid.UUID
	Types   []string
	Retried bool // also those that were written since
	Dropped bool // also those that were dropped
}

// open is the condition for open records, and for those that f adds.
func (f Filter) open() string {
	switch {
	case f.Retried && f.Dropped:
		return "true"
	case f.Retried:
		return "NOT dropped"
	case f.Dropped:
		return sink.DeadLetterNotWritten
	default:
		return sink.DeadLetterOpen
	}
}

// where returns the condition for WHERE and its arguments.
func (f Filter) where() (string, []any) {
	conditions, args := []string{f.open()}, []any{}
	if len(f.IDs) > 0 {
		ids := make([]string, len(f.IDs))
		for i, id := range f.IDs {
			ids[i] = id.String()
		}
		conditions, args = append(conditions, "toString(event_id) IN (?)"), append(args, ids)
	}
	if len(f.Types) > 0 {
		conditions, args = append(conditions, "event_type IN (?)"), append(args, f.Types)
	}
	return strings.Join(conditions, " AND "), args
}

// table is the dead-letter table. It may have several versions of a row until
// ClickHouse merges them; FINAL reads the last.
type table struct {
	conn driver.Conn
	name string // quoted
}

// List returns up to limit records, those that failed last first.
func List(ctx context.Context, conn driver.Conn, deadLetterTable string, f Filter, limit int) ([]Record, error) {
	t := table{conn: conn, name: sink.Quote(deadLetterTable)}
	where, args := f.where()
	return t.read(ctx, "''", where+" ORDER BY failed_at DESC, source, commit_lsn DESC, commit_seq DESC LIMIT ?", append(args, limit)...)
}

// read returns the records for which rest, a condition and what may follow it, holds.
func (t table) read(ctx context.Context, raw, rest string, args ...any) ([]Record, error) {
	rows, err := t.conn.Query(ctx, `
		SELECT source, commit_lsn, commit_seq, timeline, commit_time, event_id, event_type,
		       reason, error_code, failed_at, retried_at, dropped, `+raw+`
		FROM `+t.name+` FINAL WHERE `+rest, args...)
	if err != nil {
		return nil, fmt.Errorf("read dead letters (has `streamer migrate up` run?): %w", err)
	}
	defer rows.Close()
	var records []Record
	for rows.Next() {
		var d Record
		var lsn uint64
		var settled time.Time
		var dropped bool
		err := rows.Scan(&d.Source, &lsn, &d.Seq, &d.Timeline, &d.CommitTime, &d.EventID, &d.EventType,
			&d.Reason, &d.Code, &d.FailedAt, &settled, &dropped, &d.raw)
		if err != nil {
			return nil, fmt.Errorf("read dead letters: %w", err)
		}
		d.LSN = pglogrepl.LSN(lsn)
		switch {
		case dropped:
			d.DroppedAt = settled
		case settled.UnixMilli() != 0:
			d.RetriedAt = settled
		}
		records = append(records, d)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return records, nil
}

const (
	pageRows  = 1000
	pageBytes = 16 << 20
)

// page returns the records behind after, in the order of the table, with their
// raw rows: at most pageRows and pageBytes, but at least one if there is one.
func (t table) page(ctx context.Context, f Filter, after Record) ([]Record, error) {
	where, args := f.where()
	where += " AND (source, commit_lsn, commit_seq) > (?, ?, ?) ORDER BY source, commit_lsn, commit_seq LIMIT ?"
	args = append(args, after.Source, uint64(after.LSN), after.Seq)
	var sizes []struct {
		Size uint64 `ch:"size"`
	}
	err := t.conn.Select(ctx, &sizes, `SELECT length(raw) AS size FROM `+t.name+` FINAL WHERE `+where, append(args, pageRows)...)
	if err != nil {
		return nil, fmt.Errorf("read dead letters (has `streamer migrate up` run?): %w", err)
	}
	n, size := 0, uint64(0)
	for n < len(sizes) && (n == 0 || size+sizes[n].Size <= pageBytes) {
		size += sizes[n].Size
		n++
	}
	if n == 0 {
		return nil, nil
	}
	return t.read(ctx, "raw", where, append(args, n)...)
}

// mark notes that records were written to event_log, or dropped. The version with
// the later retried_at replaces the other, in whatever order they are inserted.
func (t table) mark(ctx context.Context, records []Record, at time.Time, dropped bool) error {
	if len(records) == 0 {
		return nil
	}
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"async_insert": 0}))
	batch, err := t.conn.PrepareBatch(ctx, `INSERT INTO `+t.name+` (source, commit_lsn, commit_seq, timeline, commit_time,
		event_id, event_type, reason, error_code, failed_at, retried_at, dropped, raw)`)
	if err != nil {
		return fmt.Errorf("mark dead letters: %w", err)
	}
	for _, d := range records {
		settled := at
		if !settled.After(d.DroppedAt) { // by another clock
			settled = d.DroppedAt.Add(time.Millisecond)
		}
		err := batch.Append(d.Source, uint64(d.LSN), d.Seq, d.Timeline, d.CommitTime, d.EventID, d.EventType,
			d.Reason, d.Code, d.FailedAt, settled, dropped, d.raw)
		if err != nil {
			_ = batch.Abort() // nothing is inserted
			return fmt.Errorf("mark dead letters: %w", err)
		}
	}
	if err := batch.Send(); err != nil {
		return fmt.Errorf("mark dead letters: %w", err)
	}
	return nil
}
