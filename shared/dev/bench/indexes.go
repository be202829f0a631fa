package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"diehard/migrations"
	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// Sizes of the inserts of one round and table.
const (
	indexedRows    = 50_000
	indexedInserts = 20
)

// indexed are tables like event_log, with other indexes.
var indexed = []struct {
	name    string
	changes []string
	// eager builds text indexes at the insert.
	eager bool
}{
	{name: "event_log"},
	{name: "event_log again (A/A control)"},
	{name: "without indexes", changes: []string{"DROP INDEX by_position", "DROP INDEX by_time", "DROP INDEX by_id", "DROP INDEX by_trace"}},
	{name: "text index, by merges", changes: []string{addText}},
	{name: "text index, at inserts", changes: []string{addText}, eager: true},
}

const addText = "ADD INDEX " + migrations.TextIndex + " event_context TYPE text(tokenizer = splitByNonAlpha)"

// indexes is what the indexes cost ClickHouse at inserts, as the streamer makes them.
func indexes(ctx context.Context, env *environment) (*report, error) {
	b, err := env.newTestbed(ctx, "indexes")
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.close(context.WithoutCancel(ctx)) }()
	if env.clickhouse == nil {
		return nil, fmt.Errorf("CLICKHOUSE_HOST is set: the CPU time of a server that was not started here is unknown; unset it")
	}
	r := newReport("indexes", fmt.Sprintf("Inserts of %d rows, half of them with a trace", indexedRows), "ClickHouse CPU ns/row", "of which indexes", "bytes per row", "of which indexes")
	rows := indexedBatch()
	for round := range env.Rounds + 1 {
		for i, table := range indexed {
			figures, err := b.insertIndexed(ctx, rows, fmt.Sprintf("indexed_%d_%d", round, i), table.changes, table.eager)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", table.name, err)
			}
			if round == 0 {
				continue // warm-up
			}
			env.progress("round %d: %s: %s", round, table.name, r.describe(figures))
			r.add(table.name, figures...)
		}
	}
	return r, nil
}

func (b *testbed) insertIndexed(ctx context.Context, rows *decode.Rows, table string, changes []string, eager bool) ([]float64, error) {
	for _, statement := range append([]string{"CREATE TABLE " + table + " AS event_log", "SYSTEM STOP MERGES " + table}, alter(table, changes)...) {
		if err := b.ch.Exec(ctx, statement); err != nil {
			return nil, err
		}
	}
	s := sink.New(b.ch, sink.Tables{EventLog: table, DeadLetter: "event_dead_letter"}, sink.Source{SystemID: "1", Slot: "bench"}, sink.OnTimeline(1))
	if !eager { // what it does not know of is built
		if err := s.CheckTables(ctx); err != nil {
			return nil, err
		}
	}
	computed, err := b.indexTime(ctx)
	if err != nil {
		return nil, err
	}
	before := b.env.serverCPU()
	for range indexedInserts {
		id := "bench-" + uuid.NewString()
		err := s.Insert(ctx, rows, 0, rows.Len(), sink.InsertRequest{
			QueryID: id, Token: id, IngestedAt: time.Now(), Verify: func(context.Context) error { return nil },
		})
		if err != nil {
			return nil, err
		}
	}
	spent := b.env.serverCPU().since(before)
	after, err := b.indexTime(ctx)
	if err != nil {
		return nil, err
	}
	var bytes, ofIndexes float64
	err = b.ch.QueryRow(ctx, `SELECT toFloat64(sum(bytes_on_disk)) / sum(rows), toFloat64(sum(secondary_indices_compressed_bytes)) / sum(rows)
		FROM system.parts WHERE database = currentDatabase() AND table = ? AND active`, table).Scan(&bytes, &ofIndexes)
	if err != nil {
		return nil, err
	}
	written := indexedInserts * float64(rows.Len())
	return []float64{float64(spent.clickhouse.Nanoseconds()) / written, float64((after - computed).Nanoseconds()) / written, bytes, ofIndexes},
		b.ch.Exec(ctx, "DROP TABLE "+table+" SYNC")
}

// indexTime is what ClickHouse has spent on indexes of blocks that were inserted, by its own clock.
func (b *testbed) indexTime(ctx context.Context) (time.Duration, error) {
	var micros uint64
	err := b.ch.QueryRow(ctx, "SELECT sum(value) FROM system.events WHERE event = 'MergeTreeDataWriterSkipIndicesCalculationMicroseconds'").Scan(&micros)
	return time.Duration(micros) * time.Microsecond, err
}

func alter(table string, changes []string) []string {
	if changes == nil {
		return nil
	}
	return []string{"ALTER TABLE " + table + " " + strings.Join(changes, ", ")}
}

// indexedBatch is a batch as the streamer decodes it.
func indexedBatch() *decode.Rows {
	rows := new(decode.Rows)
	now := time.Now().UnixMicro()
	for i := range indexedRows {
		transaction := i / transactionRows
		trace := uuid.UUID{}
		if transaction%2 == 0 {
			trace = uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, "trace", transaction))
		}
		session := uuid.NewSHA1(uuid.NameSpaceURL, fmt.Append(nil, i/30))
		rows.Append(decode.Position{LSN: pglogrepl.LSN(firstLSN + transaction*transactionBytes), Seq: uint32(i%transactionRows) + 1}, now+int64(i), &decode.Event{
			ID: uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, i)), Type: fmt.Appendf(nil, "type_%d", i*i%50), DateTime: now + int64(i),
			Environment: []byte("Production"), MetadataVersion: 1, TraceID: trace, PublishedBy: fmt.Appendf(nil, "service_%d", i%10),
			Context: fmt.Appendf(nil, `{"user_id":"u%d","session":"%x","amount":%d.%02d,"country":"%s","ip":"10.0.%d.%d","agent":"Mozilla/5.0 (X11; Linux x86_64)","items":[%d,%d],"note":"paid website %d"}`,
				i*7919%100_000, session[:8], i%1000, i%100, []string{"DE", "FR", "US", "IN"}[i%4], i%20, i%250, i%5000, i*31%5000, i%1000),
		})
	}
	return rows
}
