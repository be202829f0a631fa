package hostcheck_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"

	"diehard/shared/hostcheck"
)

func TestAllowed(t *testing.T) {
	t.Parallel()
	names := []string{"api.internal", "other:8443"}
	for host, want := range map[string]bool{
		"localhost": true, "localhost:8080": true, "LOCALHOST.:8080": true, "api.localhost": true, "127.0.0.1": true, "127.8.9.1:80": true,
		"[::1]:8080": true, "[::1]": true, "::1": true, "[::ffff:127.0.0.1]:1": true, "": true,
		"api.internal": true, "API.internal:8080": true, "api.internal.": true, "other": true, "other:1": true,
		"evil.example": false, "evil.example:8080": false, "127.0.0.1.evil.example": false, "localhost.evil.example": false, "notlocalhost": false,
		"192.0.2.1": false, "[2001:db8::1]:80": false, "0.0.0.0": false, "[::]": false, "127.1": false, "2130706433": false, ".": false, ":8080": false,
		"sub.api.internal": false, "localhost@evil.example": false,
	} {
		assert.Equal(t, want, hostcheck.Allowed(host, names), "%q", host)
	}
	assert.False(t, hostcheck.Allowed("api.internal", nil))
}

func TestProtect(t *testing.T) {
	t.Parallel()
	handler := hostcheck.Protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }), nil)
	for host, status := range map[string]int{"127.0.0.1:8081": http.StatusNoContent, "evil.example": http.StatusMisdirectedRequest} {
		request := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		request.Host = host
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		assert.Equal(t, status, recorder.Code, host)
	}
}

func TestIsLoopback(t *testing.T) {
	t.Parallel()
	for ip, want := range map[string]bool{"127.0.0.1": true, "127.0.0.2": true, "::1": true, "0.0.0.0": false, "::": false, "192.0.2.1": false} {
		assert.Equal(t, want, hostcheck.IsLoopback(&net.TCPAddr{IP: net.ParseIP(ip)}), ip)
	}
	assert.False(t, hostcheck.IsLoopback(&net.UnixAddr{}))
}
