package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"

	"diehard/shared/clickhouse"
	"diehard/shared/settings"
	"diehard/streamer/config"
)

// idiom is the usual Go program for this: pglogrepl's parser, rows as structs,
// clickhouse-go's columns, one insert per full batch or interval, then an
// acknowledgement. It has the table, batch bounds and binary format of the streamer.
func idiom(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	cfg, err := settings.Parse[config.Config]("idiom")
	if err != nil {
		return err
	}
	conn, err := clickhouse.Open(ctx, cfg.ClickHouse)
	if err != nil {
		return err
	}
	url := cfg.Postgres.URL + "&replication=database"
	pg, err := pgconn.Connect(ctx, url)
	if err != nil {
		return err
	}
	err = pglogrepl.StartReplication(ctx, pg, cfg.Replication.Slot, 0, pglogrepl.StartReplicationOptions{
		Mode:       pglogrepl.LogicalReplication,
		PluginArgs: []string{"proto_version '1'", "publication_names '" + cfg.Replication.Publication + "'", "binary 'true'"},
	})
	if err != nil {
		return err
	}
	r := &idiomReader{cfg: cfg, pg: pg, ch: conn, relations: map[uint32]*pglogrepl.RelationMessage{}, types: pgtype.NewMap()}
	return r.loop(ctx)
}

type idiomRow struct {
	id          uuid.UUID
	eventType   string
	at          time.Time
	environment string
	context     string
	version     uint64
	publishedBy string
	lsn         uint64
	seq         uint32
	committed   time.Time
}

type idiomReader struct {
	cfg       config.Config
	pg        *pgconn.PgConn
	ch        driver.Conn
	types     *pgtype.Map
	relations map[uint32]*pglogrepl.RelationMessage
	begin     *pglogrepl.BeginMessage
	seq       uint32
	rows      []idiomRow
	confirm   pglogrepl.LSN
}

func (r *idiomReader) loop(ctx context.Context) error {
	due := time.Now().Add(r.cfg.Batch.FlushInterval)
	for ctx.Err() == nil {
		wait, cancel := context.WithDeadline(ctx, due)
		raw, err := r.pg.ReceiveMessage(wait)
		cancel()
		if pgconn.Timeout(err) || len(r.rows) >= r.cfg.Batch.Rows {
			if err := r.flush(ctx); err != nil {
				return err
			}
			due = time.Now().Add(r.cfg.Batch.FlushInterval)
		}
		if err != nil {
			if pgconn.Timeout(err) || ctx.Err() != nil {
				continue
			}
			return err
		}
		data, ok := raw.(*pgproto3.CopyData)
		if !ok {
			return fmt.Errorf("unexpected message %T", raw)
		}
		if data.Data[0] == pglogrepl.XLogDataByteID {
			if err := r.message(data.Data[1:]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *idiomReader) message(b []byte) error {
	x, err := pglogrepl.ParseXLogData(b)
	if err != nil {
		return err
	}
	m, err := pglogrepl.Parse(x.WALData)
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *pglogrepl.RelationMessage:
		r.relations[m.RelationID] = m
	case *pglogrepl.BeginMessage:
		r.begin, r.seq = m, 0
	case *pglogrepl.CommitMessage:
		r.confirm = m.TransactionEndLSN
	case *pglogrepl.InsertMessage:
		return r.insert(m)
	}
	return nil
}

func (r *idiomReader) insert(m *pglogrepl.InsertMessage) error {
	rel, ok := r.relations[m.RelationID]
	if !ok {
		return errors.New("unknown relation")
	}
	r.seq++
	row := idiomRow{lsn: uint64(r.begin.FinalLSN), seq: r.seq, committed: r.begin.CommitTime}
	for i, c := range m.Tuple.Columns {
		if c.DataType == 'n' {
			continue
		}
		format := int16(pgtype.TextFormatCode)
		if c.DataType == 'b' {
			format = pgtype.BinaryFormatCode
		}
		if err := r.column(&row, rel.Columns[i], format, c.Data); err != nil {
			return err
		}
	}
	r.rows = append(r.rows, row)
	return nil
}

func (r *idiomReader) column(row *idiomRow, c *pglogrepl.RelationMessageColumn, format int16, data []byte) error {
	scan := func(v any) error { return r.types.Scan(c.DataType, format, data, v) }
	switch c.Name {
	case "id":
		return scan((*[16]byte)(&row.id))
	case "event_type":
		return scan(&row.eventType)
	case "event_date_time":
		return scan(&row.at)
	case "environment":
		return scan(&row.environment)
	case "event_context":
		row.context = string(data)
	case "metadata_version":
		return scan(&row.version)
	case "published_by":
		return scan(&row.publishedBy)
	}
	return nil
}

func (r *idiomReader) flush(ctx context.Context) error {
	if len(r.rows) > 0 {
		if err := r.insertRows(ctx); err != nil {
			return err
		}
		r.rows = r.rows[:0]
	}
	if r.confirm == 0 {
		return nil
	}
	return pglogrepl.SendStandbyStatusUpdate(ctx, r.pg, pglogrepl.StandbyStatusUpdate{
		WALWritePosition: r.confirm, WALFlushPosition: r.confirm, WALApplyPosition: r.confirm,
	})
}

func (r *idiomReader) insertRows(ctx context.Context) error {
	ctx = ch.Context(ctx, ch.WithSettings(ch.Settings{"async_insert": 0}))
	batch, err := r.ch.PrepareBatch(ctx, "INSERT INTO "+r.cfg.ClickHouse.EventLogTable+` (event_id, event_type, event_date_time, environment,
		event_context, metadata_version, published_by, source, timeline, commit_lsn, commit_seq, commit_time, ingested_at)`)
	if err != nil {
		return err
	}
	for i, values := range r.columns(time.Now()) {
		if err := batch.Column(i).Append(values); err != nil {
			return err
		}
	}
	return batch.Send()
}

func (r *idiomReader) columns(now time.Time) []any {
	n := len(r.rows)
	ids, lsn, version := make([]uuid.UUID, n), make([]uint64, n), make([]uint64, n)
	types, environments, contexts, callers, source := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	at, committed, ingested := make([]time.Time, n), make([]time.Time, n), make([]time.Time, n)
	seq, timeline := make([]uint32, n), make([]uint32, n)
	for i, row := range r.rows {
		ids[i], types[i], at[i], environments[i], contexts[i] = row.id, row.eventType, row.at, row.environment, row.context
		callers[i] = row.publishedBy
		version[i], source[i], timeline[i], lsn[i], seq[i] = row.version, "idiom", 1, row.lsn, row.seq
		committed[i], ingested[i] = row.committed, now
	}
	return []any{ids, types, at, environments, contexts, version, callers, source, timeline, lsn, seq, committed, ingested}
}
