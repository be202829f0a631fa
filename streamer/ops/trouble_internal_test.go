package ops

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// A position that fails once is retried; one that fails again and again is a state of its own.
func TestAStreamIsStuckUntilItGetsPastThePosition(t *testing.T) {
	t.Parallel()
	cause := errors.New("column n is no number")
	x := &trouble{position: 0x100, times: stuckAfter - 1, last: time.Now(), cause: cause}
	assert.NoError(t, x.report(0x90).stuck)
	x.times++
	r := x.report(0x90)
	assert.Equal(t, cause, r.stuck)
	assert.Equal(t, x.position, r.position)
	assert.NoError(t, x.report(0x101).stuck, "it is written")
	x.last = time.Now().Add(-stuckFor - time.Second)
	assert.NoError(t, x.report(0x90).stuck, "it has not failed since")
}
