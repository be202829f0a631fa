package httpapi_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"diehard/api/httpapi"
	"diehard/shared/telemetry"
)

// BenchmarkCreateUser is the cost of HTTP alone: everything but the use case
// and the network.
func BenchmarkCreateUser(b *testing.B) {
	handler := httpapi.New(httpapi.Deps{
		Users: stub{func(context.Context) error { return nil }}, Registry: telemetry.NewRegistry(),
		Log: slog.New(slog.DiscardHandler), Timeouts: timeouts, MaxRequests: 100, MaxBodyBytes: 1 << 20,
	})
	const body = `{"email":"test@example.com","first_name":"Test","last_name":"User"}`
	b.ReportAllocs()
	for b.Loop() {
		request := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/users", strings.NewReader(body))
		request.Header.Set("Content-Type", "application/json")
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		require.Equal(b, http.StatusCreated, recorder.Code)
	}
}
