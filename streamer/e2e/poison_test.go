package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/streamer/decode"
	"diehard/streamer/pipeline"
)

// deadLetter is a row of event_dead_letter.
type deadLetter struct {
	Source     string    `ch:"source"`
	CommitLSN  uint64    `ch:"commit_lsn"`
	CommitSeq  uint32    `ch:"commit_seq"`
	Timeline   uint32    `ch:"timeline"`
	CommitTime time.Time `ch:"commit_time"`
	ID         uuid.UUID `ch:"event_id"`
	Type       string    `ch:"event_type"`
	Raw        string    `ch:"raw"`
	Reason     string    `ch:"reason"`
	Code       int32     `ch:"error_code"`
	FailedAt   time.Time `ch:"failed_at"`
	RetriedAt  time.Time `ch:"retried_at"`
	Dropped    bool      `ch:"dropped"`
}

// deadLetters waits for n dead letters and returns them in stream order. There are no more.
func deadLetters(t testing.TB, env *testenv.Env, n int) []deadLetter {
	t.Helper()
	var rows []deadLetter
	await.True(t, func() bool {
		rows = nil
		query := "SELECT * FROM " + env.ClickHouseConfig.DeadLetterTable + " ORDER BY commit_lsn, commit_seq"
		require.NoError(t, env.ClickHouse.Select(t.Context(), &rows, query))
		return len(rows) >= n
	}, "fewer than %d dead letters", n)
	require.Len(t, rows, n)
	return rows
}

// confirmedPast waits until the slot is beyond everything that is committed.
func confirmedPast(t testing.TB, env *testenv.Env) {
	t.Helper()
	end := walEnd(t, env)
	await.True(t, func() bool { return slotLSN(t, env, "confirmed_flush_lsn") >= end }, "acknowledgement does not proceed")
}

// undecodable are rows that the event log has no value for, and why.
var undecodable = []struct{ row, reason string }{
	{`(event_type, event_context, event_date_time) VALUES ('bad', '{"n": 1}', 'infinity')`, "column event_date_time is infinite"},
	{`(event_type, event_context, event_date_time) VALUES ('bad', '{"n": 1}', '-infinity')`, "column event_date_time is infinite"},
	{`(event_type, event_context, event_date_time) VALUES ('bad', '{"n": 1}', '3000-01-01')`, "column event_date_time is outside 1900-01-01 to 2299-12-31"},
	{`(event_type, event_context, event_date_time) VALUES ('bad', '{"n": 1}', '1066-10-14')`, "column event_date_time is outside 1900-01-01 to 2299-12-31"},
	{`(event_type, event_context, metadata_version) VALUES ('bad', '{"n": 1}', -1)`, "column metadata_version is negative"},
	{`(event_type, event_context, event_date_time) VALUES ('bad', '{"n": 1}', NULL)`, "column event_date_time is NULL"},
	{`(event_type, event_context) VALUES ('', '{"n": 1}')`, "column event_type is empty"},
}

// Their neighbours in the same transaction are written.
func TestRowsThatCannotBeDecodedBecomeDeadLetters(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	execute(t, env, "ALTER TABLE outbox DROP CONSTRAINT outbox_event")
	s := start(t, env)
	const good = `INSERT INTO outbox (event_type, event_context) VALUES ('good', '{}')`
	tx, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	ids := make([]uuid.UUID, len(undecodable))
	for i, bad := range undecodable {
		_, err := tx.Exec(t.Context(), good)
		require.NoError(t, err)
		require.NoError(t, tx.QueryRow(t.Context(), "INSERT INTO outbox "+bad.row+" RETURNING id").Scan(&ids[i]))
	}
	require.NoError(t, tx.Commit(t.Context()))
	awaitRows(t, env, len(undecodable))
	confirmedPast(t, env)

	of := readPosition(t, env)
	for i, l := range deadLetters(t, env, len(undecodable)) {
		assert.Equal(t, undecodable[i].reason, l.Reason)
		assert.Equal(t, ids[i], l.ID)
		assert.Equal(t, position{l.Source, l.CommitLSN, l.Timeline}, of)
		assert.EqualValues(t, 2*i+2, l.CommitSeq)
		assert.Zero(t, l.Code)
		assert.WithinDuration(t, time.Now(), l.FailedAt, await.Limit)
		assert.Zero(t, l.RetriedAt.Unix())
		assert.Equal(t, `{"n": 1}`, rawColumn(t, l, "event_context"), "the row's own bytes")
	}
	assert.EqualValues(t, len(undecodable), s.seen.deadLetters.Load())
	assert.Equal(t, len(undecodable), count(t, env, "count()", "WHERE event_type = 'good' AND commit_seq % 2 = 1"))
}

