package pipeline

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// In no time as long as an insert may be under way are more blocks written than the window
// takes, while there may be such an insert; a steady stream never waits.
func TestTheWindowIsNotOutlived(t *testing.T) {
	t.Parallel()
	const bound = 100 * time.Second
	for name, every := range map[string]time.Duration{"drain": 10 * time.Millisecond, "steady": 150 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := window{limit: 900, bound: bound, until: time.Now().Add(bound)}
				began, waited := time.Now(), time.Duration(0)
				var at []time.Time
				for time.Since(began) < 3*bound {
					if d := w.wait(time.Now()); d > 0 {
						waited += d
						time.Sleep(d) //nolint:forbidigo // in virtual time
					}
					assert.Less(t, w.add(time.Now()), 901)
					at = append(at, time.Now())
					if len(at) > 900 && time.Now().Before(w.until) {
						assert.GreaterOrEqual(t, time.Since(at[len(at)-901]), bound)
					}
					if len(at) == 2000 {
						w.unanswered(time.Now())
					}
					time.Sleep(every) //nolint:forbidigo // in virtual time
				}
				assert.Equal(t, name == "drain", waited > 0)
			})
		})
	}
}
