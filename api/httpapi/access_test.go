package httpapi_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/events"
	"diehard/api/httpapi"
	"diehard/api/keys"
	"diehard/api/users"
	"diehard/shared/dev/testenv"
	"diehard/shared/telemetry"
)

// startServer is start with a real server and its time limits; it returns the address.
func startServer(t *testing.T, url string, limits httpapi.Timeouts) string {
	t.Helper()
	pool := testenv.Pool(t, url, 0)
	log := slog.New(slog.DiscardHandler)
	handler := httpapi.New(httpapi.Deps{
		Users: users.New(pool, "Local"), Events: events.New(pool, "Local"), Ready: pool.Ping, Registry: telemetry.NewRegistry(),
		Log: log, Timeouts: limits, MaxRequests: 10, MaxStreams: 4, MaxBodyBytes: 32 << 20,
	})
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- httpapi.Serve(ctx, httpapi.NewServer(handler, limits, log), listener, time.Minute) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	return "http://" + listener.Addr().String()
}

// withKeys protects an api and returns a key for each name.
func withKeys(t *testing.T, names ...string) (secrets []string, change func(*httpapi.Deps)) {
	t.Helper()
	var entries []string
	for _, name := range names {
		secret, entry, err := keys.New(name)
		require.NoError(t, err)
		secrets, entries = append(secrets, secret), append(entries, entry)
	}
	set, err := keys.Parse(entries)
	require.NoError(t, err)
	return secrets, func(d *httpapi.Deps) { d.Keys = set }
}

func TestKeysOpenTheApi(t *testing.T) {
	t.Parallel()
	secrets, protect := withKeys(t, "shop", "shop", "")
	a := start(t, testenv.New(t).PostgresURL, protect)
	const body = `{"event_type":"t","event_context":1}`
	for _, secret := range secrets {
		for _, header := range [][2]string{{"Authorization", "Bearer " + secret}, {"Authorization", "bearer  " + secret}, {"X-API-Key", secret}} {
			idsOf(t, a.publish(t, "application/json", body, header[0], header[1]))
		}
	}
	for name, headers := range map[string][]string{
		"none": nil, "wrong": {"Authorization", "Bearer x"}, "no scheme": {"Authorization", secrets[0]}, "another scheme": {"Authorization", "Basic " + secrets[0]},
		"two": {"Authorization", "Bearer " + secrets[0], "X-API-Key", secrets[0]}, "empty": {"X-API-Key", ""},
	} {
		for _, target := range [][2]string{{"POST", "/events"}, {"POST", "/users"}, {"GET", "/users/01a208df-80c2-7303-be9f-9b63f3b12bf3"}} {
			got := a.do(t, target[0], target[1], body, append([]string{"Content-Type", "application/json"}, headers...)...)
			requireProblem(t, got, http.StatusUnauthorized)
			assert.Regexp(t, `^Bearer realm="diehard"`, got.header.Get("WWW-Authenticate"), name)
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/docs", "/openapi.yaml", "/openapi.json", "/docs/page.js", "/metrics"} {
		assert.Equal(t, http.StatusOK, a.do(t, http.MethodGet, path, "").status, path)
	}
	assert.Equal(t, http.StatusNotFound, a.do(t, http.MethodGet, "/nothing", "").status)
	for _, secret := range secrets {
		assert.NotContains(t, a.log.String(), secret)
	}
}

// A key that is replaced keeps its caller's idempotency keys; others have their own.
func TestIdempotencyKeysBelongToCallers(t *testing.T) {
	t.Parallel()
	secrets, protect := withKeys(t, "shop", "shop", "bank")
	a := start(t, testenv.New(t).PostgresURL, protect)
	var bodies []string
	for _, secret := range secrets {
		got := a.publish(t, "application/json", `{"event_type":"t","event_context":1}`, "X-API-Key", secret, "Idempotency-Key", "k")
		idsOf(t, got)
		bodies = append(bodies, got.body)
	}
	assert.Equal(t, bodies[0], bodies[1])
	assert.NotEqual(t, bodies[0], bodies[2])
}

func TestMetricsAreForThisMachineOrAKey(t *testing.T) {
	t.Parallel()
	secrets, protect := withKeys(t, "prometheus")
	handler := func(change func(*httpapi.Deps)) http.Handler {
		d := httpapi.Deps{Registry: telemetry.NewRegistry(), Log: slog.New(slog.DiscardHandler), Timeouts: timeouts, MaxRequests: 1}
		if change != nil {
			change(&d)
		}
		return httpapi.New(d)
	}
	for _, c := range []struct {
		keys    func(*httpapi.Deps)
		from    string
		headers []string
		status  int
	}{
		{protect, "127.0.0.1:1", nil, 200},
		{protect, "[::1]:1", nil, 200},
		{protect, "[::ffff:127.0.0.1]:1", nil, 200},
		{protect, "192.0.2.1:1", nil, 401},
		{protect, "192.0.2.1:1", []string{"X-Forwarded-For", "127.0.0.1"}, 401},
		{protect, "127.0.0.1:1", []string{"X-Forwarded-For", "192.0.2.1"}, 401},
		{protect, "127.0.0.1:1", []string{"Forwarded", "for=192.0.2.1"}, 401},
		{protect, "192.0.2.1:1", []string{"Authorization", "Bearer " + secrets[0]}, 200},
		{nil, "127.0.0.1:1", nil, 200},
		{nil, "192.0.2.1:1", nil, 401},
		{nil, "192.0.2.1:1", []string{"Authorization", "Bearer "}, 401},
	} {
		request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody)
		request.RemoteAddr = c.from
		for i := 0; i < len(c.headers); i += 2 {
			request.Header.Set(c.headers[i], c.headers[i+1])
		}
		recorder := httptest.NewRecorder()
		handler(c.keys).ServeHTTP(recorder, request)
		assert.Equal(t, c.status, recorder.Code, "%s %v", c.from, c.headers)
	}
}

