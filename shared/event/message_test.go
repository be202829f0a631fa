package event_test

import (
	"database/sql"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/shared/event"
)

// That messages arrive is tested with the streamer, in package e2e.

// listening makes PostgreSQL believe that a streamer reads messages, and makes a
// slot that keeps them.
func listening(t *testing.T) *testenv.Env {
	t.Helper()
	env := testenv.New(t)
	_, err := env.Pool.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot)
	require.NoError(t, err)
	_, err = env.Pool.Exec(t.Context(), "INSERT INTO diehard_slot (slot_name, messages) VALUES ('s', true)")
	require.NoError(t, err)
	return env
}

// messages are the contents in the WAL, in order.
func messages(t *testing.T, env *testenv.Env) []string {
	t.Helper()
	rows, err := env.Pool.Query(t.Context(), `SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', $2, 'messages', 'true') WHERE get_byte(data, 0) = ascii('M')`, env.Slot, env.Publication)
	require.NoError(t, err)
	list, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	require.NoError(t, err)
	var contents []string
	for _, m := range list {
		_, content, found := strings.Cut(string(m[10:]), event.MessagePrefix+"\x00")
		require.True(t, found)
		assert.EqualValues(t, 1, m[1], "transactional")
		contents = append(contents, content[4:])
	}
	return contents
}

func TestMessagesAreFramedTheSameFromEverywhere(t *testing.T) {
	t.Parallel()
	env := listening(t)
	e := full(3)
	e.Type, e.Environment, e.Context = "a \"b\"\\ é", "Prüfung", json.RawMessage(" {\"a\\\"\" : [1,\n 2]}")
	require.NoError(t, event.PublishMessages(t.Context(), env.Pool, e, e))
	db := sql.OpenDB(stdlib.GetPoolConnector(env.Pool))
	defer db.Close()
	require.NoError(t, event.PublishMessages(t.Context(), event.SQL(db), e, e))
	var batch pgx.Batch
	require.NoError(t, event.QueueMessages(&batch, e))
	require.NoError(t, env.Pool.SendBatch(t.Context(), &batch).Close())
	_, err := env.Pool.Exec(t.Context(), "SELECT publish_event_message($1, $2, $3, $4, $5, $6, $7)",
		e.Type, string(e.Context), e.Environment, e.MetadataVersion, e.TraceContext, e.DateTime, e.ID)
	require.NoError(t, err)

	list := messages(t, env)
	require.Len(t, list, 6)
	for _, m := range list {
		header, context, _ := strings.Cut(m, "\n")
		assert.Equal(t, string(e.Context), context)
		assert.JSONEq(t, `{"v":1,"id":"`+e.ID.String()+`","published_by":"postgres","event_type":"a \"b\"\\ é","event_date_time":"2026-01-02T03:04:05.000009Z",
			"environment":"Prüfung","metadata_version":4,"trace_context":"`+traceparent+`"}`, header)
	}
	assert.Empty(t, stored(t, env.Pool), "the table stays empty")
}

func TestWhatHasItsDefaultIsLeftOutOfAMessage(t *testing.T) {
	t.Parallel()
	env := listening(t)
	require.NoError(t, event.PublishMessages(t.Context(), env.Pool, event.Event{Type: "t", Context: json.RawMessage(`{}`)}))
	_, err := env.Pool.Exec(t.Context(), "SELECT publish_event_message('t', '{}')")
	require.NoError(t, err)
	for _, m := range messages(t, env) {
		header, _, _ := strings.Cut(m, "\n")
		var fields map[string]any
		require.NoError(t, json.Unmarshal([]byte(header), &fields))
		assert.Len(t, fields, 5, header)
	}
}

func TestMessagesAreRefusedWhileNoStreamerReadsThem(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	err := event.PublishMessages(t.Context(), pool, full(1))
	require.ErrorIs(t, err, event.ErrPublish)
	require.ErrorContains(t, err, "no streamer reads messages")
	_, err = pool.Exec(t.Context(), "SELECT publish_event_message('t', '{}')")
	require.ErrorContains(t, err, "no streamer reads messages")
}

