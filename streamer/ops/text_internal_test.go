package ops

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/replication"
)

// written is what people see of s.
func written(t *testing.T, s Status) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, s.WriteText(&b))
	for line := range strings.Lines(b.String()) {
		assert.LessOrEqual(t, utf8.RuneCountInString(line), 100, line)
	}
	return b.String()
}

func TestAnErrorKeepsItsBeginningAndItsEnd(t *testing.T) {
	t.Parallel()
	s := Status{State: NotRunning, SlotName: "s"}
	s.Postgres.Error = "ask PostgreSQL: failed to connect to `user=application database=somewhere`: 192.0.2.17:5432 (db.example.com): dial error: connect: connection refused"
	assert.Contains(t, written(t, s), "PostgreSQL    unreachable: ask PostgreSQL: fail…mple.com): dial error: connect: connection refused\n")
}

func TestASlotThatIsGoneIsNotOneThatIsYetToCome(t *testing.T) {
	t.Parallel()
	s := Status{State: NotRunning, SlotName: "s", Postgres: PostgresEndpoint{Postgres: &Postgres{}}}
	assert.Contains(t, written(t, s), "slot          does not exist yet; `streamer doctor` checks whether that is right\n")
	s.Lag.Flushed.LSN = "0/1"
	assert.Contains(t, written(t, s), "slot          missing, so events may be missing in ClickHouse: run `streamer doctor`\n")
}

func TestOneIsNotSeveral(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := Status{State: "streaming", SlotName: "s", Time: now, Started: &now}
	s.Totals.Flushed, s.Totals.Flushes, s.Lag.Buffered.Rows = 1, 1, 1
	s.Outbox = Outbox{Partitions: make([]Partition, 1), Ahead: 1}
	s.ClickHouse = ClickHouseEndpoint{Up: true, ClickHouse: &ClickHouse{Version: "26.7", Rows: 1, Parts: 1}}
	one := written(t, s)
	for _, text := range []string{"1 event\n", "1 event in 1 flush since", "1 partition (", "1 day ahead", "1 row (", " in 1 part\n"} {
		assert.Contains(t, one, text)
	}
	s.ClickHouse.Rows, s.ClickHouse.Parts = 1234, 0
	assert.Contains(t, written(t, s), "1,234 rows (0 B) in 0 parts\n")
}

func TestBookmarksAreNotOtherSlots(t *testing.T) {
	t.Parallel()
	s := Status{Time: time.Now(), State: NotRunning, SlotName: "s", Postgres: PostgresEndpoint{Postgres: &Postgres{Slots: []Slot{
		{Slot: replication.Slot{Name: "s_bm_noon", RetainedBytes: 1 << 20}, Bookmark: "noon", Confirmed: "0/5"},
		{Slot: replication.Slot{Name: "s_bm_old", WALStatus: "lost"}, Bookmark: "old"},
		{Slot: replication.Slot{Name: "elsewhere", RetainedBytes: 1 << 20}},
	}}}}
	text := written(t, s)
	assert.Contains(t, text, "bookmark      noon at 0/5, retains 1.0 MiB\n")
	assert.Contains(t, text, "bookmark      old is lost: PostgreSQL has removed its WAL\n")
	assert.Contains(t, text, "other slot    elsewhere: inactive, retains 1.0 MiB\n")
}

func TestDurationsKeepTheirUnits(t *testing.T) {
	t.Parallel()
	for seconds, want := range map[float64]string{
		0.25: "250ms", 7: "7s", 59.96: "1m0s", 60: "1m", 70: "1m10s", 500: "8m20s", 600: "10m", 1800: "30m",
		3600: "1h", 2 * 3600: "2h", 9000: "2h30m", 36000: "10h", 86400: "24h", 205200: "2d9h", 604800: "7d",
	} {
		assert.Equal(t, want, duration(seconds), "%v", seconds)
	}
}
