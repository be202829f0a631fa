package events_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/events"
	"diehard/api/idempotency"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// source is a source of n events that next makes.
type source struct {
	n    int
	next func(i int) (events.NewEvent, error)
	read int
}

func (s *source) Next() (events.NewEvent, error) {
	if s.read == s.n {
		return events.NewEvent{}, io.EOF
	}
	s.read++
	return s.next(s.read - 1)
}

func plain(i int) (events.NewEvent, error) {
	return events.NewEvent{Type: "t", Context: fmt.Appendf(nil, `{"n":%d}`, i)}, nil
}

// request has n plain events and is digested by their number.
func request(n int, key string) events.Request {
	return events.Request{
		Source: &source{n: n, next: plain}, Key: idempotency.NewKey("test", key),
		Digest: func() idempotency.Digest { return sha256.Sum256(fmt.Append(nil, n)) },
	}
}

// pausing is a request of 6000 events that stops halfway, until it is released.
func pausing(t *testing.T, key string) (r events.Request, halfway <-chan struct{}, release func()) {
	t.Helper()
	reached, goOn := make(chan struct{}), make(chan struct{})
	release = sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(release)
	r = request(6000, key)
	r.Source.(*source).next = func(i int) (events.NewEvent, error) {
		if i == 5500 {
			close(reached)
			<-goOn
		}
		return plain(i)
	}
	return r, reached, release
}

func one(n events.NewEvent) events.Request {
	return events.Request{Source: &source{n: 1, next: func(int) (events.NewEvent, error) { return n, nil }}}
}

func count(t *testing.T, pool *pgxpool.Pool, table string) (n int) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT count(*) FROM "+table).Scan(&n))
	return n
}

func TestEveryFieldIsStored(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	const context = "{ \"b\" : 1,\t\"a\":[ 9007199254740993 ], \"a\":\"\\u0000\" }"
	id, where, at := uuid.New(), "Elsewhere", time.Date(2031, 2, 3, 4, 5, 6, 789_012_000, time.UTC)
	result, err := events.New(env.Pool, "Staging").Publish(t.Context(), one(events.NewEvent{
		ID: id, Type: "order_paid", DateTime: at, Environment: &where, Context: json.RawMessage(context), MetadataVersion: 7,
	}))
	require.NoError(t, err)
	assert.Equal(t, events.Result{IDs: []uuid.UUID{id}}, result)

	var (
		kind, environment, stored string
		version                   int64
		when                      time.Time
	)
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT event_type, environment, event_context::text, metadata_version,
		event_date_time FROM outbox WHERE id = $1`, id).Scan(&kind, &environment, &stored, &version, &when))
	assert.Equal(t, []any{"order_paid", where, context, int64(7)}, []any{kind, environment, stored, version})
	assert.True(t, when.Equal(at))
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	result, err := events.New(env.Pool, "Staging").Publish(t.Context(), request(1, ""))
	require.NoError(t, err)
	var good bool
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT id = $1 AND environment = 'Staging' AND metadata_version = 1
		AND trace_context IS NULL AND event_date_time > now() - interval '1 minute' FROM outbox`, result.IDs[0]).Scan(&good))
	assert.True(t, good)
	assert.Equal(t, uuid.Version(7), result.IDs[0].Version())
}

