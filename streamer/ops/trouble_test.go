package ops_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/failure"
	"diehard/streamer/ops"
)

// What an operator must act on stays visible to every scrape, until it works again.
func TestAFatalErrorIsAStateWithItsCause(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	w := watch(t, env)
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	assert.InDelta(t, 0, w.metrics().value("state", ops.Failed), 0)
	w.end() // the pipeline, not its monitor
	w.monitor.Failed(failure.Wrap(failure.Fatal, failure.Because(failure.Publication, errors.New("the publication is missing: create it"))))

	code, r := w.ready()
	assert.Equal(t, http.StatusServiceUnavailable, code)
	assert.Equal(t, []any{ops.Failed, failure.Publication}, []any{r.Status, r.Cause})
	assert.Contains(t, r.Reasons, "the streamer cannot run: the publication is missing: create it")
	m := w.metrics()
	assert.InDelta(t, 1, m.value("state", ops.Failed), 0)
	assert.InDelta(t, 0, m.value("state", "stopped"), 0)
	assert.InDelta(t, 1, m.value("failure", string(failure.Publication)), 0)
	assert.InDelta(t, 0, m.value("failure", string(failure.SlotLost)), 0)

	w.begin()
	await.True(t, func() bool {
		code, r := w.ready()
		return code == http.StatusOK && r.Status == "streaming" && r.Cause == ""
	}, "it never recovers")
	m = w.metrics()
	assert.InDelta(t, 0, m.value("state", ops.Failed), 0)
	assert.InDelta(t, 0, m.value("failure", string(failure.Publication)), 0)
	require.NotEmpty(t, w.status().Failures)
}
