// Package deadletter shows the rows that were set aside, lands them after all
// once their cause is mended, or gives them up.
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
)

// Letter is a row of the dead-letter table.
type Letter struct {
	Source string // as in event_log
	decode.Position
	Timeline   uint32
	CommitTime time.Time
	EventID    uuid.UUID // zero if it could not be read
	EventType  string    // empty if it could not be read
	Reason     string
	Code       int32 // of the ClickHouse exception, 0 if it was none
	FailedAt   time.Time
	RetriedAt  time.Time // when it reached event_log after all; zero if it has not
	DroppedAt  time.Time // when it was given up; zero if it was not

	raw string // see decode.Tuple; List does not read it
}

// Filter chooses letters. What is empty does not restrict.
type Filter struct {
	IDs     []uuid.UUID
	Types   []string
	Retried bool // those that have reached event_log too
	Dropped bool // those that were given up too
}

// open is the condition for letters that wait for their retry, and for those that f adds.
func (f Filter) open() string {
	const waits = "toUnixTimestamp64Milli(retried_at) = 0"
	switch {
	case f.Retried && f.Dropped:
		return "true"
	case f.Retried:
		return "NOT dropped"
	case f.Dropped:
		return "(" + waits + " OR dropped)"
	default:
		return waits
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

// table is the dead-letter table. A row in it may be there several times until
// ClickHouse merges; FINAL reads the last state.
type table struct {
	conn driver.Conn
	name string // quoted
}

// List returns up to limit letters, those that failed last first.
func List(ctx context.Context, conn driver.Conn, deadLetterTable string, f Filter, limit int) ([]Letter, error) {
	t := table{conn: conn, name: quote(deadLetterTable)}
	where, args := f.where()
	return t.read(ctx, "''", where+" ORDER BY failed_at DESC, source, commit_lsn DESC, commit_seq DESC LIMIT ?", append(args, limit)...)
}

func quote(name string) string { return "`" + strings.ReplaceAll(name, "`", "\\`") + "`" }

// read returns the letters for which rest, a condition and what may follow it, holds.
func (t table) read(ctx context.Context, raw, rest string, args ...any) ([]Letter, error) {
	rows, err := t.conn.Query(ctx, `
		SELECT source, commit_lsn, commit_seq, timeline, commit_time, event_id, event_type,
		       reason, error_code, failed_at, retried_at, dropped, `+raw+`
		FROM `+t.name+` FINAL WHERE `+rest, args...)
	if err != nil {
		return nil, fmt.Errorf("read dead letters (has `streamer migrate up` run?): %w", err)
	}
	defer rows.Close()
	var letters []Letter
	for rows.Next() {
		var l Letter
		var lsn uint64
		var settled time.Time
		var dropped bool
		err := rows.Scan(&l.Source, &lsn, &l.Seq, &l.Timeline, &l.CommitTime, &l.EventID, &l.EventType,
			&l.Reason, &l.Code, &l.FailedAt, &settled, &dropped, &l.raw)
		if err != nil {
			return nil, fmt.Errorf("read dead letters: %w", err)
		}
		l.LSN = pglogrepl.LSN(lsn)
		switch {
		case dropped:
			l.DroppedAt = settled
		case settled.UnixMilli() != 0:
			l.RetriedAt = settled
		}
		letters = append(letters, l)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return letters, nil
}

const (
	pageRows  = 1000
	pageBytes = 16 << 20
)

// page returns the letters behind after, in the order of the table, with their
// raw rows: so many that memory stays bounded, at least one unless there is none.
func (t table) page(ctx context.Context, f Filter, after Letter) ([]Letter, error) {
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

// mark notes that letters have reached event_log, or were given up. The row with the
// later retried_at replaces the other, whoever writes last.
func (t table) mark(ctx context.Context, letters []Letter, at time.Time, dropped bool) error {
	if len(letters) == 0 {
		return nil
	}
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"async_insert": 0}))
	batch, err := t.conn.PrepareBatch(ctx, `INSERT INTO `+t.name+` (source, commit_lsn, commit_seq, timeline, commit_time,
		event_id, event_type, reason, error_code, failed_at, retried_at, dropped, raw)`)
	if err != nil {
		return fmt.Errorf("mark dead letters: %w", err)
	}
	for _, l := range letters {
		settled := at
		if !settled.After(l.DroppedAt) { // by another clock
			settled = l.DroppedAt.Add(time.Millisecond)
		}
		err := batch.Append(l.Source, uint64(l.LSN), l.Seq, l.Timeline, l.CommitTime, l.EventID, l.EventType,
			l.Reason, l.Code, l.FailedAt, settled, dropped, l.raw)
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
