package ops_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/dev/testenv/browser"
)

func TestLivePage(t *testing.T) {
	t.Parallel()
	b := browser.Open(t)
	env := testenv.New(t)
	w := watch(t, env)
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	b.Visit(w.url + "/")
	await.True(t, func() bool { return b.Text("#state") == "streaming" }, "the page never says streaming")

	const rows = 1234
	publish(t, env, rows)
	_, err := env.Pool.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", env.Slot+"_bm_mark")
	require.NoError(t, err)
	await.True(t, func() bool { return strings.Contains(b.Text("#rate-bytes"), "1,234 since the start") }, "the events are never shown")
	await.True(t, func() bool { return strings.Contains(b.Text("#slots"), "bookmark mark") }, "the bookmark is never shown")
	assert.Equal(t, "0", b.Text("#dead"))
	assert.Regexp(t, `^[\d.]+ m?s$`, b.Text("#lag"))
	assert.Contains(t, b.Text("#slots"), env.Slot+" (ours)")
	assert.Contains(t, b.Text("#postgres"), "7 days ahead")
	await.True(t, func() bool {
		return browser.Do(b, chromedp.Evaluate[int](`document.querySelectorAll("svg .line, svg .bars").length`)) == 7
	}, "not every line is drawn")
	b.RequireFits("page", "drawAll()")

	assert.Empty(t, b.Problems(), "exceptions or refused assets")
	w.stop()
	await.True(t, func() bool { return b.Text("#state") == "no answer" }, "the page does not notice that the streamer is gone")
}

func TestPageNeedsNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	_, body := watch(t, testenv.New(t)).get("/")
	assert.NotRegexp(t, `(src|href)=["']?(https?:)?//`, body)
	assert.NotContains(t, body, "@import")
}
