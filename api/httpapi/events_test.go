package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/events"
	"diehard/api/httpapi"
	"diehard/api/idempotency"
	"diehard/shared/dev/testenv"
)

const ndjson = "application/x-ndjson"

func (a *api) publish(t *testing.T, kind, body string, headers ...string) answer {
	t.Helper()
	return a.do(t, http.MethodPost, "/events", body, append([]string{"Content-Type", kind}, headers...)...)
}

// idsOf returns the ids of an answer 202.
func idsOf(t *testing.T, got answer) []string {
	t.Helper()
	require.Equal(t, http.StatusAccepted, got.status, got.body)
	var answered struct{ IDs []string }
	require.NoError(t, json.Unmarshal([]byte(got.body), &answered))
	return answered.IDs
}

// outbox returns id and context of what is stored, in order.
func outbox(t *testing.T, pool *pgxpool.Pool) (ids, contexts []string) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT coalesce(array_agg(id::text ORDER BY ctid), '{}'),
		coalesce(array_agg(event_context::text ORDER BY ctid), '{}') FROM outbox`).Scan(&ids, &contexts))
	return ids, contexts
}

func TestEventsAreStoredByteForByte(t *testing.T) {
	t.Parallel()
	contexts := []string{
		`{ "b" : 1, "a":[9007199254740993, 1.50e+400 ], "a" : "\u0000\ud800" }`, `null`, `""`, "[1,\t2]", `{"name":"Zoë 北京 🎉"}`, `-0.0`,
	}
	object := func(context string) string { return `{"event_type":"t", "event_context": ` + context + ` }` }
	for name, c := range map[string]struct{ kind, before, between, after string }{
		"array":                         {"application/json", " [", ",\n", "]\n"},
		"lines":                         {ndjson, "", "\n", "\n"},
		"lines of Windows, and empty":   {ndjson, "\r\n\n", "\r\n\r\n", ""},
		"lines with a word on charsets": {ndjson + "; charset=utf-8", "", "\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := testenv.New(t)
			a := start(t, env.PostgresURL, nil)
			objects := make([]string, len(contexts))
			for i, context := range contexts {
				objects[i] = object(context)
			}
			ids := idsOf(t, a.publish(t, c.kind, c.before+strings.Join(objects, c.between)+c.after))
			gotIDs, gotContexts := outbox(t, env.Pool)
			assert.Equal(t, ids, gotIDs)
			assert.Equal(t, contexts, gotContexts)
		})
	}
	t.Run("one", func(t *testing.T) {
		t.Parallel()
		env := testenv.New(t)
		a := start(t, env.PostgresURL, nil)
		for _, context := range contexts {
			assert.Len(t, idsOf(t, a.publish(t, "application/json", "\n"+object(context))), 1)
		}
		_, got := outbox(t, env.Pool)
		assert.Equal(t, contexts, got)
	})
}

func TestEveryFieldOfAnEvent(t *testing.T) {
	t.Parallel()
	const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	env := testenv.New(t)
	a := start(t, env.PostgresURL, nil)
	id := uuid.NewString()
	ids := idsOf(t, a.publish(t, "application/json", `[{"id":"`+id+`","event_type":"order_paid","event_date_time":"2031-02-03T05:05:06.789012+01:00",
		"environment":"","metadata_version":7,"event_context":{}},
		{"id":null,"event_type":"t","event_date_time":null,"environment":null,"metadata_version":null,"event_context":null}]`, "Traceparent", traceparent))
	assert.Equal(t, id, ids[0])
	var given, defaults bool
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT bool_or(id = $1 AND event_type = 'order_paid' AND environment = ''
		AND event_date_time = '2031-02-03 04:05:06.789012Z' AND metadata_version = 7 AND trace_context = $2),
		bool_or(environment = 'Local' AND metadata_version = 1 AND event_context::text = 'null'
		AND event_date_time > now() - interval '1 minute' AND trace_context = $2) FROM outbox`, id, traceparent).Scan(&given, &defaults))
	assert.True(t, given)
	assert.True(t, defaults)
}

