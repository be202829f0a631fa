package replay

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgerrcode"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"diehard/shared/event"
	"diehard/shared/postgres"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
)

// outbox reads the outbox itself, day by day, so that no snapshot is held for
// longer than one day's rows take.
type outbox struct {
	conn     *pgx.Conn // another than the guard's
	guard    *guard
	span     Span
	schema   event.Schema
	columns  string        // those of event_log, as they are selected
	filter   string        // of the streamer's shard; may be empty
	ids      []uuid.UUID   // only rows with these ids; nil: all
	without  []uuid.UUID   // no rows with these ids
	nowait   pglogrepl.LSN // what the streamer has confirmed of the rows; zero: wait for it
	limits   batch.Limits
	log      *slog.Logger
	progress func(done, total uint64)

	done, total uint64
}

// each hands the rows in chunks over, together with a position in the WAL that
// lies behind the commits of all of them and that the streamer has confirmed.
// The rows have no positions; their commit time is published_at. They are valid during
// the call.
func (o *outbox) each(ctx context.Context, do func(ctx context.Context, rows *decode.Rows, confirmed pglogrepl.LSN) error) error {
	if err := o.resolveColumns(ctx); err != nil {
		return err
	}
	days, err := o.days(ctx)
	if err != nil {
		return err
	}
	detached, err := o.detached(ctx)
	if err != nil {
		return err
	}
	b := batch.New(o.limits)
	for _, table := range detached {
		err := o.one(ctx, b, table, days[0], days[len(days)-1], do)
		if err != nil && !postgres.IsCode(err, pgerrcode.UndefinedTable) { // dropped: it was delivered
			return err
		}
	}
	for i := 1; i < len(days); i++ {
		if err := o.one(ctx, b, o.schema.SQL("{outbox}."+event.Table), days[i-1], days[i], do); err != nil {
			return err
		}
	}
	return nil
}

// resolveColumns leaves those out that the outbox need not have.
func (o *outbox) resolveColumns(ctx context.Context) error {
	rows, err := o.conn.Query(ctx, `SELECT attname::text FROM pg_catalog.pg_attribute
		WHERE attrelid = $1::text::regclass AND attname IN ('trace_context', 'published_by') AND NOT attisdropped ORDER BY attname DESC`, o.schema.SQL("{outbox}."+event.Table))
	if err != nil {
		return wrap(err)
	}
	optional, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return wrap(err)
	}
	o.columns = strings.Join(append([]string{"id", "event_type", "event_date_time", "environment", "event_context", "metadata_version"}, optional...), ", ")
	return nil
}

