package sink

import (
	"context"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pglogrepl"

	"diehard/streamer/decode"
)

// End is the last row of a source in event_log and the WAL timeline of its
// commit; zeros when the source has no row.
type End struct {
	decode.Position
	Timeline uint32
}

// lastRow is the aggregate of event_log's projection p_position: position and
// timeline packed into one UInt128, which costs an insert a fraction of what max
// over a tuple does. ClickHouse uses the projection only for the same expression.
const lastRow = `max(bitOr(bitShiftLeft(toUInt128(commit_lsn), 64), toUInt128(bitOr(bitShiftLeft(toUInt64(commit_seq), 32), toUInt64(timeline)))))`

// PositionProjection is the definition of event_log's projection p_position.
const PositionProjection = "SELECT source, " + lastRow + " GROUP BY source"

// unpacked are the three parts of lastRow, as end.
const unpacked = `toUInt64(bitShiftRight(last, 64)), toUInt32(bitAnd(bitShiftRight(last, 32), 4294967295)), toUInt32(bitAnd(last, 4294967295))`

// ReadEnd reads the end of source in table, which is quoted, in milliseconds
// whatever the size of the table.
func ReadEnd(ctx context.Context, conn driver.Conn, table, source string) (End, error) {
	var end End
	var lsn uint64
	err := conn.QueryRow(ctx, `SELECT `+unpacked+` FROM (SELECT `+lastRow+` AS last FROM `+table+` WHERE source = {source:String})`,
		clickhouse.Named("source", source)).Scan(&lsn, &end.Seq, &end.Timeline)
	if err != nil {
		return End{}, fmt.Errorf("read the end of %s: %w", table, classify(err))
	}
	end.LSN = pglogrepl.LSN(lsn)
	return end, nil
}
