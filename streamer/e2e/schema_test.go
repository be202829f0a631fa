package e2e

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// Changes of the outbox in the middle of the stream that leave what we need:
// events before and behind them arrive, in one session.
func TestSchemaChangesThatFlow(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env)
	publish(t, env, 10)
	for _, change := range []string{
		"ADD COLUMN extra text DEFAULT 'x'",
		"ADD COLUMN more uuid[] DEFAULT ARRAY[gen_random_uuid()]",
		"RENAME COLUMN extra TO renamed",
		"DROP COLUMN trace_context",
		"DROP COLUMN published_by",
		"DROP COLUMN more",
		"ALTER COLUMN event_type TYPE varchar(300)",
		"DROP CONSTRAINT IF EXISTS outbox_event", // json alone
		"ALTER COLUMN event_context TYPE jsonb",
		"ALTER COLUMN event_context TYPE json",
		"ALTER COLUMN metadata_version TYPE int",
		"DETACH PARTITION diehard_outbox_default",
		"ATTACH PARTITION diehard_outbox_default DEFAULT",
	} {
		execute(t, env, "DROP VIEW IF EXISTS diehard_events")
		execute(t, env, "ALTER TABLE outbox "+change)
		trickle(t, env, 2)
	}
	execute(t, env, `INSERT INTO outbox (event_type, event_context, metadata_version) VALUES ('at the end', '{"n": 9007199254740993}', 7)`)
	delivered(t, env)
	row := readRow(t, env, "at the end")
	assert.Equal(t, `{"n": 9007199254740993}`, row.Context)
	assert.EqualValues(t, 7, row.MetadataVersion)
	assert.Zero(t, s.seen.sessions.Load())
	assert.Zero(t, s.seen.deadLetters.Load())
}

// A column that is needed and gone, or that cannot be mapped, ends the streamer
// with its name. Nothing is confirmed past its first row.
func TestSchemaChangesThatAreRefused(t *testing.T) {
	t.Parallel()
	for change, c := range map[string]struct{ column, insert string }{
		"RENAME COLUMN event_type TO kind":                       {"event_type", "(kind, event_context) VALUES ('x', '{}')"},
		"DROP COLUMN environment":                                {"environment", "(event_type, event_context) VALUES ('x', '{}')"},
		"DROP COLUMN metadata_version":                           {"metadata_version", "(event_type, event_context) VALUES ('x', '{}')"},
		"ALTER COLUMN event_date_time TYPE text":                 {"event_date_time", "(event_type, event_context) VALUES ('x', '{}')"},
		"ALTER COLUMN event_context TYPE bytea USING 'x'::bytea": {"event_context", `(event_type, event_context) VALUES ('x', '\x00')`},
	} {
		t.Run(c.column, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			execute(t, env, "DROP VIEW diehard_events")
			execute(t, env, "ALTER TABLE outbox DROP CONSTRAINT outbox_event")
			s := delivering(t, env, 10)
			confirmedPast(t, env)
			execute(t, env, "ALTER TABLE outbox "+change)
			execute(t, env, "INSERT INTO outbox "+c.insert)
			says(t, s.refusal(), append(anew, "column", c.column)...)
			assert.Equal(t, 1, pending(t, env), "the row is still the slot's to deliver")
			assert.Equal(t, 10, countRows(t, env))
		})
	}
}

// The fix of the refusal: the WAL keeps the rows as they were written, so that
// restoring the name is not enough once there are any.
func TestARenamedColumnIsFixed(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	execute(t, env, "DROP VIEW diehard_events")
	s := start(t, env)
	execute(t, env, "ALTER TABLE outbox RENAME COLUMN environment TO place")
	execute(t, env, "INSERT INTO outbox (event_type, event_context, place) VALUES ('renamed', '{}', 'here')")
	says(t, s.refusal(), anew...)
	execute(t, env, "ALTER TABLE outbox RENAME COLUMN place TO environment")
	says(t, launch(t, env).refusal(), anew...)
	anewByCommand(t, env)
	start(t, env)
	trickle(t, env, 5)
	awaitRows(t, env, 5)
}