func TestManyEventsAreStoredInOrderWithIDsInOrder(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	const n = 12_345 // several chunks
	result, err := events.New(env.Pool, "Local").Publish(t.Context(), request(n, ""))
	require.NoError(t, err)
	require.Len(t, result.IDs, n)
	assert.IsIncreasing(t, texts(result.IDs))
	for _, id := range []uuid.UUID{result.IDs[0], result.IDs[n-1]} {
		assert.Equal(t, uuid.Version(7), id.Version())
		assert.Equal(t, uuid.RFC4122, id.Variant())
	}
	var ids []uuid.UUID
	var ordered, transactions int
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT array_agg(id ORDER BY ctid),
		count(*) FILTER (WHERE (event_context->>'n')::int = place), count(DISTINCT tx)
		FROM (SELECT id, ctid, event_context, xmin::text AS tx, row_number() OVER (ORDER BY ctid) - 1 AS place FROM outbox) placed`).
		Scan(&ids, &ordered, &transactions))
	assert.Equal(t, result.IDs, ids)
	assert.Equal(t, n, ordered)
	assert.Equal(t, 1, transactions)
}

func texts(ids []uuid.UUID) []string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = id.String()
	}
	return list
}

func TestAllOrNone(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	service := events.New(env.Pool, "Local")
	broken := errors.New("the client is gone")
	for name, c := range map[string]struct {
		last func() (events.NewEvent, error)
		is   func(error) bool
	}{
		"source": {func() (events.NewEvent, error) { return events.NewEvent{}, broken }, func(err error) bool { return errors.Is(err, broken) }},
		"invalid": {func() (events.NewEvent, error) { return events.NewEvent{}, nil }, func(err error) bool {
			invalid, ok := errors.AsType[*events.InvalidError](err)
			return ok && invalid.Fields[0].Field == "events[10999].event_type"
		}},
		"database": {func() (events.NewEvent, error) {
			return events.NewEvent{Type: "closed", Context: json.RawMessage(`{}`)}, nil
		}, func(err error) bool { return errors.Is(err, event.ErrPublish) }},
	} {
		if name == "database" {
			_, err := env.Pool.Exec(t.Context(), "ALTER TABLE outbox ADD CONSTRAINT closed CHECK (event_type <> 'closed')")
			require.NoError(t, err)
		}
		for _, key := range []string{"", "key"} {
			r := request(11_000, key)
			r.Source.(*source).next = func(i int) (events.NewEvent, error) {
				if i == 10_999 {
					return c.last()
				}
				return plain(i)
			}
			_, err := service.Publish(t.Context(), r)
			assert.True(t, c.is(err), "%s: %v", name, err)
		}
	}
	assert.Zero(t, count(t, env.Pool, "outbox"))
	assert.Zero(t, count(t, env.Pool, "diehard_idempotency_keys"), "a failed request leaves its key free")
}

func TestTooManyEvents(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	service := events.New(env.Pool, "Local")
	_, err := service.Publish(t.Context(), request(events.MaxEvents+1, ""))
	require.ErrorIs(t, err, events.ErrTooMany)
	assert.Zero(t, count(t, env.Pool, "outbox"))
	_, err = service.Publish(t.Context(), request(events.MaxEvents, ""))
	require.NoError(t, err)
	assert.Equal(t, events.MaxEvents, count(t, env.Pool, "outbox"))
}

func TestInvalidFieldsAreNamed(t *testing.T) {
	t.Parallel()
	service := events.New(testenv.Pool(t, testenv.AwayURL, 0), "Local")
	long, text := strings.Repeat("x", 256), func(s string) *string { return &s }
	valid, _ := plain(0)
	for name, c := range map[string]struct {
		change  func(n *events.NewEvent)
		field   string
		message string
	}{
		"no type":           {func(n *events.NewEvent) { n.Type = "" }, "event_type", "is required"},
		"spaces at its end": {func(n *events.NewEvent) { n.Type = "a " }, "event_type", "must not have spaces at its ends"},
		"one blank":         {func(n *events.NewEvent) { n.Type = " " }, "event_type", "must not have spaces at its ends"},
		"long type":         {func(n *events.NewEvent) { n.Type = long }, "event_type", "must have at most 255 bytes"},
		"zero in type":      {func(n *events.NewEvent) { n.Type = "a\x00" }, "event_type", "must not contain control characters"},
		"type not UTF-8":    {func(n *events.NewEvent) { n.Type = "\xff" }, "event_type", "must be UTF-8"},
		"long environment":  {func(n *events.NewEvent) { n.Environment = &long }, "environment", "must have at most 255 bytes"},
		"line break":        {func(n *events.NewEvent) { n.Environment = text("a\r\nb") }, "environment", "must not contain control characters"},
		"no context":        {func(n *events.NewEvent) { n.Context = nil }, "event_context", "is required"},
		"not UTF-8":         {func(n *events.NewEvent) { n.Context = json.RawMessage("\"\xff\"") }, "event_context", "must be UTF-8"},
		"too large":         {func(n *events.NewEvent) { n.Context = filled(event.MaxContextBytes + 1) }, "event_context", "must have at most 1048576 bytes"},
		"too deep":          {func(n *events.NewEvent) { n.Context = nested(1001) }, "event_context", "must be nested at most 1000 deep"},
		"long ago":          {func(n *events.NewEvent) { n.DateTime = time.Date(1899, 1, 1, 0, 0, 0, 0, time.UTC) }, "event_date_time", "must be between the years 1900 and 2299"},
		"far away":          {func(n *events.NewEvent) { n.DateTime = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) }, "event_date_time", "must be between the years 1900 and 2299"},
		"negative version":  {func(n *events.NewEvent) { n.MetadataVersion = -1 }, "metadata_version", "must be 1 or more"},
		"broken": {func(n *events.NewEvent) {
			n.Context, n.Unreadable = nil, []events.FieldError{{Field: "event_context", Message: "is odd"}}
		}, "event_context", "is odd"},
	} {
		n := valid
		c.change(&n)
		_, err := service.Publish(t.Context(), one(n))
		var invalid *events.InvalidError
		require.ErrorAs(t, err, &invalid, name)
		assert.Equal(t, []events.FieldError{{Field: "events[0]." + c.field, Message: c.message}}, invalid.Fields, name)
	}

	_, err := service.Publish(t.Context(), one(events.NewEvent{Type: "t", Context: json.RawMessage(`{"a":}`)}))
	require.ErrorIs(t, err, event.ErrInvalid)

	_, err = service.Publish(t.Context(), request(0, ""))
	require.ErrorContains(t, err, "events must not be empty")

	r := request(1000, "")
	r.Source.(*source).next = func(int) (events.NewEvent, error) { return events.NewEvent{}, nil }
	_, err = service.Publish(t.Context(), r)
	var invalid *events.InvalidError
	require.ErrorAs(t, err, &invalid)
	assert.Len(t, invalid.Fields, 20, "the answer has an end")

	id := uuid.New()
	r.Source = &source{n: 3, next: func(i int) (events.NewEvent, error) {
		n := valid
		if i != 1 {
			n.ID = id
		}
		return n, nil
	}}
	_, err = service.Publish(t.Context(), r)
	require.ErrorContains(t, err, "events[2].id is also the id of events[0]")
}

// Whether a context that is encoded twice is refused is a setting of the database.
func TestContextsThatAreEncodedTwiceAreNamed(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	address := env.PostgresURL + "&diehard.refuse_double_encoding=on"
	for _, n := range []int{3, 6000} { // one statement, and several
		r := request(n, "")
		next := r.Source.(*source).next
		r.Source.(*source).next = func(i int) (events.NewEvent, error) {
			e, err := next(i)
			if i == n-1 {
				e.Context = json.RawMessage(`"{\"a\": 1}"`)
			}
			return e, err
		}
		_, err := events.New(testenv.Pool(t, address, 0), "Local").Publish(t.Context(), r)
		require.ErrorContains(t, err, fmt.Sprintf("events[%d].event_context is JSON encoded twice", n-1))
		var invalid *events.InvalidError
		require.ErrorAs(t, err, &invalid)
		assert.Len(t, invalid.Fields, 1)
	}
	assert.Zero(t, count(t, env.Pool, "outbox"))
}

func filled(n int) json.RawMessage { return json.RawMessage(`"` + strings.Repeat("x", n-2) + `"`) }

func nested(n int) json.RawMessage {
	return json.RawMessage(strings.Repeat("[", n) + strings.Repeat("]", n))
}

func TestLargestAndDeepestContextsAreTaken(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for _, context := range []json.RawMessage{filled(event.MaxContextBytes), nested(1000), json.RawMessage(`"[[\"[["`), json.RawMessage("null")} {
		_, err := events.New(env.Pool, "Local").Publish(t.Context(), one(events.NewEvent{Type: "t", Context: context}))
		require.NoError(t, err)
	}
	assert.Equal(t, 4, count(t, env.Pool, "outbox"))
}

func TestAChunkNeedsOneRoundTrip(t *testing.T) {
	t.Parallel()
	pool, writes := testenv.CountingPool(t, testenv.New(t).PostgresURL)
	service := events.New(pool, "Local")
	for _, n := range []int{1, 100} {
		_, err := service.Publish(t.Context(), request(n, ""))
		require.NoError(t, err, "prepares the statement")
		writes.Store(0)
		_, err = service.Publish(t.Context(), request(n, ""))
		require.NoError(t, err)
		assert.Equal(t, int64(1), writes.Load())
	}
}

// Events with a key go to one streamer of several: the last byte of the id says so.
func TestKeysDecideTheLastByteOfIDs(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	keyed := func() events.Request {
		r := request(600, "k")
		r.Source.(*source).next = func(i int) (events.NewEvent, error) {
			n, err := plain(i)
			if i%3 != 0 {
				n.Key = "order 42"
			}
			return n, err
		}
		return r
	}
	first, err := events.New(env.Pool, "Local").Publish(t.Context(), keyed())
	require.NoError(t, err)
	unique, spread := map[uuid.UUID]bool{}, map[byte]bool{}
	for i, id := range first.IDs {
		unique[id] = true
		if i%3 != 0 {
			assert.Equal(t, event.KeyByte("order 42"), id[15])
		} else {
			spread[id[15]] = true
		}
	}
	assert.Len(t, unique, 600)
	assert.Greater(t, len(spread), 50, "those without a key are spread")
	assert.IsIncreasing(t, texts(first.IDs))
	again, err := events.New(env.Pool, "Local").Publish(t.Context(), keyed())
	require.NoError(t, err)
	assert.Equal(t, events.Result{IDs: first.IDs, Repeated: true}, again)
}

func TestTheCallerIsStored(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for _, n := range []int{1, 2, 1500} { // the ways to insert
		for _, caller := range []string{"shop", ""} {
			r := request(n, "")
			r.Caller = caller
			_, err := events.New(env.Pool, "Local").Publish(t.Context(), r)
			require.NoError(t, err)
		}
	}
	var shop, login int
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE published_by = 'shop'),
		count(*) FILTER (WHERE published_by = session_user) FROM public.outbox`).Scan(&shop, &login))
	assert.Equal(t, [2]int{1503, 1503}, [2]int{shop, login})
}
