package crash_test

import (
	"context"
	"errors"
	"strconv"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

const (
	eventLog    = "event_log"
	deadLetters = "crash_dead_letter"
	// Events of fleetingType leave event_log again; every row of theirs that was ever
	// written is in fleetingLog.
	fleetingType, fleetingLog = "crash_fleeting", "crash_fleeting"
	// refusedType is what ClickHouse refuses by a constraint, underivableType by a derived
	// column; both are made here.
	refusedType, underivableType = "crash_refused", "crash_underivable"
	// streamerListeners of ClickHouse are the streamers'. The first one is the test's own, which
	// sees everything at once.
	streamerListeners = 2
	// fleetingTime is behind every stall, so that a failover finds the last rows.
	fleetingTime = "180 SECOND"
)

// prepareTables makes rows that are refused and rows that leave, and what shows them.
func (w *environment) prepareTables(t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.url)
	require.NoError(t, err)
	// Without the constraint some rows can become dead letters.
	_, err = conn.Exec(t.Context(), "ALTER TABLE outbox DROP CONSTRAINT outbox_event; "+witnesses)
	require.NoError(t, errors.Join(err, conn.Close(t.Context())))
	for _, statement := range []string{
		"ALTER TABLE " + eventLog + " ADD CONSTRAINT crash CHECK event_type != '" + refusedType + "'",
		"ALTER TABLE " + eventLog + " ADD COLUMN crash_derived UUID MATERIALIZED toUUID(if(event_type = '" + underivableType + "', 'none', toString(event_id)))",
		// The real table forgets duplicates when it merges; this one shows them, with FINAL as well.
		"ALTER TABLE event_dead_letter ADD COLUMN crash_row UUID MATERIALIZED generateUUIDv4()",
		"CREATE TABLE " + deadLetters + " AS event_dead_letter ENGINE = ReplacingMergeTree ORDER BY (source, commit_lsn, commit_seq, crash_row) " +
			"SETTINGS non_replicated_deduplication_window = 1000",
		"CREATE TABLE " + fleetingLog + " (event_id UUID, source LowCardinality(String), how LowCardinality(String)) ENGINE = MergeTree ORDER BY event_id " +
			"SETTINGS non_replicated_deduplication_window = 1000",
		"CREATE MATERIALIZED VIEW crash_watch TO " + fleetingLog + " AS SELECT event_id, source, '" + byView + "' AS how FROM " + eventLog +
			" WHERE event_type = '" + fleetingType + "'",
		"ALTER TABLE " + eventLog + " MODIFY TTL toDateTime(ingested_at) + INTERVAL " + fleetingTime + " DELETE WHERE event_type = '" + fleetingType + "'",
		// Processes are killed and not the machine: neither server has to wait for the disk.
		"ALTER TABLE " + eventLog + " MODIFY SETTING fsync_after_insert = 0, fsync_part_directory = 0, merge_with_ttl_timeout = 5",
	} {
		require.NoError(t, w.ch.Exec(t.Context(), statement), statement)
	}
}

// How a row came into fleetingLog.
const byView, byHand = "view", "hand"

// noteFleeting adds what the view did not note, because ClickHouse was killed between table and view.
func (w *environment) noteFleeting(ctx context.Context) error {
	return w.ch.Exec(ctx, "INSERT INTO "+fleetingLog+" SELECT event_id, source, '"+byHand+"' FROM "+eventLog+
		" WHERE event_type = '"+fleetingType+"' AND event_id NOT IN (SELECT event_id FROM "+fleetingLog+")")
}

// deleteFleeting deletes a part of the rows that may leave, the last ones among them: those that were noted.
func (x *chaos) deleteFleeting() bool {
	if !x.w.upheavals.deletes.TryLock() {
		return false
	}
	if !x.w.settled(x.ctx) { // rows that leave just before a failover may come back
		x.w.upheavals.deletes.Unlock()
		return false
	}
	where := " WHERE event_type = '" + fleetingType + "' AND event_id IN (SELECT event_id FROM " + fleetingLog + ") AND cityHash64(event_id) % 4 = " +
		strconv.Itoa(x.rng.IntN(4))
	how, name := "DELETE FROM "+eventLog+where, "delete rows, lightweight"
	if x.rng.IntN(2) == 0 {
		how, name = "ALTER TABLE "+eventLog+" DELETE"+where, "delete rows"
	}
	ctx := clickhouse.Context(x.ctx, clickhouse.WithSettings(clickhouse.Settings{"mutations_sync": 2, "lightweight_deletes_sync": 2}))
	x.busy.Go(func() {
		defer x.w.upheavals.deletes.Unlock()
		err := x.w.noteFleeting(ctx)
		if err == nil {
			err = x.w.ch.Exec(ctx, how)
		}
		if err == nil { // or ClickHouse was killed meanwhile
			x.w.did(name, false)
		}
	})
	return true
}
