package config_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/config"
	"diehard/shared/settings"
)

func TestDefaults(t *testing.T) {
	t.Parallel()
	cfg, err := settings.ParseFrom[config.Config]("api", map[string]string{"DATABASE_URL": "postgres://db/app"})
	require.NoError(t, err)
	assert.Equal(t, "127.0.0.1:8080", cfg.Access.Addr)
	assert.Equal(t, 5*time.Second, cfg.RequestTimeout)
	assert.Equal(t, "Local", cfg.Access.Environment)
	assert.Equal(t, 30*time.Second, cfg.ShutdownTimeout)
	assert.Equal(t, "postgres://db/app", cfg.Postgres.URL)
	assert.Equal(t, int32(16), cfg.Postgres.MaxConns)
	assert.Equal(t, slog.LevelInfo, cfg.Log.Level)
}

func TestEveryMistakeIsNamedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := settings.ParseFrom[config.Config]("api", map[string]string{
		"DATABASE_URL": "postgres://app:hunter2@db:port/app", "API_KEYS": "hunter2", "SENTRY_CONFIG_DSN": "hunter2",
		"API_ADDR": "8080", "API_REQUEST_TIMEOUT": "soon", "SHUTDOWN_TIMEOUT": "-1s", "DATABASE_MAX_CONNS": "0",
		"LOG_LEVEL": "loud", "LOG_FORMATTER": "xml",
	})
	require.ErrorContains(t, err, "api: 9 settings are wrong:")
	for _, name := range []string{
		"DATABASE_URL", "API_KEYS", "SENTRY_CONFIG_DSN", "API_ADDR", "API_REQUEST_TIMEOUT", "SHUTDOWN_TIMEOUT", "DATABASE_MAX_CONNS",
		"LOG_LEVEL", "LOG_FORMATTER",
	} {
		assert.ErrorContains(t, err, "\n  "+name)
	}
	assert.NotContains(t, err.Error(), "hunter2")
}

func TestKeysAreNeededWhereOthersReachTheApi(t *testing.T) {
	t.Parallel()
	hash := strings.Repeat("a", 64)
	for _, c := range []struct {
		addr, environment, keys, open string
		ok                            bool
	}{
		{"127.0.0.1:8080", "Production", "", "", true},
		{"127.8.9.1:8080", "Production", "", "", true},
		{"[::1]:8080", "Production", "", "", true},
		{"localhost:8080", "Production", "", "", true},
		{":8080", "Production", hash, "", true},
		{"192.0.2.1:8080", "Production", "shop:" + hash + ",bank:" + hash, "", true},
		{":8080", "Production", "", "true", true},
		{":8080", "Local", "", "true", true},
		{":8080", "Local", "", "", false},
		{":8080", "Local", "", "false", false},
		{":8080", "Production", "", "", false},
		{"0.0.0.0:8080", "Local", "", "", false},
		{"[::]:8080", "Staging", "", "", false},
		{"example.com:8080", "Local", "", "", false},
		{"localhost.example.com:8080", "Local", "", "", false},
		{"127.0.0.1:8080", "Local", "hunter2", "", false},
		{":8080", "Local", "hunter2", "true", false},
	} {
		_, err := settings.ParseFrom[config.Config]("api", map[string]string{
			"DATABASE_URL": "postgres://db/app", "API_ADDR": c.addr, "ENVIRONMENT": c.environment, "API_KEYS": c.keys, "API_OPEN": c.open,
		})
		if c.ok {
			assert.NoError(t, err, c.addr)
			continue
		}
		require.ErrorContains(t, err, "API_KEYS", c.addr)
		assert.ErrorContains(t, err, "api key NAME")
		assert.NotContains(t, err.Error(), "hunter2")
	}
}
