package main

import (
	"context"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"diehard/shared/clickhouse"
	"diehard/shared/settings"
	"diehard/streamer/config"
)

// pollingTable is the usual polled outbox: a status column, and an index on the
// rows that are pending.
const pollingTable = `
	CREATE TABLE outbox_polled (LIKE outbox INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
	ALTER TABLE outbox_polled ADD COLUMN seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		ADD COLUMN status text NOT NULL DEFAULT 'pending';
	CREATE INDEX ON outbox_polled (seq) WHERE status = 'pending'`

// polledBacklog is the backlog of the drain as pending rows of that table.
const polledBacklog = `DROP TABLE IF EXISTS outbox_polled; ` + pollingTable + `;
	INSERT INTO outbox_polled SELECT * FROM outbox;
	ANALYZE outbox_polled`

// polling is the worker of a polling outbox: select for update, skip locked, the
// same columnar insert as the idiom, then a status update. It has the streamer's
// batch size and polls every flush interval, and at once again after a full batch.
func polling(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	cfg, err := settings.Parse[config.Config]("polling")
	if err != nil {
		return err
	}
	ch, err := clickhouse.Open(ctx, cfg.ClickHouse)
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, cfg.Postgres.URL)
	if err != nil {
		return err
	}
	defer pool.Close()
	r := &idiomReader{cfg: cfg, ch: ch}
	tick := time.NewTicker(cfg.Batch.FlushInterval)
	defer tick.Stop()
	for {
		n, err := pollOnce(ctx, pool, r)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if n == cfg.Batch.Rows {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func pollOnce(ctx context.Context, pool *pgxpool.Pool, r *idiomReader) (int, error) {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after a commit there is nothing to do
	rows, err := tx.Query(ctx, `
		SELECT seq, id, event_type, event_date_time, environment, event_context::text, metadata_version
		FROM outbox_polled WHERE status = 'pending' ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED`, r.cfg.Batch.Rows)
	if err != nil {
		return 0, err
	}
	sent, err := r.polled(rows)
	if err != nil || len(sent) == 0 {
		return 0, err
	}
	if err := r.insertRows(ctx); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, `UPDATE outbox_polled SET status = 'sent' WHERE seq = ANY($1)`, sent); err != nil {
		return 0, err
	}
	return len(sent), tx.Commit(ctx)
}

// polled keeps the rows for the insert and returns their numbers.
func (r *idiomReader) polled(rows pgx.Rows) ([]int64, error) {
	defer rows.Close()
	r.rows = r.rows[:0]
	var sent []int64
	for rows.Next() {
		var row idiomRow
		var seq int64
		if err := rows.Scan(&seq, &row.id, &row.eventType, &row.at, &row.environment, &row.context, &row.version); err != nil {
			return nil, err
		}
		row.lsn, row.seq, row.committed = uint64(seq), 1, row.at //nolint:gosec // an identity column counts from 1
		r.rows, sent = append(r.rows, row), append(sent, seq)
	}
	return sent, rows.Err()
}
