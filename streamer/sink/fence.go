package sink

import (
	"context"
	"fmt"
	"time"
)

const (
	fencePoll = 100 * time.Millisecond
	// fenceAnswer bounds each question: the wait may take as long as an insert, an
	// answer about it may not.
	fenceAnswer = 30 * time.Second
)

// Fence ends every insert whose query id begins with prefix, and returns when
// none is left: nothing of theirs is written afterwards. waiting is called with their
// number whenever some remain.
func (s *Sink) Fence(ctx context.Context, prefix string, waiting func(n uint64)) error {
	for first := true; ; first = false {
		r, err := s.Running(ctx, prefix)
		if err != nil {
			return fmt.Errorf("fence: %w", err)
		}
		if r.Inserts == 0 {
			return nil
		}
		waiting(r.Inserts)
		if first {
			if err := s.kill(ctx, prefix); err != nil {
				return fmt.Errorf("fence: %w", classify(err))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("fence: %w", ctx.Err())
		case <-time.After(fencePoll):
		}
	}
}

func (s *Sink) kill(ctx context.Context, prefix string) error {
	ctx, cancel := context.WithTimeout(ctx, fenceAnswer)
	defer cancel()
	return s.conn.Exec(ctx, "KILL QUERY WHERE startsWith(query_id, "+QuoteString(prefix)+") ASYNC")
}
