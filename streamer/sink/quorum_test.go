package sink

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/clickhouse"
	"diehard/streamer/decode"
)

// A view shows what a replica shows of rows that wait for their quorum: all to
// an ordinary query, and only the settled ones to a sequential one.
func TestRowsThatWaitForReplicasAreNeitherThereNorMissing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	require.NoError(t, f.insert(sample(100, 2), 0, 2))
	require.NoError(t, f.insert(sample(200, 2), 0, 2))
	f.exec("CREATE TABLE settled_up_to (lsn UInt64) ENGINE = MergeTree ORDER BY lsn")
	f.exec("INSERT INTO settled_up_to VALUES (150)")
	for _, table := range []string{"event_log", "event_dead_letter"} {
		f.exec("CREATE VIEW replica_" + table + " AS SELECT * FROM " + table + ` WHERE NOT toBool(getSetting('select_sequential_consistency'))
			OR commit_lsn <= (SELECT max(lsn) FROM settled_up_to)`)
	}
	on := func(quorum bool) *Sink {
		return New(f.ClickHouse, Tables{EventLog: "replica_event_log", DeadLetter: "replica_event_dead_letter", Quorum: quorum}, f.source, OnTimeline(timeline))
	}
	at, _, err := on(false).Position(t.Context())
	require.NoError(t, err)
	end := sample(200, 2).Position(1)
	assert.Equal(t, sample(100, 2).Position(1), at, "reads are sequential")
	_, _, err = on(true).Position(t.Context())
	require.ErrorIs(t, err, errBelowQuorum)

	f.exec("INSERT INTO settled_up_to VALUES (250)")
	at, _, err = on(true).Position(t.Context())
	require.NoError(t, err)
	assert.Equal(t, end, at)

	f.exec("INSERT INTO event_dead_letter (source, commit_lsn, commit_seq) VALUES ('" + f.source.String() + "', 300, 1)")
	waiting := decode.Position{LSN: 300, Seq: 1}
	behind, want := Range{After: end, Through: waiting}, map[decode.Position]bool{waiting: true}
	_, err = on(true).HasDeadLetters(t.Context(), behind, want)
	require.ErrorIs(t, err, errBelowQuorum)
	f.exec("INSERT INTO settled_up_to VALUES (350)")
	there, err := on(true).HasDeadLetters(t.Context(), behind, want)
	require.NoError(t, err)
	assert.True(t, there)
}

func TestTheServerIsAskedForTheQuorum(t *testing.T) {
	t.Parallel()
	cfg := newFixture(t).ClickHouseConfig
	for quorum, want := range map[uint8]string{0: "0 1", 2: "2 0"} {
		cfg.InsertQuorum = quorum
		conn, err := clickhouse.Open(t.Context(), cfg)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		var have string
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT concat(toString(getSetting('insert_quorum')), ' ',
			toString(toUInt8(getSetting('insert_quorum_parallel'))))`).Scan(&have))
		assert.Equal(t, want, have)
	}
}