func TestFieldsOfEventsAreNamed(t *testing.T) {
	t.Parallel()
	a := start(t, away, nil) // none of these reaches the database
	const good = `{"event_type":"t","event_context":{}}`
	for body, want := range map[string][]httpapi.FieldError{
		`{}`:                                 {{Field: "event_type", Message: "is required"}, {Field: "event_context", Message: "is required"}},
		`[` + good + `,{"event_context":1}]`: {{Field: "events[1].event_type", Message: "is required"}},
		`[` + good + `,1]`:                   {{Field: "events[1]", Message: "must be an object"}},
		`[null]`:                             {{Field: "events[0]", Message: "must be an object"}},
		`[]`:                                 {{Field: "events", Message: "must not be empty"}},
		`{"event_type":1,"event_context":1,"id":"1","event_date_time":"yesterday","environment":{},"metadata_version":1.5}`: {
			{Field: "event_type", Message: "must be a string"},
			{Field: "id", Message: "must be a UUID"},
			{Field: "event_date_time", Message: "must be a time such as 2026-11-24T20:15:00.123456Z"},
			{Field: "environment", Message: "must be a string"},
			{Field: "metadata_version", Message: "must be a whole number, 1 or more"},
		},
		`{"event_type":"a","event_type":"b","event_context":1}`: {{Field: "event_type", Message: "is given twice"}},
		`{"event_type":"a","event_context":1,"Event_Type":"b"}`: {{Field: "Event_Type", Message: "is not a field of an event"}},
		`{"event_type":"a","event_context":1,"metadata_version":0}`: {
			{Field: "metadata_version", Message: "must be a whole number, 1 or more"},
		},
		`{"event_type":"a","event_context":1,"id":"00000000-0000-0000-0000-000000000000"}`: {{Field: "id", Message: "must be a UUID"}},
		`{"event_type":"a\u0000b","event_context":1}`:                                      {{Field: "event_type", Message: "must not contain control characters"}},
		`{"event_type":"a","event_context":"` + strings.Repeat("x", 1<<20) + `"}`: {
			{Field: "event_context", Message: "must have at most 1048576 bytes"},
		},
	} {
		got := a.publish(t, "application/json", body)
		assert.Equal(t, want, requireProblem(t, got, http.StatusUnprocessableEntity).Errors, body[:min(len(body), 100)])
	}
	got := a.publish(t, ndjson, good+"\n\n"+`{"event_type":"","event_context":1}`)
	assert.Equal(t, []httpapi.FieldError{{Field: "events[1].event_type", Message: "is required"}}, requireProblem(t, got, 422).Errors)
}

func TestBadBodiesOfEvents(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	a := start(t, env.PostgresURL, nil)
	const good = `{"event_type":"t","event_context":{}}`
	for name, c := range map[string]struct {
		kind, body string
		headers    []string
		status     int
		says       string
	}{
		"malformed":         {"application/json", `{"event_type"`, nil, 400, "not valid JSON (at byte 13)"},
		"malformed array":   {"application/json", `[` + good + `,]`, nil, 400, "not valid JSON (at byte 40)"},
		"two values":        {"application/json", good + good, nil, 400, "not valid JSON (at byte 38)"},
		"a number":          {"application/json", `1`, nil, 400, "neither a JSON object nor an array"},
		"empty":             {"application/json", ``, nil, 400, "not valid JSON"},
		"not UTF-8":         {"application/json", "{\"event_type\":\"\xff\"}", nil, 400, "not UTF-8 (at byte 16)"},
		"too large":         {"application/json", `"` + strings.Repeat("x", 2<<20), nil, 413, "2097152 bytes"},
		"malformed line":    {ndjson, good + "\n" + `{"a":}`, nil, 400, "Line 2 is not valid JSON (at byte 6)"},
		"cut line":          {ndjson, good + "\n" + `{"a":`, nil, 400, "Line 2 is not valid JSON (at byte 5)"},
		"two in a line":     {ndjson, "\n" + good + good, nil, 400, "Line 2 is not valid JSON (at byte 38)"},
		"line not UTF-8":    {ndjson, good + "\n\"\xff\"", nil, 400, "Line 2 is not UTF-8 (at byte 2)"},
		"long line":         {ndjson, good + "\n" + strings.Repeat(" ", 2<<20) + good, nil, 413, "Line 2 has more than 2097152 bytes"},
		"no type":           {"", good, nil, 415, "application/json"},
		"form":              {"application/x-www-form-urlencoded", "a=b", nil, 415, "application/x-ndjson"},
		"compressed":        {"application/json", good, []string{"Content-Encoding", "gzip"}, 415, "without Content-Encoding"},
		"compressed lines":  {ndjson, good, []string{"Content-Encoding", "identity, zstd"}, 415, "without Content-Encoding"},
		"empty key":         {"application/json", good, []string{"Idempotency-Key", `""`}, 400, "Idempotency-Key"},
		"key with a space":  {"application/json", good, []string{"Idempotency-Key", `a b`}, 400, "Idempotency-Key"},
		"key not ASCII":     {"application/json", good, []string{"Idempotency-Key", `ü`}, 400, "Idempotency-Key"},
		"key that is long":  {"application/json", good, []string{"Idempotency-Key", strings.Repeat("k", 256)}, 400, "255 visible"},
		"nested too deeply": {"application/json", strings.Repeat("[", 20_000), nil, 400, "not valid JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := requireProblem(t, a.publish(t, c.kind, c.body, c.headers...), c.status)
			assert.Contains(t, p.Detail, c.says)
		})
	}
	t.Cleanup(func() {
		var n int
		require.NoError(t, env.Pool.QueryRow(context.WithoutCancel(t.Context()), "SELECT count(*) FROM outbox").Scan(&n))
		assert.Zero(t, n)
	})
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	a := start(t, env.PostgresURL, nil)
	const body = `[{"event_type":"t","event_context":1},{"event_type":"t","event_context":2}]`
	first := a.publish(t, "application/json", body, "Idempotency-Key", "k-1")
	idsOf(t, first)
	assert.Empty(t, first.header.Get("Idempotency-Replayed"))
	for _, key := range []string{"k-1", `"k-1"`} {
		again := a.publish(t, "application/json", body, "Idempotency-Key", key)
		assert.Equal(t, http.StatusAccepted, again.status)
		assert.Equal(t, first.body, again.body)
		assert.Equal(t, "true", again.header.Get("Idempotency-Replayed"))
	}
	restarted := start(t, env.PostgresURL, nil)
	assert.Equal(t, first.body, restarted.publish(t, "application/json", body, "Idempotency-Key", "k-1").body)

	for kind, other := range map[string]string{"application/json": body + " ", ndjson: `{"event_type":"t","event_context":1}`} {
		p := requireProblem(t, a.publish(t, kind, other, "Idempotency-Key", "k-1"), http.StatusUnprocessableEntity)
		assert.Contains(t, p.Detail, "was used for another request")
	}
	ids, _ := outbox(t, env.Pool)
	assert.Len(t, ids, 2)

	lines := strings.Repeat(`{"event_type":"t","event_context":1}`+"\n", 6000)
	first = a.publish(t, ndjson, lines, "Idempotency-Key", "k-2")
	assert.Len(t, idsOf(t, first), 6000)
	again := a.publish(t, ndjson, lines, "Idempotency-Key", "k-2")
	assert.Equal(t, first.body, again.body)

	metrics := a.do(t, http.MethodGet, "/metrics", "").body
	for result, n := range map[string]string{"stored": "6002", "repeated": "6004", "refused": "3", "failed": "0"} {
		assert.Contains(t, metrics, `diehard_api_events_total{result="`+result+`"} `+n+"\n")
	}
}

