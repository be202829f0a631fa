package ops_test

import (
	"context"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/jackc/pglogrepl"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
	"diehard/shared/dev/testenv/browser"
	"diehard/streamer/ops"
)

// truth is what the databases themselves say.
type truth struct {
	published, stored int64
	walEnd, confirmed pglogrepl.LSN
}

func ask(t *testing.T, env *testenv.Env) truth {
	t.Helper()
	var a truth
	var stored uint64
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM event_log").Scan(&stored))
	a.stored = int64(stored)
	var end, confirmed string
	require.NoError(t, env.Pool.QueryRow(t.Context(), `
		SELECT (SELECT count(*) FROM outbox), pg_current_wal_lsn()::text, confirmed_flush_lsn::text
		FROM slot_lag WHERE slot_name = $1`, env.Slot).Scan(&a.published, &end, &confirmed))
	a.walEnd, a.confirmed = lsn(t, end), lsn(t, confirmed)
	return a
}

func lsn(t *testing.T, text string) pglogrepl.LSN {
	t.Helper()
	l, err := pglogrepl.ParseLSN(text)
	require.NoError(t, err, text)
	return l
}

// claim is what a way to watch the streamer says.
type claim struct {
	flushed, stored   int64
	walEnd, confirmed pglogrepl.LSN
}

// watchers are the ways to watch: what each says, compared with the databases.
func (w *watched) watchers(b *browser.Page) map[string]func() claim {
	number := regexp.MustCompile(`([\d,]+) (since|rows)`)
	figure := func(text string) int64 {
		w.t.Helper()
		match := number.FindStringSubmatch(text)
		require.NotNil(w.t, match, text)
		n, err := strconv.ParseInt(strings.ReplaceAll(match[1], ",", ""), 10, 64)
		require.NoError(w.t, err)
		return n
	}
	return map[string]func() claim{
		"status": func() claim {
			s := w.status()
			c := claim{flushed: s.Totals.Flushed, walEnd: lsn(w.t, s.Lag.WALEnd), confirmed: lsn(w.t, s.Lag.Confirmed.LSN)}
			if s.ClickHouse.ClickHouse != nil {
				c.stored = int64(s.ClickHouse.Rows)
			}
			assert.Equal(w.t, int64(c.walEnd-c.confirmed), s.Lag.Confirmed.Bytes)
			return c
		},
		"metrics": func() claim {
			m := w.metrics()
			return claim{
				flushed: int64(m.value("rows_flushed_total")), stored: int64(m.value("clickhouse_rows")),
				walEnd: pglogrepl.LSN(m.value("wal_end_bytes")), confirmed: pglogrepl.LSN(m.value("wal_end_bytes") - m.value("lag_bytes", "confirmed")),
			}
		},
		"page": func() claim {
			shown := strings.Split(browser.Do(b, chromedp.Evaluate[string](`[
				$("rate-bytes").textContent, $("clickhouse").textContent, $("wal-end").textContent, $("pipe").children[4].querySelector("code").textContent
			].join("|")`)), "|")
			return claim{
				flushed: figure(shown[0]), stored: figure(shown[1]),
				walEnd: lsn(w.t, strings.TrimPrefix(shown[2], "WAL end ")), confirmed: lsn(w.t, shown[3]),
			}
		},
	}
}

// Under load nothing is claimed that the databases do not confirm a moment later,
// and everything that they say is seen a moment later.
func TestEverythingAgreesWithTheDatabasesUnderLoad(t *testing.T) {
	t.Parallel()
	b := browser.Open(t)
	env := testenv.New(t)
	w := watch(t, env)
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	stop := produce(t, env)
	await.True(t, func() bool {
		s := w.status()
		return s.Totals.Flushed > 0 && s.ClickHouse.ClickHouse != nil
	}, "nothing is written")
	b.Visit(w.url + "/")
	await.True(t, func() bool { return strings.Contains(b.Text("#clickhouse"), " rows, ") }, "the page shows nothing")

	for range 3 {
		for name, read := range w.watchers(b) {
			before := ask(t, env)
			var c claim
			await.True(t, func() bool {
				c = read()
				return c.flushed >= before.stored && c.stored >= before.stored && c.walEnd >= before.walEnd && c.confirmed >= before.confirmed
			}, "%s never shows what the databases said", name)
			after := ask(t, env)
			assert.LessOrEqual(t, c.flushed, after.stored, name)
			assert.LessOrEqual(t, c.stored, after.stored, name)
			assert.LessOrEqual(t, c.walEnd, after.walEnd, name)
			await.True(t, func() bool { return ask(t, env).confirmed >= c.confirmed }, "%s shows as confirmed what PostgreSQL never hears of", name)
		}
	}
	stop()
	published := ask(t, env).published
	for name, read := range w.watchers(b) {
		await.True(t, func() bool { c := read(); return c.flushed == published && c.stored == published }, "%s never shows every event", name)
	}
	var lag ops.Lag
	await.True(t, func() bool { lag = w.status().Lag; return lag.Confirmed.Bytes == 0 }, "the lag never ends")
	assert.Zero(t, lag.Buffered.Rows)
	assert.Empty(t, b.Problems())
}

// produce publishes some thousand events a second until stop is called.
func produce(t *testing.T, env *testenv.Env) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		var err error
		pace := time.NewTicker(20 * time.Millisecond)
		defer pace.Stop()
		for ctx.Err() == nil && err == nil {
			<-pace.C
			_, err = env.Pool.Exec(context.WithoutCancel(ctx),
				`INSERT INTO outbox (event_type, event_context) SELECT 'load', '{"n":1}' FROM generate_series(1, 100)`)
		}
		done <- err
	}()
	return func() {
		t.Helper()
		cancel()
		require.NoError(t, <-done)
	}
}
