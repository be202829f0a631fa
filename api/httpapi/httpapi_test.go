package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/events"
	"diehard/api/httpapi"
	"diehard/api/users"
	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/telemetry"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// api is a running api with its log.
type api struct {
	*httptest.Server
	log *syncBuffer
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start serves the use case on url's database; change may replace parts.
func start(t *testing.T, url string, change func(*httpapi.Deps)) *api {
	t.Helper()
	pool := testenv.Pool(t, url, 0)
	a := &api{log: &syncBuffer{}}
	deps := httpapi.Deps{
		Users: users.New(pool, "Local"), Events: events.New(pool, "Local"), Ready: pool.Ping, Registry: telemetry.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Timeouts: timeouts,
		MaxRequests: 100, MaxStreams: 8, MaxBodyBytes: 32 << 20,
	}
	if change != nil {
		change(&deps)
	}
	a.Server = httptest.NewServer(httpapi.New(deps))
	t.Cleanup(a.Close)
	return a
}

var timeouts = httpapi.Timeouts{Header: 5 * time.Second, Body: 15 * time.Second, Request: 5 * time.Second, Stream: time.Minute}

const away = "postgres://app:hunter2@127.0.0.1:1/app"

// answer is a response that has been read.
type answer struct {
	status int
	header http.Header
	path   string // of the request
	body   string
}

// do sends a request with pairs of header names and values.
func (a *api) do(t *testing.T, method, path, body string, headers ...string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, a.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := a.Client().Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	requireAsDescribed(t, request, response, content)
	return answer{response.StatusCode, response.Header, request.URL.Path, string(content)}
}

func (a *api) post(t *testing.T, body string, headers ...string) answer {
	t.Helper()
	return a.do(t, http.MethodPost, "/users", body, append([]string{"Content-Type", "application/json"}, headers...)...)
}

// requireProblem checks everything that problems have in common.
func requireProblem(t *testing.T, got answer, status int) httpapi.Problem {
	t.Helper()
	require.Equal(t, status, got.status, got.body)
	require.Equal(t, "application/problem+json", got.header.Get("Content-Type"))
	var p httpapi.Problem
	require.NoError(t, json.Unmarshal([]byte(got.body), &p))
	assert.Equal(t, status, p.Status)
	assert.Equal(t, "about:blank", p.Type)
	assert.Equal(t, http.StatusText(status), p.Title)
	assert.Equal(t, got.path, p.Instance)
	assert.NotEmpty(t, p.RequestID)
	assert.Equal(t, got.header.Get("X-Request-Id"), p.RequestID)
	return p
}

func TestCreateAndGet(t *testing.T) {
	t.Parallel()
	a := start(t, testenv.New(t).PostgresURL, nil)
	got := a.post(t, `{"email":"test@example.com","first_name":"Test","last_name":"User"}`)
	require.Equal(t, http.StatusCreated, got.status, got.body)
	assert.Equal(t, "application/json", got.header.Get("Content-Type"))
	var created users.User
	require.NoError(t, json.Unmarshal([]byte(got.body), &created))
	assert.Equal(t, "test@example.com", created.Email)
	assert.Equal(t, "/users/"+created.ID.String(), got.header.Get("Location"))

	found := a.do(t, http.MethodGet, got.header.Get("Location"), "")
	assert.Equal(t, http.StatusOK, found.status)
	assert.Equal(t, got.body, found.body)
}

func TestTraceOfTheRequestGoesWithTheEvent(t *testing.T) {
	t.Parallel()
	const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	env := testenv.New(t)
	a := start(t, env.PostgresURL, nil)
	a.post(t, `{"email":"a@example.com","first_name":"A","last_name":"B"}`, "Traceparent", traceparent)
	a.post(t, `{"email":"b@example.com","first_name":"A","last_name":"B"}`, "Traceparent", "nonsense")
	var good, all int
	require.NoError(t, env.Pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE trace_context = $1
		AND event_context->>'email' = 'a@example.com'), count(trace_context) FROM outbox`, traceparent).Scan(&good, &all))
	assert.Equal(t, []int{1, 1}, []int{good, all})
}

func TestEmailTaken(t *testing.T) {
	t.Parallel()
	a := start(t, testenv.New(t).PostgresURL, nil)
	a.post(t, `{"email":"test@example.com","first_name":"Test","last_name":"User"}`)
	got := a.post(t, `{"email":"TEST@example.com","first_name":"Test","last_name":"User"}`)
	p := requireProblem(t, got, http.StatusConflict)
	assert.Equal(t, "User with this email already exists", p.Detail)
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	a := start(t, away, nil) // none of these reaches the database
	for name, c := range map[string]struct {
		method, path, contentType, body string
		status                          int
		says                            string
	}{
		"malformed":          {"POST", "/users", "application/json", `{"email`, 400, `not valid JSON (at byte 7)`},
		"two values":         {"POST", "/users", "application/json", `{} {}`, 400, "not valid JSON"},
		"empty":              {"POST", "/users", "application/json", ``, 400, "not valid JSON"},
		"an array":           {"POST", "/users", "application/json", `[]`, 400, "not a JSON object"},
		"null":               {"POST", "/users", "application/json", `null`, 400, "not a JSON object"},
		"form":               {"POST", "/users", "application/x-www-form-urlencoded", `email=a`, 415, "application/json"},
		"no type":            {"POST", "/users", "", `{}`, 415, "application/json"},
		"too large":          {"POST", "/users", "application/json", `{"email":"` + strings.Repeat("x", 64<<10) + `"}`, 413, "65536 bytes"},
		"nothing there":      {"GET", "/nothing", "", "", 404, "No such resource"},
		"not an id":          {"GET", "/users/1", "", "", 404, "User not found"},
		"id in braces":       {"GET", "/users/{01a208df-80c2-7303-be9f-9b63f3b12bf3}", "", "", 404, "User not found"},
		"id without hyphens": {"GET", "/users/01a208df80c27303be9f9b63f3b12bf3", "", "", 404, "User not found"},
		"wrong method":       {"DELETE", "/users", "", "", 405, "Allow"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := a.do(t, c.method, c.path, c.body, "Content-Type", c.contentType)
			assert.Contains(t, requireProblem(t, got, c.status).Detail, c.says)
			if c.status == http.StatusMethodNotAllowed {
				assert.Equal(t, "OPTIONS, POST", got.header.Get("Allow"))
			}
		})
	}
}