// detached lists the partitions that retention has detached and not yet dropped: a
// slot that was lost since then may not have delivered them. Retention detaches
// nothing that may be undelivered, so the list does not grow meanwhile.
func (o *outbox) detached(ctx context.Context) ([]string, error) {
	rows, err := o.conn.Query(ctx, o.schema.SQL(`SELECT format('%I.%I', $1::text, partition) FROM {outbox}.diehard_partitions WHERE state = 'detached' ORDER BY starts_at`),
		o.schema.Name())
	if err != nil {
		return nil, fmt.Errorf("read the outbox's detached partitions: %w", err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the outbox's detached partitions: %w", err)
	}
	return tables, nil
}

// days cuts the span where partitions begin and end. The default partition has a
// part in each of the chunks.
func (o *outbox) days(ctx context.Context) ([]pgtype.Timestamptz, error) {
	low, high := bound(o.span.Since, pgtype.NegativeInfinity), bound(o.span.Until, pgtype.Infinity)
	rows, err := o.conn.Query(ctx, o.schema.SQL(`
		SELECT day FROM (
			SELECT starts_at FROM {outbox}.diehard_partitions WHERE state <> 'detached'
			UNION SELECT ends_at FROM {outbox}.diehard_partitions WHERE state <> 'detached') AS edges (day)
		WHERE day > $1 AND day < $2 ORDER BY day`), low, high)
	if err != nil {
		return nil, fmt.Errorf("read the outbox's partitions: %w", err)
	}
	edges, err := pgx.CollectRows(rows, pgx.RowTo[pgtype.Timestamptz])
	if err != nil {
		return nil, fmt.Errorf("read the outbox's partitions: %w", err)
	}
	if o.span == (Span{}) {
		err = o.conn.QueryRow(ctx, `SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
			FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
			WHERE i.inhparent = $1::text::regclass`, o.schema.SQL("{outbox}."+event.Table)).Scan(&o.total)
		if err != nil {
			return nil, fmt.Errorf("estimate the outbox's rows: %w", err)
		}
	}
	return append(append([]pgtype.Timestamptz{low}, edges...), high), nil
}

func bound(t time.Time, otherwise pgtype.InfinityModifier) pgtype.Timestamptz {
	if t.IsZero() {
		return pgtype.Timestamptz{InfinityModifier: otherwise, Valid: true}
	}
	return pgtype.Timestamptz{Time: t, Valid: true}
}

// one reads the rows of one day, or of a partition that is detached.
func (o *outbox) one(ctx context.Context, b *batch.Batch, table string, low, high pgtype.Timestamptz,
	do func(context.Context, *decode.Rows, pglogrepl.LSN) error,
) error {
	tx, err := o.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	from, args := ` FROM `+table+` WHERE published_at >= $1 AND published_at < $2`, []any{low, high}
	if o.ids != nil {
		from, args = from+` AND id = ANY($3)`, append(args, o.ids)
	}
	if len(o.without) > 0 {
		from, args = from+` AND id NOT IN (SELECT pg_catalog.unnest($3::uuid[]))`, append(args, o.without)
	}
	if o.filter != "" {
		from += ` AND ` + o.filter
	}
	// The first statement takes the snapshot. Comparing may take long, and so may waiting for the streamer.
	var any bool
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT`+from+`)`, args...).Scan(&any)
	if err != nil || !any {
		return wrap(err)
	}
	if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0`); err != nil {
		return wrap(err)
	}
	if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
		return wrap(err)
	}
	confirmed := o.nowait
	if confirmed == 0 {
		if confirmed, err = o.guard.waitUntilConfirmed(ctx, o.log); err != nil {
			return err
		}
	}
	rows, err := tx.Query(ctx, `SELECT `+o.columns+`, (extract(epoch FROM published_at) * 1000000)::bigint`+from, args...)
	if err != nil {
		return wrap(err)
	}
	defer rows.Close()
	if err := o.scan(ctx, rows, b, func(ctx context.Context) error { return do(ctx, &b.Rows, confirmed) }); err != nil {
		return err
	}
	return wrap(rows.Err())
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("read the outbox: %w", err)
}

// scan fills b and has it emptied whenever it is full, and at the end.
func (o *outbox) scan(ctx context.Context, rows pgx.Rows, b *batch.Batch, full func(context.Context) error) error {
	hand := func() error {
		if b.Empty() {
			return nil
		}
		err := full(ctx)
		o.done += uint64(b.Len() + len(b.Rejects)) //nolint:gosec // not negative
		o.progress(o.done, max(o.total, o.done))
		b.Reset(o.limits)
		return err
	}
	var tuple decode.Tuple
	for rows.Next() {
		appendTuple(&b.Rows, &tuple, rows.FieldDescriptions(), rows.RawValues())
		if b.Full(o.limits) {
			if err := hand(); err != nil {
				return err
			}
		}
	}
	if err := rows.Err(); err != nil {
		return wrap(err)
	}
	return hand()
}

// appendTuple adds a row, or a reject if its values cannot be represented. The
// last value is published_at in microseconds; tuple is working memory.
func appendTuple(rows *decode.Rows, tuple *decode.Tuple, fields []pgconn.FieldDescription, values [][]byte) {
	last := len(fields) - 1
	created := int64(binary.BigEndian.Uint64(values[last])) //nolint:gosec // two's complement on the wire
	tuple.Columns = tuple.Columns[:0]
	for i, v := range values[:last] {
		c := decode.TupleColumn{Name: fields[i].Name, OID: fields[i].DataTypeOID, Format: "t", Value: v}
		switch {
		case v == nil:
			c.Format = "n"
		case fields[i].Format == pgx.BinaryFormatCode:
			c.Format = "b"
		}
		tuple.Columns = append(tuple.Columns, c)
	}
	err := tuple.Append(rows, decode.Position{}, created)
	if err == nil {
		return
	}
	reject := decode.Reject{CommitTime: created, Type: string(values[1]), Raw: tuple.Encode(), Reason: err.Error()}
	if id, err := uuid.FromBytes(values[0]); err == nil {
		reject.ID = id
	}
	rows.Reject(reject)
}
