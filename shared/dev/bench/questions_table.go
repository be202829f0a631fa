package main

import (
	"context"
	"fmt"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"diehard/migrations"
	"diehard/shared/clickhouse"
)

const (
	months       = 27
	monthSeconds = 30 * 86_400
	// blockRows are written at once; what the merges of a real table leave is about as large.
	blockRows = 1_000_000
	// transactionRows are the events of one transaction, and transactionBytes its WAL.
	transactionRows  = 3
	transactionBytes = 900
	firstLSN         = 1 << 24
)

// beginning is the time of event 0.
var beginning = time.Date(2024, 9, 1, 0, 0, 0, 0, time.UTC)

// questionTable is an event_log with events of 50 types over 27 months, all of
// whose columns follow from the event's number.
type questionTable struct {
	env    *environment
	conn   driver.Conn
	config clickhouse.Config
	rows   uint64
}

// openQuestions makes the table, with the migrations and by inserts, unless it is there from a run before.
func openQuestions(ctx context.Context, env *environment) (*questionTable, error) {
	t := &questionTable{env: env, rows: uint64(10_000_000 * env.Scale), config: env.chConfig}
	t.config.TextIndex = true
	t.config.Database = fmt.Sprintf("bench_questions_%d", t.rows)
	if err := migrations.UpClickHouse(ctx, t.config, env.log); err != nil {
		return nil, err
	}
	options, err := clickhouse.Options(t.config)
	if err != nil {
		return nil, err
	}
	options.ReadTimeout = time.Hour // of OPTIMIZE
	if t.conn, err = ch.Open(options); err != nil {
		return nil, err
	}
	return t, t.fill(ctx)
}

func (t *questionTable) fill(ctx context.Context) error {
	var have uint64
	if err := t.conn.QueryRow(ctx, "SELECT count() FROM event_log").Scan(&have); err != nil {
		return err
	}
	built := have == t.rows
	for have < t.rows {
		// A month is a partition, and a block lies in one.
		perMonth := (t.rows + months - 1) / months
		end := min((have/perMonth+1)*perMonth, have+blockRows, t.rows)
		if err := t.conn.Exec(ctx, t.insert(have, end)); err != nil {
			return fmt.Errorf("rows %d to %d: %w", have, end, err)
		}
		have = end
		t.env.progress("%d of %d rows", have, t.rows)
	}
	if err := t.awaitMerges(ctx); err != nil {
		return err
	}
	return t.buildTextIndex(ctx, built)
}

// buildTextIndex completes what merges have left, unless a run before has.
func (t *questionTable) buildTextIndex(ctx context.Context, built bool) error {
	var size uint64
	err := t.conn.QueryRow(ctx, `SELECT sum(data_compressed_bytes) FROM system.data_skipping_indices
		WHERE database = currentDatabase() AND table = 'event_log' AND type = 'text'`).Scan(&size)
	if err != nil || built && size > 0 {
		return err
	}
	t.env.progress("building the text index")
	return t.conn.Exec(ctx, "ALTER TABLE event_log MATERIALIZE INDEX "+migrations.TextIndex+" SETTINGS mutations_sync = 2")
}

// awaitMerges waits until ClickHouse has nothing to merge.
func (t *questionTable) awaitMerges(ctx context.Context) error {
	for quiet := 0; quiet < 3; {
		var merges uint64
		if err := t.conn.QueryRow(ctx, "SELECT count() FROM system.merges WHERE database = currentDatabase()").Scan(&merges); err != nil {
			return err
		}
		if quiet++; merges > 0 {
			quiet = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return nil
}

// step is the time between two events, in microseconds.
func (t *questionTable) step() uint64 { return months * monthSeconds * 1_000_000 / t.rows }

// insert writes events [from, end). One of 500 is reported up to a day late. Half of the
// transactions have a trace.
func (t *questionTable) insert(from, end uint64) string {
	return fmt.Sprintf(`
INSERT INTO event_log (event_id, event_type, event_date_time, environment, event_context, metadata_version, trace_id, published_by,
	source, commit_lsn, commit_seq, timeline, commit_time, ingested_at)
WITH number AS n, cityHash64(n, 1) AS a, cityHash64(n, 2) AS b, cityHash64(n, 3) AS c, intDiv(n, %[1]d) AS transaction,
	toUInt8(intDiv(pow(a %% 1000, 2), 20000)) AS kind, toDateTime64('%[2]s', 6, 'UTC') + toIntervalMicrosecond(n * %[3]d) AS at
SELECT toUUID(hex(sipHash128(n, 1))),
	concat(['order', 'user', 'invoice', 'payment', 'shipment', 'cart', 'session', 'product', 'email', 'ticket'][1 + kind %% 10], '_',
		['created', 'updated', 'deleted', 'failed', 'viewed'][1 + intDiv(kind, 10)]),
	at - toIntervalMicrosecond(c %% 2000000) - toIntervalSecond(if(c %% 500 = 0, b %% 86400, 0)),
	if(c %% 20 = 0, 'Staging', 'Production'),
	concat('{"user_id":"u', toString(b %% %[4]d), '","session":"', lower(hex(cityHash64(intDiv(n, 30), 4))), '","amount":', toString(a %% 100000 / 100),
		',"country":"', ['DE', 'FR', 'US', 'IN', 'BR', 'JP'][1 + a %% 6], '","ip":"10.', toString(b %% 20), '.', toString(b %% 250), '.', toString(c %% 250),
		'","agent":"', ['Mozilla/5.0 (X11; Linux x86_64)', 'Mozilla/5.0 (Windows NT 10.0; Win64)', 'okhttp/4.12.0', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_1)'][1 + b %% 4],
		'","items":[', toString(a %% 5000), ',', toString(c %% 5000), '],"note":"', ['late', 'paid', 'open', 'new', 'gift', 'refund', 'retry', 'vip'][1 + a %% 8], ' ',
		['warehouse', 'website', 'mobile', 'partner', 'branch'][1 + c %% 5], ' ', toString(b %% 1000), '"}'),
	1, if(transaction %% 2 = 0, lower(hex(sipHash128(transaction, 2))), ''), concat('service_', toString(a %% 10)),
	'7412345678901234567/outbox_streamer', %[5]d + transaction * %[6]d, n %% %[1]d + 1, 1,
	at, toStartOfInterval(at, INTERVAL 1 SECOND)
FROM numbers(%[7]d, %[8]d)
SETTINGS exclude_materialize_skip_indexes_on_insert = '%[9]s'`,
		transactionRows, beginning.Format("2006-01-02 15:04:05"), t.step(), t.rows/100, firstLSN, transactionBytes, from, end-from, migrations.TextIndex)
}