// A body without a length is counted while it is read.
func TestTooLargeWithoutALength(t *testing.T) {
	t.Parallel()
	a := start(t, away, nil)
	body := io.MultiReader(strings.NewReader(`{"email":"`), strings.NewReader(strings.Repeat("x", 64<<10)), strings.NewReader(`"}`))
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.URL+"/users", body)
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	response, err := a.Client().Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	assert.Equal(t, http.StatusRequestEntityTooLarge, response.StatusCode)
}

func TestInvalidFieldsAreNamed(t *testing.T) {
	t.Parallel()
	a := start(t, away, nil)
	for body, want := range map[string][]httpapi.FieldError{
		`{"email":"test","first_name":"T"}`: {{Field: "email", Message: "must be an email address"}},
		`{"email":1}`:                       {{Field: "email", Message: "must be a string"}},
		`{"email":null,"last_name":null}`:   {{Field: "email", Message: "is required"}},
		`{"email":"test@example.com","first_name":"T","last_name":"U","is_active":false,"Email":"a@b.cc","email":"b@b.cc"}`: {
			{Field: "is_active", Message: "is not a field of a user"}, {Field: "Email", Message: "is not a field of a user"}, {Field: "email", Message: "is given twice"},
		},
	} {
		got := a.post(t, body)
		assert.Equal(t, want, requireProblem(t, got, http.StatusUnprocessableEntity).Errors)
	}
}

func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	a := start(t, away, nil)
	for _, c := range [][2]string{{"POST", "/users"}, {"GET", "/users/" + uuid.NewString()}, {"GET", "/readyz"}} {
		got := a.do(t, c[0], c[1], `{"email":"a@example.com","first_name":"A","last_name":"B"}`, "Content-Type", "application/json")
		requireProblem(t, got, http.StatusServiceUnavailable)
		assert.Equal(t, "2", got.header.Get("Retry-After"))
		assert.NotContains(t, got.body, "127.0.0.1")
		assert.Contains(t, a.log.String(), "request_id="+got.header.Get("X-Request-Id"))
	}
	got := a.do(t, http.MethodGet, "/healthz", "")
	assert.Equal(t, http.StatusOK, got.status, "the process itself is well")
	assert.NotContains(t, a.log.String(), "hunter2")
}

