package events

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// A column that event_log gets must be shown, too. timeline says nothing of an event.
func TestAnEventHasEveryColumn(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	var list []struct {
		Name string `ch:"name"`
	}
	require.NoError(t, env.ClickHouse.Select(t.Context(), &list,
		"SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 'event_log' AND name != 'timeline'"))
	var names []string
	for _, c := range list {
		names = append(names, c.Name)
	}
	ours := strings.NewReplacer("toUnixTimestamp64Micro(", "", ")", "").Replace(columns)
	assert.ElementsMatch(t, names, strings.Split(ours, ", "))
}
