package sink

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
)

func TestClickHouseReadsWhatWasQuoted(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for _, text := range []string{"event_log", "a`b", `a\`, `\'`, "a`, b", "größe", "a\nb"} {
		rows, err := env.ClickHouse.Query(t.Context(), "SELECT "+QuoteString(text)+" AS "+Quote(text))
		require.NoError(t, err, text)
		require.True(t, rows.Next(), text)
		var got string
		require.NoError(t, rows.Scan(&got))
		assert.Equal(t, []string{text, text}, []string{got, rows.Columns()[0]})
		require.NoError(t, rows.Close())
	}
}
