package httpapi_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/httpapi"
	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// blockedUsers is a use case whose requests stay until release.
func blockedUsers() (block func(*httpapi.Deps), entered, release chan struct{}) {
	entered, release = make(chan struct{}), make(chan struct{})
	return func(d *httpapi.Deps) {
		d.Users = stub{func(context.Context) error {
			entered <- struct{}{}
			<-release
			return nil
		}}
	}, entered, release
}

// background posts a user and sends the status on the channel.
func (a *api) background(t *testing.T, secret string, status chan<- int) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.URL+"/users", strings.NewReader(`{}`))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-Api-Key", secret)
	go func() {
		response, err := a.Client().Do(request)
		if err != nil {
			status <- 0
			return
		}
		_ = response.Body.Close()
		status <- response.StatusCode
	}()
}

func TestPlacesAreDividedAmongCallers(t *testing.T) {
	t.Parallel()
	secrets, protect := withKeys(t, "a", "b", "c")
	block, entered, release := blockedUsers()
	a := start(t, away, func(d *httpapi.Deps) {
		protect(d)
		block(d)
		d.MaxRequests = 4
	})
	running := make(chan int)
	for _, caller := range []int{0, 0, 1, 2} {
		a.background(t, secrets[caller], running)
		<-entered
		if caller == 0 {
			continue
		}
		got := a.post(t, `{}`, "X-Api-Key", secrets[0])
		if caller == 2 {
			requireProblem(t, got, http.StatusServiceUnavailable)
		} else {
			requireProblem(t, got, http.StatusTooManyRequests)
		}
		assert.Equal(t, "2", got.header.Get("Retry-After"))
	}
	assert.Equal(t, http.StatusOK, a.do(t, http.MethodGet, "/healthz", "").status, "probes are always answered")
	assert.Contains(t, a.do(t, http.MethodGet, "/metrics", "").body, "diehard_api_requests_in_progress 4\n")
	close(release)
	for range 4 {
		assert.Equal(t, http.StatusCreated, <-running)
	}
	assert.Contains(t, a.do(t, http.MethodGet, "/metrics", "").body, "diehard_api_requests_in_progress 0\n", "places come back")
}

// open sends the beginning of a request on a connection of its own.
func (a *api) open(t *testing.T, head, body string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(a.URL, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = io.WriteString(conn, "POST "+head+"\r\n\r\n"+body)
	require.NoError(t, err)
	return conn
}

// statusOf reads the answer that arrives on conn.
func statusOf(t *testing.T, conn net.Conn) int {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	_ = response.Body.Close()
	return response.StatusCode
}

// metric awaits a line of /metrics.
func (a *api) metric(t *testing.T, line string) {
	t.Helper()
	await.True(t, func() bool {
		return strings.Contains(a.do(t, http.MethodGet, "/metrics", "").body, line+"\n")
	}, "%s", line)
}

const (
	streamHead = "/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nContent-Length: 1000"
	jsonHead   = "/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
	oneEvent   = `{"event_type":"t","event_context":1}`
)

// NDJSON takes its place before its body is read, and takes none from others.
func TestStreamsHavePlacesOfTheirOwn(t *testing.T) {
	t.Parallel()
	a := start(t, testenv.New(t).PostgresURL, func(d *httpapi.Deps) { d.MaxStreams, d.MaxRequests = 4, 1 })
	var slow []net.Conn
	for range 2 {
		slow = append(slow, a.open(t, streamHead, ""))
	}
	a.metric(t, "diehard_api_streams_in_progress 2")
	for _, kind := range []string{ndjson, "application/ndjson", "application/jsonl"} {
		got := a.publish(t, kind, oneEvent)
		requireProblem(t, got, http.StatusTooManyRequests)
		assert.Equal(t, "2", got.header.Get("Retry-After"))
	}
	idsOf(t, a.publish(t, "application/json", oneEvent))
	for _, conn := range slow {
		_ = conn.Close()
	}
	a.metric(t, "diehard_api_streams_in_progress 0")
	idsOf(t, a.publish(t, ndjson, oneEvent))
}

func TestBodiesInMemoryHaveABudget(t *testing.T) {
	t.Parallel()
	secrets, protect := withKeys(t, "a", "b")
	a := start(t, testenv.New(t).PostgresURL, func(d *httpapi.Deps) {
		protect(d)
		d.MaxBodyBytes = 1 << 20
	})
	large := `{"event_type":"t","event_context":"` + strings.Repeat("x", 400<<10) + `"}`
	head := fmt.Sprintf("%s%d\r\nX-Api-Key: %s", jsonHead, len(large), secrets[0])
	half := a.open(t, head, large[:5000])
	a.metric(t, fmt.Sprintf("diehard_api_body_bytes %d", len(large)+1-4096))

	for _, kind := range []string{"by length", "chunked"} {
		await.True(t, func() bool { // the connection is closed on the rest of the body, and the answer may be lost with it
			var body io.Reader = strings.NewReader(large)
			if kind == "chunked" {
				body = io.MultiReader(body)
			}
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.URL+"/events", body)
			require.NoError(t, err)
			request.Header.Set("Content-Type", "application/json")
			request.Header.Set("X-Api-Key", secrets[0])
			response, err := a.Client().Do(request)
			if err != nil {
				return false
			}
			_ = response.Body.Close()
			assert.Equal(t, http.StatusTooManyRequests, response.StatusCode, kind)
			return true
		}, "no answer to a body that is too much: %s", kind)
	}
	idsOf(t, a.publish(t, "application/json", oneEvent, "X-Api-Key", secrets[0]))
	idsOf(t, a.publish(t, "application/json", large, "X-Api-Key", secrets[1]))

	_, err := io.WriteString(half, large[5000:])
	require.NoError(t, err)
	assert.Equal(t, http.StatusAccepted, statusOf(t, half))
	a.metric(t, "diehard_api_body_bytes 0")
	idsOf(t, a.publish(t, "application/json", large, "X-Api-Key", secrets[0]))
}

// A body that stops or trickles is cut off, also before the first byte.
func TestSlowBodiesAreCutOff(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		head string
		send string // again and again
	}{
		"nothing":     {jsonHead + "36", ""},
		"trickle":     {jsonHead + "20000", " "},
		"lines":       {streamHead, "\n"},
		"no line yet": {streamHead, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := start(t, away, func(d *httpapi.Deps) {
				d.Timeouts.Body, d.Timeouts.BodyRate = 300*time.Millisecond, 10_000
			})
			conn := a.open(t, c.head, "")
			done := make(chan struct{})
			t.Cleanup(func() { close(done) })
			go func() {
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for c.send != "" {
					select {
					case <-done:
						return
					case <-tick.C:
						_, _ = io.WriteString(conn, c.send)
					}
				}
			}()
			assert.Equal(t, http.StatusRequestTimeout, statusOf(t, conn))
		})
	}
}
