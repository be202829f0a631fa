package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
)

func TestFromAnHTTPRequestToARow(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := run(t, env, "streamer")
	api := run(t, env, "api", "ENVIRONMENT=Checked").address()
	s.says("streaming")
	const ada = `{"email":"ada@example.com","first_name":"Ada","last_name":"Lovelace"}`

	code, body := post(t, api+"/users", ada)
	require.Equal(t, http.StatusCreated, code, body)
	delivered(t, env)
	row := readRow(t, env, "user_created")
	assert.JSONEq(t, body, row.Context)
	assert.Equal(t, "Checked", row.Environment)
	assert.EqualValues(t, 1, row.MetadataVersion)
	var user struct {
		ID        string    `json:"id"`
		CreatedAt time.Time `json:"created_at"`
	}
	require.NoError(t, json.Unmarshal([]byte(row.Context), &user))
	assert.Equal(t, user.CreatedAt, row.DateTime.UTC())
	var published string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT event_context::text FROM outbox").Scan(&published))
	assert.Equal(t, published, row.Context, "byte for byte")

	// User and event roll back together, both ways.
	code, _ = post(t, api+"/users", ada)
	require.Equal(t, http.StatusConflict, code)
	execute(t, env, "ALTER TABLE outbox ADD CONSTRAINT closed CHECK (event_type <> 'user_created') NOT VALID")
	code, _ = post(t, api+"/users", strings.ReplaceAll(ada, "ada", "bob"))
	require.Equal(t, http.StatusInternalServerError, code)
	var users []string
	require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT array_agg(id::text) FROM users").Scan(&users))
	assert.Equal(t, []string{user.ID}, users)
	execute(t, env, "INSERT INTO outbox (event_type, event_context) VALUES ('last', '{}')")
	awaitRows(t, env, 2)
}

func post(t testing.TB, url, body string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	request.Close = true // no idle connection outlives the test
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(answer)
}

func TestSIGTERMUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	for name, sig := range map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := newEnv(t)
			first := run(t, env, "streamer")
			first.says("streaming")
			before := slotLSN(t, env, "confirmed_flush_lsn")
			stop := produce(t, env, 4)
			await.True(t, func() bool { return countRows(t, env) > 1000 }, "no rows are written under load")
			first.signal(sig)
			require.Zero(t, first.exit())

			awaitFree(t, env)
			confirmed := slotLSN(t, env, "confirmed_flush_lsn")
			assert.Greater(t, confirmed, before)
			open := fmt.Sprintf("uniqExactIf(commit_lsn, commit_lsn >= %d)", uint64(confirmed))
			assert.LessOrEqual(t, count(t, env, open, ""), 1, "all that is written is confirmed, but for a transaction read in part")
			stop()
			run(t, env, "streamer")
			delivered(t, env)
			producersInOrder(t, env)
		})
	}
}

// A stop with nothing on its way leaves the slot at the end of the WAL's events.
func TestAStopConfirmsAllThatWasSent(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := run(t, env, "streamer")
	s.says("streaming")
	publish(t, env, 100)
	end := walEnd(t, env)
	delivered(t, env)
	s.signal(syscall.SIGTERM)
	require.Zero(t, s.exit())
	assert.GreaterOrEqual(t, slotLSN(t, env, "confirmed_flush_lsn"), end)
}

// Rows that wait for others when a stop comes do not come again: they are written.
func TestAStopWritesWhatWasRead(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := start(t, env, func(c *setup) { c.FlushInterval = time.Hour })
	publish(t, env, 1) // goes out at once; the next would after an hour
	delivered(t, env)
	publish(t, env, 5)
	end := walEnd(t, env)
	await.True(t, func() bool { return s.pipeline.Progress().Decoded() >= end }, "the rows are not read")
	require.Equal(t, 1, countRows(t, env))
	s.stop()
	require.Equal(t, 6, delivered(t, env))
	assert.GreaterOrEqual(t, slotLSN(t, env, "confirmed_flush_lsn"), end)
}

func TestKillNineLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := run(t, env, "streamer")
	s.says("streaming")
	stop := produce(t, env, 4)
	for kill := range 4 {
		n := countRows(t, env)
		await.True(t, func() bool { return countRows(t, env) > n+300 }, "no rows are written after kill %d", kill)
		s.kill()
		s = run(t, env, "streamer")
	}
	stop()
	delivered(t, env)
	producersInOrder(t, env)
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	s := run(t, env, "streamer", "SHUTDOWN_TIMEOUT=10m")
	s.says("streaming")
	command(t, env, "ALTER TABLE LOG MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1")
	command(t, env, "SYSTEM STOP MERGES LOG")
	stop := produce(t, env, 1) // until there are two inserts: the second is one part too many
	s.says("insert failed, retrying")
	stop()
	// The kernel may merge signals that come too close to each other.
	await.True(t, func() bool {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.done:
			return true
		default:
			return false
		}
	}, "the second signal does not end it")
	require.Equal(t, 130, s.exit())
}
