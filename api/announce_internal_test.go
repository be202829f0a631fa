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

// However long the database is away, the log says so once.
func TestAnOutageAtTheStartIsSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		tries := 0
		announce(t.Context(), func(context.Context) error {
			if tries++; tries < 100 {
				return errors.New("no such host")
			}
			return nil
		}, slog.New(slog.NewTextHandler(&out, nil)))
		assert.Equal(t, 100, tries)
		assert.Equal(t, 2, strings.Count(out.String(), "\n"), out.String())
		assert.Regexp(t, `(?s)level=WARN.*PostgreSQL cannot be used.*no such host.*level=INFO msg="api ready"`, out.String())
	})
}

func TestNothingIsAnnouncedAfterTheEnd(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	announce(ctx, func(context.Context) error { cancel(); return nil }, slog.New(slog.NewTextHandler(&out, nil)))
	assert.Empty(t, out.String())
}
