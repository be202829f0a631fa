package ops_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

func TestContextsThatAreEncodedTwiceAreCounted(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	w := watch(t, env)
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	_, err := env.Pool.Exec(t.Context(), `INSERT INTO outbox (event_type, event_context)
		VALUES ('t', '{"a": 1}'), ('t', '"{\"a\": 1}"'), ('t', '"[not JSON"'), ('t', ' "[1]"')`)
	require.NoError(t, err)
	await.True(t, func() bool { return w.status().Totals.Flushed == 4 }, "the rows are never written")
	s := w.status()
	assert.EqualValues(t, 2, s.Totals.DoubleEncoded)
	var text strings.Builder
	require.NoError(t, s.WriteText(&text))
	assert.Contains(t, text.String(), "2 contexts since the start")
	assert.InDelta(t, 2, w.metrics().value("double_encoded_total"), 0)
}
