package doctor

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"diehard/streamer/ops"
	"diehard/streamer/replication"
)

func TestLostBookmarksAreReported(t *testing.T) {
	t.Parallel()
	facts := func(slots ...ops.Slot) *postgresFacts {
		return &postgresFacts{Postgres: &ops.Postgres{Slots: slots}}
	}
	noon := ops.Slot{Bookmark: "noon", Slot: replication.Slot{WALStatus: "extended", RetainedBytes: 5 << 20}}
	lost := ops.Slot{Bookmark: "old", Slot: replication.Slot{WALStatus: "lost"}}
	idle := ops.Slot{Bookmark: "idle", Slot: replication.Slot{InvalidationReason: "idle_timeout"}}
	assert.Equal(t, notApplicable(), checkBookmarks(facts(ops.Slot{Slot: replication.Slot{Name: "ours", WALStatus: "lost"}})))
	assert.Equal(t, ok("1, the oldest retains 5 MB of WAL"), checkBookmarks(facts(noon)))
	v := checkBookmarks(facts(noon, lost, idle))
	assert.Equal(t, Warning, v.level)
	assert.Equal(t, "streamer bookmark drop old && streamer bookmark drop idle", v.fix)
}
