package ops

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"diehard/shared/healthcheck"
	"diehard/shared/telemetry"
	"diehard/streamer/pipeline"
)

const (
	// NotRunning is the State of a Status without a streamer, while the slot is inactive.
	NotRunning = "not running"
	// Elsewhere is the State of a Status when the slot is active for a streamer that did not answer.
	Elsewhere = "running elsewhere"
)

// askTimeout bounds the question to a streamer.
const askTimeout = 2 * time.Second

// AskStreamer returns the Status of the streamer that listens on addr.
func AskStreamer(ctx context.Context, addr string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	response, err := healthcheck.Get(ctx, addr, "/status")
	if err != nil {
		return Status{}, fmt.Errorf("ask the streamer: %w", err)
	}
	defer response.Body.Close()
	var s Status
	if response.StatusCode != http.StatusOK {
		return s, fmt.Errorf("ask the streamer: %s answers %s", addr, response.Status)
	}
	if err := json.NewDecoder(response.Body).Decode(&s); err != nil {
		return s, fmt.Errorf("ask the streamer: %w", err)
	}
	return s, nil
}

// Status asks both databases, without a streamer. It takes a second, in which
// the growth of the lag is measured. A database that does not answer leaves its
// part empty and its error in it.
func (p *Probe) Status(ctx context.Context) Status {
	s := &sampler{probe: p, progress: &pipeline.Progress{}}
	second := time.NewTimer(time.Second)
	defer second.Stop()
	s.askPostgres(ctx, 0)
	s.askClickHouse(ctx, 0)
	s.askOutbox(ctx)
	select {
	case <-ctx.Done():
	case <-second.C:
	}
	s.askPostgres(ctx, 0)

	x := s.get()
	status := Status{Time: time.Now(), Version: telemetry.Build().Version, Build: Build(telemetry.Build()), State: NotRunning, Reasons: []string{}, Degraded: []string{}, Failures: []Failure{}}
	status.endpoints(x, p.Origin.SlotName())
	if c := x.clickhouse.last; c != nil && c.views != nil {
		status.Degraded = append(status.Degraded, viewText(c.views))
	}
	if status.Slot != nil && status.Slot.Active {
		status.State = Elsewhere
	}
	return status
}
