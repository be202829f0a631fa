package replay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"diehard/shared/event"
	"diehard/streamer/batch"
	"diehard/streamer/decode"
)

// outbox reads the outbox itself, day by day, so that no snapshot is held for
// longer than one day's rows take.
type outbox struct {
	conn     *pgx.Conn // another than the guard's
	guard    *guard
	span     Span
	filter   string // of the streamer's shard; may be empty
	limits   batch.Limits
	log      *slog.Logger
	progress func(done, total uint64)

	done, total uint64
}

// each hands the rows in pieces over, together with a position in the WAL that
// lies behind the commits of all of them and that the streamer has confirmed.
// The rows have no places; their commit time is created_at. They are valid during
// the call.
func (o *outbox) each(ctx context.Context, do func(ctx context.Context, rows *decode.Rows, settled pglogrepl.LSN) error) error {
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
		if err != nil && !isDropped(err) {
			return err
		}
	}
	for i := 1; i < len(days); i++ {
		if err := o.one(ctx, b, "public."+event.Table, days[i-1], days[i], do); err != nil {
			return err
		}
	}
	return nil
}

// detached lists what retention has taken out of the outbox already and not yet
// dropped: a slot that was lost since then may not have delivered it. Retention
// takes out nothing that may be undelivered, so the list does not grow by such.
func (o *outbox) detached(ctx context.Context) ([]string, error) {
	rows, err := o.conn.Query(ctx, `SELECT format('public.%I', partition) FROM public.outbox_partitions WHERE state = 'detached' ORDER BY starts_at`)
	if err != nil {
		return nil, fmt.Errorf("read the outbox's detached partitions: %w", err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the outbox's detached partitions: %w", err)
	}
	return tables, nil
}

// isDropped tells that retention has dropped the table meanwhile: then it was delivered.
func isDropped(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "42P01" // undefined_table
}

// days cuts the span where partitions begin and end. The default partition has a
// part in each of the pieces.
func (o *outbox) days(ctx context.Context) ([]pgtype.Timestamptz, error) {
	low, high := bound(o.span.Since, pgtype.NegativeInfinity), bound(o.span.Until, pgtype.Infinity)
	rows, err := o.conn.Query(ctx, `
		SELECT day FROM (
			SELECT starts_at FROM public.outbox_partitions WHERE state <> 'detached'
			UNION SELECT ends_at FROM public.outbox_partitions WHERE state <> 'detached') AS edges (day)
		WHERE day > $1 AND day < $2 ORDER BY day`, low, high)
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
			WHERE i.inhparent = 'public.`+event.Table+`'::regclass`).Scan(&o.total)
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
	from := ` FROM ` + table + ` WHERE created_at >= $1 AND created_at < $2`
	if o.filter != "" {
		from += ` AND ` + o.filter
	}
	// The first statement takes the snapshot. Comparing may take long, and so may waiting for the streamer.
	var any bool
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT`+from+`)`, low, high).Scan(&any)
	if err != nil || !any {
		return wrap(err)
	}
	if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0`); err != nil {
		return wrap(err)
	}
	if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
		return wrap(err)
	}
	settled, err := o.guard.settled(ctx, o.log)
	if err != nil {
		return err
	}
	rows, err := tx.Query(ctx, `SELECT id, event_type, event_date_time, environment, event_context, metadata_version,
		(extract(epoch FROM created_at) * 1000000)::bigint`+from, low, high)
	if err != nil {
		return wrap(err)
	}
	defer rows.Close()
	if err := o.scan(ctx, rows, b, func(ctx context.Context) error { return do(ctx, &b.Rows, settled) }); err != nil {
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
// last value is created_at in microseconds; tuple is working memory.
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
