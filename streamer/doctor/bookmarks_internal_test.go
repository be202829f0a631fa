package doctor

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"diehard/streamer/ops"
)

func TestLostBookmarksAreTold(t *testing.T) {
	t.Parallel()
	facts := func(slots ...ops.Slot) *postgresFacts {
		return &postgresFacts{Postgres: &ops.Postgres{Slots: slots}}
	}
	noon := ops.Slot{Bookmark: "noon", WALStatus: "extended", RetainedBytes: 5 << 20}
	lost := ops.Slot{Bookmark: "old", WALStatus: "lost"}
	idle := ops.Slot{Bookmark: "idle", InvalidationReason: "idle_timeout"}
	assert.Equal(t, noMatter(), judgeBookmarks(facts(ops.Slot{Name: "ours", WALStatus: "lost"})))
	assert.Equal(t, ok("1, and the oldest keeps 5 MB of WAL"), judgeBookmarks(facts(noon)))
	v := judgeBookmarks(facts(noon, lost, idle))
	assert.Equal(t, Warning, v.level)
	assert.Equal(t, "streamer bookmark drop old && streamer bookmark drop idle", v.mend)
}
