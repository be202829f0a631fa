package retention

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestAClockThatJumpsAheadIsNotTrusted(t *testing.T) {
	t.Parallel()
	const month = 30 * 24 * time.Hour
	var c clock
	now := time.Now()
	assert.WithinDuration(t, now, c.trusted(now), time.Minute)
	assert.WithinDuration(t, now, c.trusted(now.Add(month)), 2*time.Minute, "PostgreSQL's clock jumped")
	assert.WithinDuration(t, now.Add(-month), c.trusted(now.Add(-month)), time.Minute, "the earlier time keeps more")

	var ahead clock
	assert.WithinDuration(t, now, ahead.trusted(now.Add(month)), time.Minute, "ours contradicts it")
}