func TestProbes(t *testing.T) {
	t.Parallel()
	a := start(t, testenv.New(t).PostgresURL, nil)
	for path, want := range map[string]string{"/healthz": `{"status":"ok"}`, "/readyz": `{"status":"ready"}`} {
		got := a.do(t, http.MethodGet, path, "")
		assert.Equal(t, http.StatusOK, got.status)
		assert.JSONEq(t, want, got.body)
	}
	got := a.do(t, http.MethodGet, "/metrics", "")
	assert.Contains(t, got.body, `http_request_duration_seconds_count{method="GET",route="/healthz",status="200"} 1`)
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	a := start(t, away, nil)
	for given, kept := range map[string]bool{
		"abc-DEF_1.2": true, strings.Repeat("x", 64): true, strings.Repeat("x", 65): false, "a b": false, `a"b`: false, "ü": false, "": false,
	} {
		got := a.do(t, http.MethodGet, "/healthz", "", "X-Request-ID", given)
		id := got.header.Get("X-Request-Id")
		if kept {
			assert.Equal(t, given, id)
		} else {
			assert.Regexp(t, "^[0-9a-f]{32}$", id)
		}
		assert.Contains(t, a.log.String(), "request_id="+id)
	}
}

// stub is a use case that a test supplies.
type stub struct{ create func(context.Context) error }

func (s stub) Create(ctx context.Context, _ users.Request) (users.User, bool, error) {
	return users.User{}, false, s.create(ctx)
}

func (s stub) Get(context.Context, uuid.UUID) (users.User, error) {
	return users.User{}, users.ErrNotFound
}

func with(create func(context.Context) error) func(*httpapi.Deps) {
	return func(d *httpapi.Deps) { d.Users = stub{create} }
}

func TestPanicFailsOneRequest(t *testing.T) {
	t.Parallel()
	a := start(t, away, with(func(context.Context) error { panic("broken") }))
	got := a.post(t, `{}`)
	p := requireProblem(t, got, http.StatusInternalServerError)
	assert.NotContains(t, p.Detail, "broken")
	log := a.log.String()
	assert.Contains(t, log, "panic: broken")
	assert.Contains(t, log, "httpapi_test.go", "the place of the panic")
	assert.Contains(t, log, "request_id="+p.RequestID)
	got = a.do(t, http.MethodGet, "/healthz", "")
	assert.Equal(t, http.StatusOK, got.status)
}

func TestUnexpectedErrorStaysInTheLog(t *testing.T) {
	t.Parallel()
	a := start(t, away, with(func(context.Context) error { return errors.New("postgres://app:hunter2@db: secret detail") }))
	got := a.post(t, `{}`)
	requireProblem(t, got, http.StatusInternalServerError)
	assert.NotContains(t, got.body, "secret detail")
	assert.Contains(t, a.log.String(), "secret detail")
	assert.NotContains(t, a.log.String(), "hunter2")
	assert.Equal(t, 1, strings.Count(a.log.String(), "request failed"), "logged once")
}

func TestRequestHasATimeLimit(t *testing.T) {
	t.Parallel()
	a := start(t, away, func(d *httpapi.Deps) {
		d.Timeouts.Request = 50 * time.Millisecond
		d.Users = stub{func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}
	})
	got := a.post(t, `{}`)
	requireProblem(t, got, http.StatusServiceUnavailable)
}

func TestClientThatGoesAwayIsNotAFailure(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{})
	a := start(t, away, with(func(ctx context.Context) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, a.URL+"/users", strings.NewReader(`{}`))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	go func() {
		<-entered
		cancel()
	}()
	_, err = a.Client().Do(request) //nolint:bodyclose // there is no response
	require.ErrorIs(t, err, context.Canceled)
	await.True(t, func() bool { return strings.Contains(a.log.String(), "status=499") }, "the request is logged")
	assert.NotContains(t, a.log.String(), "request failed")
}
