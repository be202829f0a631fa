package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
)

// However long the database is down, the log says so once.
func TestAnOutageAtStartIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		tries := 0
		logWhenReady(t.Context(), func(context.Context) error {
			if tries++; tries < 100 {
				return errors.New("no such host")
			}
			return nil
		}, slog.New(slog.NewTextHandler(&out, nil)))
		assert.Equal(t, 100, tries)
		assert.Equal(t, 2, strings.Count(out.String(), "\n"), out.String())
		assert.Regexp(t, `(?s)level=WARN.*PostgreSQL is unavailable.*no such host.*level=INFO msg="api ready"`, out.String())
	})
}

func TestNothingIsLoggedAfterTheEnd(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	logWhenReady(ctx, func(context.Context) error { cancel(); return nil }, slog.New(slog.NewTextHandler(&out, nil)))
	assert.Empty(t, out.String())
}
