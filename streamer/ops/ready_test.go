package ops_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/testenv"
	"diehard/streamer/ops"
	"diehard/streamer/pipeline"
)

func TestReadyWhileStreamingAndAsStandby(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	first := watch(t, env)
	eventually(t, func() bool { code, _ := first.ready(); return code == http.StatusOK }, "the streamer is never ready")
	_, r := first.ready()
	assert.Equal(t, ops.Readiness{Status: "streaming", Ready: true, Reasons: []string{}}, r)

	second := watch(t, env)
	eventually(t, func() bool { _, r := second.ready(); return r.Status == "standby" && r.Ready }, "the standby is never ready")

	first.stop()
	eventually(t, func() bool { _, r := second.ready(); return r.Status == "streaming" && r.Ready }, "the standby never takes over")
	assert.Empty(t, second.status().Failures, "a takeover is no failure")
}

func TestHealthy(t *testing.T) {
	t.Parallel()
	w := watch(t, testenv.New(t))
	code, body := w.get("/healthz")
	assert.Equal(t, http.StatusOK, code)
	assert.JSONEq(t, `{"status":"ok"}`, body)
}

func TestNotReadyBeyondTheLimitOfLag(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	w := watch(t, env, func(o *ops.Options) { o.MaxLag = 4 << 20 })
	eventually(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer is never ready")
	mend := refuseInserts(t, env)
	publish(t, env, 1)
	eventually(t, func() bool { _, r := w.ready(); return r.Status == "retrying" }, "nothing is refused")
	publish(t, env, 50_000)
	var reasons []string
	eventually(t, func() bool {
		var code int
		var r ops.Readiness
		code, r = w.ready()
		reasons = r.Reasons
		return code == http.StatusServiceUnavailable && len(reasons) == 2
	}, "the lag is never told")
	assert.Regexp(t, "^ClickHouse does not take the present batch: insert .*: ", reasons[0])
	assert.Regexp(t, `^the slot is [\d.]+MiB behind, more than STREAMER_MAX_LAG allows \(4MiB\)$`, reasons[1])
	mend()
	eventually(t, func() bool { code, _ := w.ready(); return code == http.StatusOK }, "the streamer never catches up")
}

func TestNotReadyWithoutTheSlot(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	w := watch(t, env, func(o *ops.Options) { o.Probe.Slot = "another_slot" })
	eventually(t, func() bool { return w.progress.State() == pipeline.Streaming }, "the streamer never streams")
	eventually(t, func() bool {
		code, r := w.ready()
		return code == http.StatusServiceUnavailable && len(r.Reasons) == 1 && r.Reasons[0] == "slot another_slot does not exist"
	}, "a slot that is missing is never told")
	require.Equal(t, "streaming", w.status().State)
}
