package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

// What is posted to /events, as an array and as NDJSON, is in the event log byte
// for byte, under the ids of the answer, in the order of the request.
func TestPostedEventsArriveInOrder(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := run(t, env, "streamer")
	api := run(t, env, "api", "ENVIRONMENT=Checked").address()
	s.says("streaming")

	var texts []string
	for _, text := range contexts {
		if !strings.ContainsAny(text, "\r\n") { // NDJSON has one line for an event
			texts = append(texts, text)
		}
	}
	for i := range 12_000 { // several chunks, several batches
		texts = append(texts, fmt.Sprintf(`{"n" : %d}`, i))
	}
	events := make([]string, len(texts))
	for i, text := range texts {
		events[i] = `{"event_type":"posted","event_context":` + text + `}`
	}
	array := "[" + strings.Join(events[:5000], ",\n") + "]"
	lines := strings.Join(events[5000:], "\n")
	ids := postEvents(t, api, "application/json", array)
	ids = append(ids, postEvents(t, api, "application/x-ndjson", lines)...)
	assert.Equal(t, ids[5000:], postEvents(t, api, "application/x-ndjson", lines), "the same key, the same ids")
	require.Len(t, ids, len(texts))

	require.Equal(t, len(texts), delivered(t, env), "nothing is stored twice")
	rows := postedRows(t, env)
	require.Len(t, rows, len(texts))
	for i, row := range rows {
		if row.ID != ids[i] || row.Context != texts[i] || row.Environment != "Checked" {
			require.Failf(t, "wrong row", "at %d: %+v", i, row)
		}
	}
	assert.Less(t, rows[0].CommitLSN, rows[5000].CommitLSN)
	assert.Equal(t, rows[5000].CommitLSN, rows[len(rows)-1].CommitLSN, "a request is a transaction")
}

// postEvents posts with a key that is the body's and returns the ids.
func postEvents(t testing.TB, api, kind, body string) []uuid.UUID {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, api+"/events", strings.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("Content-Type", kind)
	request.Header.Set("Idempotency-Key", uuid.NewSHA1(uuid.Nil, []byte(body)).String())
	request.Close = true // no idle connection outlives the test
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, response.StatusCode, "%s", answer)
	var accepted struct{ IDs []uuid.UUID }
	require.NoError(t, json.Unmarshal(answer, &accepted))
	return accepted.IDs
}

// postedRows are the posted events of the log, in the order of their commits.
func postedRows(t testing.TB, env *testenv.Env) []logRow {
	t.Helper()
	var rows []logRow
	query := "SELECT * FROM " + env.ClickHouseConfig.EventLogTable + " WHERE event_type = 'posted' ORDER BY commit_lsn, commit_seq"
	require.NoError(t, env.ClickHouse.Select(t.Context(), &rows, query))
	return rows
}
