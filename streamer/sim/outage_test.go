package sim_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// A ClickHouse that hangs for ten times the sender timeout costs neither the session
// nor memory, whatever is published meanwhile, and everything arrives afterwards.
func TestAnOutageKeepsTheSession(t *testing.T) {
	for _, busy := range []time.Duration{300 * time.Millisecond, 20 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			p := profiles[0]
			p.streamers = 1
			w := newScenario(t, p)
			w.ended()
			pause(5 * time.Second)
			end := make(chan struct{})
			go w.traffic(end, busy)
			pause(5 * time.Second)
			before := w.pg.Holder(w.slot())
			assert.NotEmpty(t, before)
			w.chHosts[0].Freeze()
			for range 100 {
				pause(time.Second)
				w.ended()
			}
			w.chHosts[0].Thaw()
			pause(time.Second)
			assert.Equal(t, before, w.pg.Holder(w.slot()))
			assert.Equal(t, 1, w.pg.Sessions())
			close(end)
			w.heal()
			w.close()
			assert.Empty(t, w.check.failed(), w.trace.String())
			assert.NoError(t, w.pg.Err())
			assert.NoError(t, w.ch.Err())
		})
	}
}