// position is what all rows of a transaction have in common.
type position struct {
	source   string
	lsn      uint64
	timeline uint32
}

// readPosition returns that of the only transaction in the event log.
func readPosition(t testing.TB, env *testenv.Env) position {
	t.Helper()
	var p position
	query := "SELECT DISTINCT source, commit_lsn, timeline FROM " + env.ClickHouseConfig.EventLogTable
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), query).Scan(&p.source, &p.lsn, &p.timeline))
	return p
}

func rawColumn(t testing.TB, l deadLetter, name string) string {
	t.Helper()
	tuple, err := decode.ParseTuple(l.Raw)
	require.NoError(t, err)
	for _, c := range tuple.Columns {
		if c.Name == name {
			return string(c.Value)
		}
	}
	require.Fail(t, "no column "+name, l.Raw)
	return ""
}

// ClickHouse refuses the whole batch for one row: halves find it.
func TestRowsThatClickHouseRefusesAreIsolated(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	command(t, env, "ALTER TABLE LOG ADD CONSTRAINT even CHECK event_type != 'poison'")
	start(t, env, func(c *setup) { c.Limits.Rows = 400 })
	execute(t, env, `INSERT INTO outbox (event_type, event_context, metadata_version)
		SELECT CASE WHEN n IN (1, 77, 78, 600, 1000) THEN 'poison' ELSE 'fine' END, json_build_object('n', n), n FROM generate_series(1, 1000) AS n`)
	awaitRows(t, env, 995)
	confirmedPast(t, env)
	seqs := []uint32{1, 77, 78, 600, 1000}
	for i, l := range deadLetters(t, env, len(seqs)) {
		assert.Equal(t, seqs[i], l.CommitSeq)
		assert.Equal(t, "poison", l.Type)
		assert.EqualValues(t, 469, l.Code)
		assert.Contains(t, l.Reason, "VIOLATED_CONSTRAINT")
		assert.JSONEq(t, fmt.Sprintf(`{"n":%d}`, seqs[i]), rawColumn(t, l, "event_context"))
		assertRawDecodes(t, l)
	}
	trickle(t, env, 3)
	awaitRows(t, env, 998)
}

// assertRawDecodes demands that the raw form gives the event back, for a retry.
func assertRawDecodes(t testing.TB, l deadLetter) {
	t.Helper()
	tuple, err := decode.ParseTuple(l.Raw)
	require.NoError(t, err)
	var rows decode.Rows
	p := decode.Position{LSN: pglogrepl.LSN(l.CommitLSN), Seq: l.CommitSeq}
	require.NoError(t, tuple.Append(&rows, p, l.CommitTime.UnixMicro()))
	assert.Equal(t, l.ID, rows.IDAt(0))
	assert.EqualValues(t, l.CommitSeq, rows.MetadataVersion[0])
}

// Every row of a batch is poison, and so is a lone one.
func TestABatchOfPoisonOnly(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	command(t, env, "ALTER TABLE LOG ADD CONSTRAINT none CHECK event_type != 'numbered'")
	start(t, env)
	publish(t, env, 20)
	trickle(t, env, 1)
	deadLetters(t, env, 21)
	confirmedPast(t, env)
	assert.Zero(t, countRows(t, env))
}

// A materialized view fails for some rows of a block: all of them are written once, and none is a
// dead letter.
func TestAMaterializedViewThatThrows(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	command(t, env, `CREATE MATERIALIZED VIEW watch ENGINE = Null AS SELECT CAST(throwIf(toString(event_type) = 'poison'), 'UInt8') AS x FROM LOG`)
	s := start(t, env)
	execute(t, env, `INSERT INTO outbox (event_type, event_context)
		SELECT CASE WHEN n % 100 = 7 THEN 'poison' ELSE 'fine' END, json_build_object('n', n) FROM generate_series(1, 300) AS n`)
	awaitRows(t, env, 300)
	confirmedPast(t, env)
	assert.Equal(t, 300, count(t, env, "uniqExact(event_id)", ""))
	assert.Equal(t, 3, count(t, env, "countIf(event_type = 'poison')", ""))
	deadLetters(t, env, 0)
	assert.Zero(t, s.seen.deadLetters.Load())
	failed := s.seen.failed()
	require.NotEmpty(t, failed, "a view failed in silence")
	assert.Equal(t, []string{env.ClickHouseConfig.Database + ".watch"}, failed[0].Views)
	assert.Contains(t, s.log.text(), "code 395 (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO)")
}