func TestRateLimitOfEachCaller(t *testing.T) {
	t.Parallel()
	secrets, protect := withKeys(t, "shop", "bank")
	a := start(t, away, func(d *httpapi.Deps) {
		protect(d)
		d.RateLimit = 0.001 // a burst of one
	})
	for i, secret := range []string{secrets[0], secrets[1], secrets[0]} {
		got := a.publish(t, "application/json", `{}`, "X-API-Key", secret)
		if i < 2 {
			requireProblem(t, got, http.StatusUnprocessableEntity)
			continue
		}
		requireProblem(t, got, http.StatusTooManyRequests)
		assert.Equal(t, "2", got.header.Get("Retry-After"))
	}
	assert.Equal(t, http.StatusOK, a.do(t, http.MethodGet, "/healthz", "").status)

	handler := httpapi.New(httpapi.Deps{
		Users: stub{func(context.Context) error { return nil }}, Registry: telemetry.NewRegistry(),
		Log: slog.New(slog.DiscardHandler), Timeouts: timeouts, MaxRequests: 1, MaxBodyBytes: 1 << 20, RateLimit: 0.001,
	})
	for _, c := range []struct {
		from   string
		status int
	}{
		{"192.0.2.1:1", 201}, {"192.0.2.1:2", 429}, {"192.0.2.2:1", 201}, {"[2001:db8::1]:1", 201}, {"[2001:db8::2]:1", 429}, {"[2001:db8:0:1::1]:1", 201},
	} {
		request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/users", strings.NewReader(`{}`))
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("X-Forwarded-For", "198.51.100.1") // a client's word
		request.RemoteAddr = c.from
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		assert.Equal(t, c.status, recorder.Code, c.from)
	}
}

func TestSecurityHeaders(t *testing.T) {
	t.Parallel()
	a := start(t, away, nil)
	for _, path := range []string{"/healthz", "/users/1", "/nothing", "/docs", "/openapi.yaml", "/docs/page.css", "/metrics"} {
		got := a.do(t, http.MethodGet, path, "")
		assert.Equal(t, "nosniff", got.header.Get("X-Content-Type-Options"))
		assert.Equal(t, "DENY", got.header.Get("X-Frame-Options"))
		assert.Equal(t, "no-referrer", got.header.Get("Referrer-Policy"))
		assert.Regexp(t, `^default-src 'none'; .*frame-ancestors 'none'$`, got.header.Get("Content-Security-Policy"))
		assert.NotContains(t, got.header.Get("Content-Security-Policy"), "unsafe")
		assert.Empty(t, got.header.Get("Server"))
		assert.Empty(t, got.header.Get("Strict-Transport-Security"), "not without TLS")
	}
	assert.Equal(t, "no-store", a.do(t, http.MethodGet, "/users/1", "").header.Get("Cache-Control"))

	encrypted := httptest.NewTLSServer(a.Config.Handler)
	t.Cleanup(encrypted.Close)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, encrypted.URL+"/healthz", http.NoBody)
	require.NoError(t, err)
	response, err := encrypted.Client().Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	assert.Equal(t, "max-age=31536000", response.Header.Get("Strict-Transport-Security"))
}

// The README has a row for each route, which says who may ask.
func TestTheRoutesOfTheREADMEAreOpenAsItSays(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(content), "<!-- tested: routes -->\n")
	require.True(t, found)
	table, _, _ = strings.Cut(table, "\n\n")
	secrets, protect := withKeys(t, "shop")
	a := start(t, away, protect)
	rows := regexp.MustCompile("(?m)^\\| `(\\w+) ([^`]+)` \\| ([^|]+) \\| ([^|]+) \\|$").FindAllStringSubmatch(table, -1)
	require.Len(t, rows, 8)
	for _, row := range rows {
		target := strings.ReplaceAll(row[2], "{id}", "01a208df-80c2-7303-be9f-9b63f3b12bf3")
		refused := func(headers ...string) bool {
			code := a.do(t, row[1], target, `{}`, append([]string{"Content-Type", "application/json"}, headers...)...).status
			return code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusNotFound
		}
		switch row[3] {
		case "yes":
			assert.False(t, refused(), row[0])
		case "no":
			assert.True(t, refused(), row[0])
		case "from this machine, not through a proxy":
			assert.False(t, refused(), row[0])
			assert.True(t, refused("X-Forwarded-For", "192.0.2.1"), row[0])
		default:
			assert.Fail(t, "not tested", row[0])
		}
		assert.Equal(t, "yes", row[4])
		assert.False(t, refused("X-API-Key", secrets[0]), row[0])
	}
}
