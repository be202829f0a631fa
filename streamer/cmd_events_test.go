package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/streamer/events"
)

// shownEvents are what `streamer events --json` prints.
func shownEvents(t *testing.T, args ...string) (list []eventJSON) {
	t.Helper()
	out, err := command(t, append([]string{"events", "--json"}, args...)...)
	require.NoError(t, err)
	for line := range strings.Lines(out) {
		var e eventJSON
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		list = append(list, e)
	}
	return list
}

func typesOf(list []eventJSON) (types []string) {
	for _, e := range list {
		types = append(types, e.EventType)
	}
	return types
}

func TestEventsAnswersAnInvestigator(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	streamUntilEnd(t, env)
	const traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	publish := func(kind, ago, context string) uuid.UUID {
		t.Helper()
		id := uuid.New()
		trace := map[string]string{"order_created": "00-" + traceID + "-00f067aa0ba902b7-01", "user_created": "00-" + traceID + "-00f067aa0ba902b8-00"}[kind]
		_, err := env.Pool.Exec(t.Context(), `INSERT INTO outbox (id, event_type, event_date_time, event_context, trace_context, published_by)
			VALUES ($1, $2, now() - $3::interval, $4, nullif($5, ''), 'shop')`, id, kind, ago, context, trace)
		require.NoError(t, err)
		return id
	}
	created := publish("order_created", "3 hours", `{"order": 1}`)
	publish("user_created", "30 minutes", `{"user":  7}`)
	paid := publish("order_paid", "20 minutes", `{"order": 42, "html": "<b>&"}`)
	publish("orderXpaid", "18 minutes", `[1]`)
	publish("late", "1 minute", `null`)
	_, err := env.Pool.Exec(t.Context(), `WITH a AS (INSERT INTO outbox (event_type, event_date_time, event_context) VALUES ('same_transaction', now() - interval '9 days', '1'))
		INSERT INTO outbox (id, event_type, event_context) VALUES ($1, 'centre', '2')`, uuid.Max)
	require.NoError(t, err)
	deliver(t, env, 0)

	assert.Equal(t, []string{"same_transaction", "order_created", "user_created", "order_paid", "orderXpaid", "late", "centre"}, typesOf(shownEvents(t)))
	assert.Equal(t, []string{"late", "centre"}, typesOf(shownEvents(t, "--limit", "2")), "the latest")
	assert.Equal(t, []string{"user_created", "order_paid", "orderXpaid"}, typesOf(shownEvents(t, "--since", "1h", "--until", "10m")))
	assert.Equal(t, []string{"order_created", "order_paid"}, typesOf(shownEvents(t, "--type", "order_*")), "_ is a character")
	assert.Equal(t, []string{"user_created", "late"}, typesOf(shownEvents(t, "--type", "user_created", "--type", "la*")))
	assert.Equal(t, []string{"order_paid"}, typesOf(shownEvents(t, "--where", "JSONExtractInt(event_context, 'order') = 42 -- a comment")))
	for _, form := range []string{traceID, strings.ToUpper(traceID), "00-" + traceID + "-ffffffffffffffff-01"} {
		assert.Equal(t, []string{"order_created", "user_created"}, typesOf(shownEvents(t, "--trace", form)), form)
	}
	assert.Empty(t, shownEvents(t, "--trace", strings.Repeat("1", 32)))
	traced := shownEvents(t, "--around", created.String())
	assert.Equal(t, []string{"order_created", "user_created"}, typesOf(traced), "its trace")
	assert.Equal(t, []string{traceID, "shop"}, []string{traced[1].TraceID, traced[1].PublishedBy})
	one := shownEvents(t, "--id", paid.String())
	require.Len(t, one, 1)
	assert.JSONEq(t, `{"order": 42, "html": "<b>&"}`, string(one[0].EventContext))
	assert.Equal(t, []string{"same_transaction", "late", "centre"}, typesOf(shownEvents(t, "--around", uuid.Max.String())), "the transaction, and five minutes")
	assert.Equal(t, []string{"same_transaction", "centre"}, typesOf(shownEvents(t, "--around", uuid.Max.String(), "--type", "x")), "a filter is for the neighbours")

	out, err := command(t, "events", "--id", paid.String())
	require.NoError(t, err)
	assert.Regexp(t, `^20\d\d-\S+ \S+  `+paid.String()+`  order_paid  shop  \{"order": 42, "html": "<b>&"\}\n$`, out)

	last := uuid.New()
	_, err = env.Pool.Exec(t.Context(), "INSERT INTO outbox (id, event_type, event_date_time, event_context) VALUES ($1, 'far', '2299-12-31 23:59:59.999999Z', '1')", last)
	require.NoError(t, err)
	deliver(t, env, 0)
	far := shownEvents(t, "--around", last.String())
	require.Len(t, far, 1)
	assert.Equal(t, "2299-12-31T23:59:59.999999Z", far[0].EventDateTime.Format(time.RFC3339Nano))

	for flags, wants := range map[string]string{
		"--id x": `--id "x" is not a UUID`, "--after 1": "is not a position", "--limit 0": "--limit must be 1 or more",
		"--around " + uuid.Nil.String(): events.ErrNoEvent.Error(), "--trace x": "is neither a trace id", "--after 0/0/0 --where (": "read",
	} {
		_, err := command(t, append([]string{"events"}, strings.Fields(flags)...)...)
		assert.ErrorContains(t, err, wants, flags)
	}
}

func TestEventsReadsTheLogByPosition(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	streamUntilEnd(t, env)
	for range 3 {
		_, err := env.Pool.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) SELECT 'log', to_json(n) FROM generate_series(1, 1200) n")
		require.NoError(t, err)
	}
	deliver(t, env, 0)
	all := shownEvents(t, "--after", "0/0/0", "--limit", "0")
	require.Len(t, all, 3600)
	seen := map[uuid.UUID]bool{}
	for i, e := range all {
		assert.False(t, seen[e.EventID])
		seen[e.EventID] = true
		assert.Equal(t, fmt.Sprint(i%1200+1), string(e.EventContext), "in commit order")
	}
	assert.Equal(t, all[1500:1510], shownEvents(t, "--after", all[1499].Position, "--limit", "10"))
	assert.Empty(t, shownEvents(t, "--after", all[3599].Position))
	assert.Equal(t, all[:1], shownEvents(t, "--after", "0/0/0", "--follow", "--limit", "1"))
}

// consumer is a program that stores the events it has read, each with its position.
type consumer struct {
	stored   bytes.Buffer // complete lines
	position string       // of the last one
}

// run starts `streamer events`, and kills both after n events: what was printed and
// not stored is lost.
func (c *consumer) run(t *testing.T, env *testenv.Env, program string, n int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, "events", "--follow", "--json", "--after", c.position)
	cmd.Env, cmd.Stderr = env.Environ(), io.Discard
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	reader := bufio.NewReader(out)
	for range n {
		line, err := reader.ReadBytes('\n')
		require.NoError(t, err)
		var e eventJSON
		require.NoError(t, json.Unmarshal(line, &e))
		c.stored.Write(line)
		c.position = e.Position
	}
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
}