// A derived column is evaluated when a row is inserted. What ClickHouse raises then may be
// in our lists or not; either way the row is isolated, and its value in no log.
func TestADerivedColumnThatRowsDoNotFit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		column, bad, good string
		code              int32
	}{
		"known code":   {"u UUID MATERIALIZED toUUID(JSONExtractString(event_context, 'v'))", "my-secret", "01a20f75-044c-7c2e-94ce-f32c3b0285f2", 376},
		"unknown code": {"u UInt64 MATERIALIZED toUInt64(JSONExtractString(event_context, 'v'))", "", "7", 32},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			s := start(t, env)
			command(t, env, "ALTER TABLE LOG ADD COLUMN "+c.column)
			execute(t, env, fmt.Sprintf(`INSERT INTO outbox (event_type, event_context)
				SELECT 'x', json_build_object('v', CASE WHEN n IN (1, 2, 30, 31, 40) THEN '%s' ELSE '%s' END, 'hidden', 'my-secret') FROM generate_series(1, 40) AS n`, c.bad, c.good))
			awaitRows(t, env, 35)
			confirmedPast(t, env)
			for i, l := range deadLetters(t, env, 5) {
				assert.Equal(t, []uint32{1, 2, 30, 31, 40}[i], l.CommitSeq)
				assert.Equal(t, c.code, l.Code)
				assert.Contains(t, l.Reason, fmt.Sprintf("code: %d, message: ", c.code))
				assert.Contains(t, l.Reason, c.bad, "the whole reason is kept")
			}
			last, _ := s.pipeline.Progress().LastError()
			assert.NotContains(t, fmt.Sprint(s.log.text(), last, s.seen.retried()), "my-secret")
			assert.Contains(t, s.log.text(), fmt.Sprintf("code %d (", c.code))
		})
	}
}

// A code that no list has and that every row meets is the server's trouble: it is
// waited for, and hardly a row becomes a dead letter meanwhile.
func TestAnUnknownCodeForEveryRow(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env)
	command(t, env, "ALTER TABLE LOG ADD COLUMN u UInt64 MATERIALIZED toUInt64(substring(event_context, 1, 0))")
	publish(t, env, 50)
	await.True(t, func() bool { return s.seen.deadLetters.Load() > 0 }, "a row that always fails never becomes a dead letter")
	retries := s.seen.retries.Load()
	await.True(t, func() bool { return s.seen.retries.Load() > retries+4 }, "it is not tried again")
	assert.EqualValues(t, 1, s.seen.deadLetters.Load(), "the next row is tried longer")
	assert.Zero(t, countRows(t, env))
	assert.Equal(t, pipeline.Retrying, s.pipeline.Progress().State())
	command(t, env, "ALTER TABLE LOG DROP COLUMN u")
	confirmedPast(t, env)
	assert.Equal(t, 50, countRows(t, env)+int(s.seen.deadLetters.Load()), "every row is in one of the tables, once")
	assert.LessOrEqual(t, s.seen.deadLetters.Load(), int64(2))
}

// The dead-letter table is away: what belongs into it waits, and so does the
// acknowledgement.
func TestNothingIsConfirmedBeforeItsDeadLetterIsDurable(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	env.AllowOutOfRange(t)
	s := start(t, env)
	table := env.ClickHouseConfig.DeadLetterTable
	command(t, env, "ALTER TABLE "+table+" MODIFY SETTING table_readonly = 1")
	execute(t, env, "INSERT INTO outbox "+undecodable[0].row)
	end := walEnd(t, env)
	trickle(t, env, 5)
	await.True(t, func() bool { return s.seen.retries.Load() > 2 }, "the dead letter is not tried again")
	assert.Less(t, slotLSN(t, env, "confirmed_flush_lsn"), end)
	command(t, env, "ALTER TABLE "+table+" MODIFY SETTING table_readonly = 0")
	deadLetters(t, env, 1)
	awaitRows(t, env, 5)
	confirmedPast(t, env)
}

// A restart between a dead letter and its neighbours repeats neither.
func TestDeadLettersAreWrittenOnce(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	// In one batch: the dead letters of another would wait for the rows of the first.
	together := func(c *setup) { c.Limits.Rows, c.FlushInterval = 100, time.Hour }
	s := start(t, env, abrupt, together)
	hold(t, env)
	env.AllowOutOfRange(t)
	execute(t, env, `INSERT INTO outbox (event_type, event_context, event_date_time)
		SELECT 'mixed', '{}', CASE WHEN n % 10 = 0 THEN 'infinity' ELSE now() END FROM generate_series(1, 100) AS n`)
	deadLetters(t, env, 10)
	s.crash()
	release(t, env)
	again := start(t, env)
	awaitRows(t, env, 90)
	confirmedPast(t, env)
	var n uint64 // without FINAL: not even for a moment twice
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM "+env.ClickHouseConfig.DeadLetterTable).Scan(&n))
	assert.EqualValues(t, 10, n)
	assert.Zero(t, again.seen.deadLetters.Load())
}
