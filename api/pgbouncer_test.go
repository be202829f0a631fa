package main_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// Behind PgBouncer in transaction mode, as Debian has it, every statement may meet
// another session of PostgreSQL, without its prepared statements and settings.
func TestTheAPIWorksBehindPgBouncer(t *testing.T) {
	t.Parallel()
	const clients, each = 200, 2
	env := *testenv.New(t)
	direct := env.PostgresURL
	env.PostgresURL = testenv.PgBouncer(t, direct, "pool_mode = transaction", "default_pool_size = 4")
	p := start(t, &env, "API_MAX_REQUESTS=1000", "API_REQUEST_TIMEOUT=1m", "DATABASE_MAX_CONNS=32")
	client := http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}, Timeout: await.Limit}
	t.Cleanup(client.CloseIdleConnections)
	send := func(method, path, body, key string) (status int, location string) {
		request, err := http.NewRequestWithContext(t.Context(), method, p.address+path, strings.NewReader(body))
		if !assert.NoError(t, err) {
			return 0, ""
		}
		request.Header.Set("Content-Type", "application/json")
		if key != "" {
			request.Header.Set("Idempotency-Key", key)
		}
		response, err := client.Do(request)
		if !assert.NoError(t, err) {
			return 0, ""
		}
		defer response.Body.Close()
		return response.StatusCode, response.Header.Get("Location")
	}
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for j := range each {
				name := fmt.Sprintf("%d-%d", i, j)
				status, location := send("POST", "/users", fmt.Sprintf(`{"email":"u%s@example.com"}`, name), "")
				assert.Equal(t, http.StatusCreated, status)
				status, _ = send("GET", location, "", "")
				assert.Equal(t, http.StatusOK, status)
				for range 2 { // the second one is a repetition
					status, _ = send("POST", "/events", `[{"event_type":"t","event_context":1},{"event_type":"t","event_context":2}]`, name)
					assert.Equal(t, http.StatusAccepted, status)
				}
			}
		})
	}
	all.Wait()
	status, _ := send("GET", "/readyz", "", "")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, [2]int{clients * each, 3 * clients * each}, rows(t, &env))
	require.NotContains(t, p.log.String(), `"status":500`)
}
