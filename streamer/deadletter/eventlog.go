package deadletter

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pglogrepl"

	"diehard/streamer/decode"
	"diehard/streamer/sink"
)

// eventLog is the table that retried records are written to.
type eventLog struct {
	conn driver.Conn
	sink *sink.Sink // reads through conn
	name string     // quoted
}

// written returns which of the records, all of one source, are in event_log. With
// since, only rows ingested at that time or later count; older parts are not read. A replica
// that is not up to date is waited for.
func (e eventLog) written(ctx context.Context, records []Record, since time.Time) (map[decode.Position]bool, error) {
	return sink.Await(ctx, e.sink, func(ctx context.Context) (map[decode.Position]bool, error) { return e.look(ctx, records, since) }, maps.Equal)
}

func (e eventLog) look(ctx context.Context, records []Record, since time.Time) (map[decode.Position]bool, error) {
	var list strings.Builder
	for i, d := range records {
		if i > 0 {
			list.WriteByte(',')
		}
		fmt.Fprintf(&list, "(%d,%d)", uint64(d.LSN), d.Seq)
	}
	rows, err := e.conn.Query(ctx, `
		SELECT DISTINCT commit_lsn, commit_seq FROM `+e.name+`
		WHERE source = ? AND (commit_lsn, commit_seq) IN (`+list.String()+`) AND ingested_at >= fromUnixTimestamp64Milli(toInt64(?), 'UTC')`,
		records[0].Source, since.UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("read back: %w", err)
	}
	defer rows.Close()
	present := make(map[decode.Position]bool)
	for rows.Next() {
		var lsn uint64
		var seq uint32
		if err := rows.Scan(&lsn, &seq); err != nil {
			return nil, fmt.Errorf("read back: %w", err)
		}
		present[decode.Position{LSN: pglogrepl.LSN(lsn), Seq: seq}] = true
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read back: %w", err)
	}
	return present, nil
}
