package main_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/link"
	"diehard/shared/dev/testenv"
)

// With PostgreSQL a millisecond away each request waits for it once. The round trips are those of
// the packets on the way.
func TestARequestIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	env := *testenv.New(t)
	l := link.New(t, link.Options{RTT: time.Millisecond, Here: true})
	listener, err := l.Listen(link.Far)
	require.NoError(t, err)
	env.PostgresURL = testenv.RelayPostgres(t, listener, env.PostgresURL)
	p := start(t, &env)
	p.awaitReadyz(t, http.StatusOK, "ready")

	var client http.Client
	t.Cleanup(client.CloseIdleConnections)
	send := func(method, path, body string, status int) (location string) {
		request, err := http.NewRequestWithContext(t.Context(), method, p.address+path, strings.NewReader(body))
		require.NoError(t, err)
		request.Header.Set("Content-Type", "application/json")
		response, err := client.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		require.NoError(t, err)
		require.Equal(t, status, response.StatusCode)
		return response.Header.Get("Location")
	}
	users := 0
	create := func() string {
		users++
		return send(http.MethodPost, "/users", fmt.Sprintf(`{"email":"u%d@example.com"}`, users), http.StatusCreated)
	}
	location := create()
	for name, request := range map[string]func(){
		"POST /users":     func() { create() },
		"GET /users/{id}": func() { send(http.MethodGet, location, "", http.StatusOK) },
		"POST /events": func() {
			send(http.MethodPost, "/events", `[{"event_type":"t","event_context":1},{"event_type":"t","event_context":2}]`, http.StatusAccepted)
		},
	} {
		const requests = 20
		await.True(t, func() bool { // what the api asks by itself is a round trip, too
			before := l.RoundTrips()
			for range requests {
				request()
			}
			trips := l.RoundTrips() - before
			assert.GreaterOrEqual(t, trips, int64(requests), name)
			return trips == requests
		}, "%d round trips for %[1]d of %s", requests, name)
	}
}
