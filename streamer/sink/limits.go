package sink

import (
	"errors"
	"fmt"

	"github.com/ClickHouse/ch-go/proto"
)

// tooMuch are the codes of limits that fewer rows may not exceed.
var tooMuch = map[int32]bool{
	int32(proto.ErrTooManyRows):         true,
	int32(proto.ErrTimeoutExceeded):     true,
	int32(proto.ErrMemoryLimitExceeded): true,
	int32(proto.ErrTooManyBytes):        true,
	int32(proto.ErrTooManyRowsOrBytes):  true,
}

// ErrTooMuch is returned by Writer.Insert for a block that exceeds a limit of ClickHouse and of
// which nothing is written: its halves are to be tried.
var ErrTooMuch = errors.New("a limit of ClickHouse is exceeded, trying smaller blocks")

// LimitErrors watches the tries at the same rows, until a limit must be taken for one that
// the size of the block exceeds. A server that is busy, or short of memory, is waited for at first.
type LimitErrors struct {
	Limit int // how many tries in a row must exceed one

	tries int
}

// Classify returns err, as ErrTooMuch if it is the last of Limit tries that exceeded a limit.
func (l *LimitErrors) Classify(err error) error {
	if !tooMuch[Code(err)] {
		l.tries = 0
		return err
	}
	if l.tries++; l.tries < l.Limit {
		return err
	}
	return fmt.Errorf("%w: %w", ErrTooMuch, err)
}