func TestInvalidMessagesAreRefused(t *testing.T) {
	t.Parallel()
	env := listening(t)
	require.ErrorIs(t, event.PublishMessages(t.Context(), env.Pool, full(1), event.Event{}), event.ErrInvalid)
	var batch pgx.Batch
	require.ErrorIs(t, event.QueueMessages(&batch, event.Event{}), event.ErrPublish)
	require.NoError(t, event.QueueMessages(&batch))
	require.Zero(t, batch.Len())
	require.NoError(t, event.PublishMessages(t.Context(), nil))

	for arguments, says := range map[string]string{
		`NULL, '{}'`:                                       "event_type is missing",
		`'t', NULL`:                                        "event_context is missing",
		`'', '{}'`:                                         "event_type must have 1 to 255 bytes",
		`repeat('é', 128), '{}'`:                           "event_type must have 1 to 255 bytes",
		`'t', '{}', repeat('x', 256)`:                      "environment must have at most 255 bytes",
		`'t', '{}', '', 1, repeat('x', 256)`:               "trace_context must be a W3C traceparent of version 00",
		`'t', '{}', '', -1`:                                "metadata_version must be 1 or more",
		`'t', '{}', '', 1, NULL, 'infinity'`:               "event_date_time must be between the years 1900 and 2299",
		`'t', '{}', '', 1, NULL, '-infinity'`:              "event_date_time must be between the years 1900 and 2299",
		`'t', '{}', '', 1, NULL, '1899-12-31 23:59:59+00'`: "event_date_time must be between the years 1900 and 2299",
		`'t', '{}', '', 1, NULL, '2300-01-01 00:00:00+00'`: "event_date_time must be between the years 1900 and 2299",

		`'t', '{'`:                           "invalid input syntax for type json",
		`'t', to_json(repeat('x', 1048575))`: "event_context must have at most 1048576 bytes",
	} {
		_, err := env.Pool.Exec(t.Context(), "SELECT publish_event_message("+arguments+")")
		require.ErrorContains(t, err, says, arguments)
	}
	for arguments, says := range map[string]string{
		`ARRAY[NULL]::uuid[], ARRAY['t'], ARRAY[now()], ARRAY[''], ARRAY['{}']::json[], ARRAY[1], ARRAY[''], ARRAY['']`:                                                          "event_id is missing",
		`ARRAY[gen_random_uuid()], ARRAY['t'], ARRAY[NULL]::timestamptz[], ARRAY[''], ARRAY['{}']::json[], ARRAY[1], NULL, NULL`:                                                 "event_date_time is missing",
		`ARRAY[gen_random_uuid()], ARRAY['t', 'u'], ARRAY[now(), now()], ARRAY[''], ARRAY['{}', '{}']::json[], ARRAY[1], NULL, NULL`:                                             "event_id is missing",
		`ARRAY[gen_random_uuid()], NULL, ARRAY[now()], ARRAY[''], ARRAY['{}']::json[], ARRAY[1], NULL, NULL`:                                                                     "event_type is missing",
		`ARRAY[gen_random_uuid()], ARRAY['t'], ARRAY[now()], ARRAY[''], NULL, ARRAY[1], NULL, NULL`:                                                                              "events[0].event_context is missing",
		`ARRAY[gen_random_uuid()], ARRAY[NULL], ARRAY[now()], ARRAY[''], ARRAY['{}']::json[], ARRAY[1], NULL, ARRAY['k']`:                                                        "events[0].event_type is missing",
		`ARRAY[gen_random_uuid(), gen_random_uuid(), gen_random_uuid()], ARRAY['t', '', 'u'], ARRAY[now(), now(), now()], NULL, ARRAY['1', '2', NULL]::json[], NULL, NULL, NULL`: "events[1].event_type must have 1 to 255 bytes",
	} {
		_, err := env.Pool.Exec(t.Context(), "SELECT diehard_publish_messages("+arguments+")")
		require.ErrorContains(t, err, says, arguments)
	}
	_, err := env.Pool.Exec(t.Context(), "SELECT publish_event_message(repeat('x', 255), to_json(repeat('x', 1048574)), repeat('x', 255))")
	require.NoError(t, err)
	assert.Len(t, messages(t, env), 1)
}

func TestMessagesFollowTheTransaction(t *testing.T) {
	t.Parallel()
	env := listening(t)
	tx, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	require.NoError(t, event.PublishMessages(t.Context(), tx, full(1)))
	require.NoError(t, tx.Rollback(t.Context()))
	assert.Empty(t, messages(t, env))
}

// Go and SQL must choose the same shard for a key.
func TestKeysAreTheSameInGoAndSQL(t *testing.T) {
	t.Parallel()
	pool := testenv.New(t).Pool
	bytes := map[byte]bool{}
	for _, key := range []string{"order 42", "é", "a", "b", "c", strings.Repeat("x", 1000)} {
		made, err := event.New(json.RawMessage(`{}`), event.WithType("t"), event.WithKey(key))
		require.NoError(t, err)
		assert.Equal(t, lastByteOf(t, pool, key), made.ID[15], key)
		bytes[made.ID[15]] = true
		again, err := event.New(json.RawMessage(`{}`), event.WithType("t"), event.WithKey(key))
		require.NoError(t, err)
		assert.NotEqual(t, made.ID, again.ID)
		given := event.Event{ID: full(1).ID, Key: key, Type: "t", Context: json.RawMessage(`{}`), DateTime: time.Now()}
		require.NoError(t, event.Publish(t.Context(), pool, given))
		assert.Equal(t, given.ID, stored(t, pool)[0].ID, "an id that is given stays")
		_, err = pool.Exec(t.Context(), "TRUNCATE outbox")
		require.NoError(t, err)
	}
	assert.Greater(t, len(bytes), 3)
}

func lastByteOf(t *testing.T, pool *pgxpool.Pool, key string) byte {
	t.Helper()
	var b int
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT get_byte(uuid_send(event_id_for($1)), 15)", key).Scan(&b))
	return byte(b)
}
