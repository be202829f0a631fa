package ops_test

import (
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

// metrics are the families of one scrape, by name.
type metrics struct {
	t        *testing.T
	families map[string]*dto.MetricFamily
}

func (w *watched) metrics() metrics {
	w.t.Helper()
	code, body := w.get("/metrics")
	require.Equal(w.t, http.StatusOK, code)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	require.NoError(w.t, err)
	return metrics{w.t, families}
}

// constLabels are those of every metric of the streamer.
var constLabels = map[string]bool{"environment": true, "slot": true, "shard": true}

// find returns the metric with a label of the given value ("" for none).
func (m metrics) find(name, label string) *dto.Metric {
	m.t.Helper()
	family := m.families["diehard_streamer_"+name]
	require.NotNil(m.t, family, name)
	for _, metric := range family.GetMetric() {
		for _, l := range metric.GetLabel() {
			if label == "" || !constLabels[l.GetName()] && l.GetValue() == label {
				return metric
			}
		}
	}
	require.Fail(m.t, "no such metric", "%s %s", name, label)
	return nil
}

// value is that of a counter or a gauge.
func (m metrics) value(name string, label ...string) float64 {
	m.t.Helper()
	metric := m.find(name, strings.Join(label, ""))
	return metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
}

func TestMetricsSayWhatTheDatabasesSay(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	w := watch(t, env)
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	const transactions, rows = 5, 3000
	for range transactions {
		publish(t, env, rows)
	}
	await.True(t, func() bool { return w.metrics().value("rows_flushed_total") == transactions*rows }, "the rows are never written")

	m := w.metrics()
	var stored uint64
	require.NoError(t, env.ClickHouse.QueryRow(t.Context(), "SELECT count() FROM event_log").Scan(&stored))
	assert.InDelta(t, stored, m.value("rows_flushed_total"), 0)
	assert.InDelta(t, stored, m.value("rows_read_total"), 0)
	assert.Greater(t, m.value("bytes_read_total"), 50.0*transactions*rows)
	assert.InDelta(t, 0, m.value("buffered_rows"), 0)
	assert.InDelta(t, 0, m.value("dead_letters_total"), 0)
	assert.InDelta(t, 0, m.value("messages_dropped_total"), 0)
	assert.InDelta(t, 0, m.value("retries_total", "transient"), 0)
	assert.InDelta(t, 1, m.value("state", "streaming"), 0)
	assert.InDelta(t, 0, m.value("state", "standby"), 0)
	assert.InDelta(t, 1, m.value("up", "postgresql"), 0)
	assert.InDelta(t, 1, m.value("slot_active"), 0)
	assert.InDelta(t, 7, m.value("outbox_days_ahead"), 0)
	assert.InDelta(t, time.Now().Unix(), m.value("last_flush_timestamp_seconds"), 60)

	histogram := m.find("event_latency_seconds", "").GetHistogram()
	assert.Equal(t, stored, histogram.GetSampleCount(), "every row is timed")
	assert.Less(t, histogram.GetSampleSum()/float64(stored), 10.0, "a mean in seconds")
	flushes := m.find("flush_duration_seconds", "").GetHistogram()
	assert.Equal(t, flushes.GetSampleCount(), m.find("batch_rows", "").GetHistogram().GetSampleCount())
	assert.InDelta(t, stored, m.find("batch_rows", "").GetHistogram().GetSampleSum(), 0)
}

// A streamer that is stopped leaves WAL behind; one that watches without
// streaming must measure it as PostgreSQL does.
func TestLagIsWhatPostgresSays(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	first := watch(t, env)
	await.True(t, func() bool { code, _ := first.ready(); return code == http.StatusOK }, "the streamer is never ready")
	standby := watch(t, env)
	await.True(t, func() bool { _, r := standby.ready(); return r.Status == "standby" }, "there is no standby")
	publish(t, env, 10)
	await.True(t, func() bool { return first.status().Lag.Confirmed.Bytes == 0 }, "the lag never ends")

	// An open transaction holds restart_lsn back while what it wrote is not committed.
	tx, err := env.Pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	_, err = tx.Exec(t.Context(), "INSERT INTO outbox (event_type, event_context) SELECT 'x', '{}' FROM generate_series(1, 5000)")
	require.NoError(t, err)
	await.True(t, func() bool {
		_, err := env.Pool.Exec(t.Context(), "CHECKPOINT") // also logs a snapshot, by which slots advance
		require.NoError(t, err)
		var retained, lag int64
		require.NoError(t, env.Pool.QueryRow(t.Context(),
			"SELECT retained_bytes, lag_bytes FROM slot_lag WHERE slot_name = $1", env.Slot).Scan(&retained, &lag))
		for _, w := range []*watched{first, standby} {
			s := w.status().Lag
			if retained < 500_000 || math.Abs(float64(s.Retained.Bytes-retained)) > 100_000 || math.Abs(float64(s.Confirmed.Bytes-lag)) > 100_000 {
				return false
			}
		}
		return true
	}, "status and slot_lag never agree")
	seconds := first.status().Lag.Confirmed.Seconds
	require.NotNil(t, seconds)
	assert.Less(t, *seconds, 60.0)
}

func TestEveryMetricIsExplained(t *testing.T) {
	t.Parallel()
	w := watch(t, testenv.New(t))
	for name, family := range w.metrics().families {
		assert.NotEmpty(t, family.GetHelp(), name)
	}
}

// An alert must tell a dead shard from a living one, and production from staging.
func TestEveryMetricOfTheStreamerNamesItsInstallationSlotAndShard(t *testing.T) {
	t.Parallel()
	w := watch(t, testenv.New(t))
	await.True(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	seen := 0
	for name, family := range w.metrics().families {
		if !strings.HasPrefix(name, "diehard_streamer_") {
			continue
		}
		for _, metric := range family.GetMetric() {
			labels := map[string]string{}
			for _, l := range metric.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			seen++
			assert.Equal(t, []string{"Test", w.env.Slot, "1/1"}, []string{labels["environment"], labels["slot"], labels["shard"]}, name)
		}
	}
	assert.Greater(t, seen, 40)
}
