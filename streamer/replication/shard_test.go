package replication

import (
	"fmt"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

func TestAShardIsWrittenAsAFraction(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Shard{"": {}, "1/1": {}, "1/2": {1, 2}, "2/2": {2, 2}, "32/32": {32, 32}, "07/10": {7, 10}} {
		var s Shard
		require.NoError(t, s.UnmarshalText([]byte(text)), text)
		assert.Equal(t, want, s, text)
	}
	for _, text := range []string{"0/2", "3/2", "1/0", "0/0", "1/33", "1", "1/", "/2", "a/b", "-1/2", "1/2/3", " 1/2", "100/100"} {
		var s Shard
		require.Error(t, s.UnmarshalText([]byte(text)), text)
		assert.Zero(t, s)
	}
}

func TestNamesOfShards(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "outbox_pub_2_of_3", Shard{2, 3}.Name("outbox_pub"))
	assert.Equal(t, "outbox_pub", Shard{}.Name("outbox_pub"))
	assert.Equal(t, []Shard{{1, 3}, {2, 3}, {3, 3}}, Shard{2, 3}.All())
	assert.Equal(t, []Shard{{}}, Shard{}.All())
	assert.Equal(t, "2/3", Shard{2, 3}.String())
	assert.Equal(t, "1/1", Shard{}.String())
}

// PostgreSQL evaluates what it has parsed: for every count each id belongs to exactly one shard.
func TestFiltersAreCompleteAndDisjoint(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for count := 2; count <= MaxShards; count++ {
		sum := "0"
		for _, s := range (Shard{1, count}).All() {
			sum += " + " + s.Filter() + "::int"
		}
		var low, high int
		query := fmt.Sprintf(`SELECT min(%[1]s), max(%[1]s) FROM (SELECT ('00000000-0000-0000-0000-0000000000' || lpad(to_hex(n), 2, '0'))::uuid AS id
			FROM generate_series(0, 255) AS n) AS every`, sum)
		require.NoError(t, env.Pool.QueryRow(t.Context(), query).Scan(&low, &high))
		require.Equal(t, []int{1, 1}, []int{low, high}, "%d shards", count)
	}
}

func TestOnlyRowsOfAnotherDivisionStandInTheWay(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		shard   Shard
		written map[string]pglogrepl.LSN
		other   string
		slots   []string
	}{
		"nothing":          {Shard{1, 2}, nil, "", nil},
		"ours":             {Shard{1, 2}, map[string]pglogrepl.LSN{"s_1_of_2": 200, "s_2_of_2": 300}, "", nil},
		"before":           {Shard{1, 2}, map[string]pglogrepl.LSN{"s": 99}, "", nil},
		"at the beginning": {Shard{1, 2}, map[string]pglogrepl.LSN{"s": 100}, "s", []string{"s"}},
		"others":           {Shard{}, map[string]pglogrepl.LSN{"s2": 200, "as": 200, "s/table": 200, "s_1_of_2/table": 200, "s_old": 200, "s": 300}, "", nil},
		"shards":           {Shard{}, map[string]pglogrepl.LSN{"s_1_of_2": 50, "s_2_of_2": 200}, "s_2_of_2", []string{"s_1_of_2", "s_2_of_2"}},
	} {
		other, slots := (&Control{from: Origin{Slot: "s", Shard: test.shard}}).otherSharding(100, test.written)
		assert.Equal(t, test.other, other, name)
		assert.Equal(t, test.slots, slots, name)
	}
}

func TestNotesOfMessages(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	open := func(messages bool, shard Shard) *Control {
		c, err := OpenControl(t.Context(), env.PostgresURL, "tester", Origin{Slot: env.Slot, Publication: env.Publication, Shard: shard, Messages: messages})
		require.NoError(t, err)
		t.Cleanup(func() { c.Close(t.Context()) })
		return c
	}
	off, on, second := open(false, Shard{}), open(true, Shard{}), open(true, Shard{2, 2})
	second.slot = off.slot
	_, err := off.EnsureSlot(t.Context())
	require.NoError(t, err)
	for _, step := range []struct {
		by          *Control
		next, from  pglogrepl.LSN
		noted, with bool
	}{
		{off, 10, 0, false, false},
		{on, 20, 20, true, true},
		{on, 30, 20, true, true}, // it began once
		{off, 40, 20, false, true},
		{on, 50, 20, true, true},
		{second, 60, 20, false, true}, // another shard takes them
	} {
		from, err := step.by.NoteMessages(t.Context(), step.next)
		require.NoError(t, err)
		assert.Equal(t, step.from, from)
		with, err := step.by.WithMessages(t.Context())
		require.NoError(t, err)
		assert.Equal(t, step.with, with)
		var noted bool
		require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT messages FROM diehard_slot WHERE slot_name = $1", env.Slot).Scan(&noted))
		assert.Equal(t, step.noted, noted)
	}
	require.NoError(t, on.DropSlot(t.Context()))
	require.NoError(t, on.DeleteRecord(t.Context()))
	slot, err := on.EnsureSlot(t.Context())
	require.NoError(t, err)
	from, err := on.MessagesFrom(t.Context())
	require.NoError(t, err)
	assert.Equal(t, slot.ConfirmedFlush, from, "from the beginning of a slot that is made with them")
}
