package main

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/shared/settings"
	"diehard/streamer/config"
)

// What is said about events from before the slot is true with shards, too: there
// the slots are made while another streamer delivers them.
func TestEventsFromBeforeTheSlot(t *testing.T) {
	for shard, want := range map[string][2]string{
		"1/1": {"WARN", "start the streamer, then run `streamer replay --from-table` to deliver them"},
		"2/2": {"INFO", "the streamer that ran until now delivers the events before them"},
	} {
		env := testenv.New(t)
		if shard != "1/1" && env.Major(t) < 15 {
			continue // no row filters, no shards
		}
		use(t, env)
		t.Setenv("STREAMER_SHARD", shard)
		_, err := env.Pool.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) VALUES ('t', '{}')")
		require.NoError(t, err)
		cfg, err := settings.Parse[config.Config]("test")
		require.NoError(t, err)
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		require.NoError(t, prepareSlot(t.Context(), cfg, log))
		assert.Contains(t, out.String(), "level="+want[0])
		assert.Contains(t, out.String(), want[1])
		out.Reset()
		require.NoError(t, prepareSlot(t.Context(), cfg, log))
		assert.Empty(t, out.String(), "nothing is left to be said")
	}
}