func TestASecondRequestWithTheKeyOfARunningOne(t *testing.T) {
	t.Parallel()
	a := start(t, away, func(d *httpapi.Deps) { d.Events = refusing{idempotency.ErrRunning} })
	got := a.publish(t, "application/json", `{}`, "Idempotency-Key", "k")
	requireProblem(t, got, http.StatusConflict)
	assert.Equal(t, "2", got.header.Get("Retry-After"))
}

// refusing is a use case that answers everything with an error.
type refusing struct{ err error }

func (r refusing) Publish(context.Context, events.Request) (events.Result, error) {
	return events.Result{}, r.err
}

func TestAnswersToEventsThatAreNotStored(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err    error
		status int
		again  string
	}{
		{events.ErrTooMany, http.StatusRequestEntityTooLarge, ""},
		{idempotency.ErrReused, http.StatusUnprocessableEntity, ""},
		{errors.New("secret detail"), http.StatusInternalServerError, ""},
	} {
		a := start(t, away, func(d *httpapi.Deps) { d.Events = refusing{c.err} })
		got := a.publish(t, "application/json", `{}`)
		requireProblem(t, got, c.status)
		assert.Equal(t, c.again, got.header.Get("Retry-After"))
		assert.NotContains(t, got.body, "secret")
	}
	a := start(t, away, nil)
	got := a.publish(t, "application/json", `{"event_type":"t","event_context":1}`)
	requireProblem(t, got, http.StatusServiceUnavailable)
	assert.Equal(t, "2", got.header.Get("Retry-After"))
	assert.Contains(t, a.do(t, http.MethodGet, "/metrics", "").body, `diehard_api_events_total{result="failed"} 1`)
}

// slowBody sends its pieces on demand.
type slowBody struct {
	pieces chan string
	rest   strings.Reader
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.rest.Len() == 0 {
		piece, ok := <-b.pieces
		if !ok {
			return 0, io.EOF
		}
		b.rest.Reset(piece)
	}
	return b.rest.Read(p)
}

// NDJSON may take longer in all than a body is given, if it goes on.
func TestAStreamMayTakeItsTimeButNotStop(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	a := startServer(t, env.PostgresURL, httpapi.Timeouts{Header: 5 * time.Second, Body: 3 * time.Second, BodyRate: 1, Request: 5 * time.Second, Stream: time.Minute})
	send := func(hang bool) int {
		body := &slowBody{pieces: make(chan string)}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a+"/events", body)
		require.NoError(t, err)
		request.Header.Set("Content-Type", ndjson)
		go func() {
			tick := time.NewTicker(600 * time.Millisecond)
			defer tick.Stop()
			for i := range 6 {
				body.pieces <- `{"event_type":"t","event_context":` + strconv.Itoa(i) + "}\n"
				<-tick.C
			}
			if !hang {
				close(body.pieces)
			}
		}()
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Do(request)
		if hang {
			defer close(body.pieces)
		}
		require.NoError(t, err)
		defer response.Body.Close()
		return response.StatusCode
	}
	assert.Equal(t, http.StatusAccepted, send(false))
	assert.Equal(t, http.StatusRequestTimeout, send(true))
	ids, _ := outbox(t, env.Pool)
	assert.Len(t, ids, 6, "of the one that stopped there is nothing")
}
