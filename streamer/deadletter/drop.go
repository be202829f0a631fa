package deadletter

import (
	"context"
	"fmt"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"diehard/streamer/sink"
)

// Drop marks the open records that f chooses as dropped, and returns how many.
// They stay in the table, so that verify and replay account for them. Retry with
// Filter.Dropped retries them. It may be repeated at any time.
//
// Errors: ErrBusy; the number is right then, too.
func Drop(ctx context.Context, postgresURL string, conn driver.Conn, tables sink.Tables, f Filter) (dropped int, err error) {
	g, err := lock(ctx, postgresURL)
	if err != nil {
		return 0, err
	}
	defer g.Close()
	t := table{conn: conn, name: sink.Quote(tables.DeadLetter)}
	f.Retried, f.Dropped = false, false
	for last := (Record{}); ; {
		page, err := t.page(ctx, f, last)
		if err != nil || len(page) == 0 {
			return dropped, err
		}
		if err := g.Verify(ctx); err != nil {
			return dropped, fmt.Errorf("drop dead letters: %w", err)
		}
		if err := t.mark(ctx, page, time.Now(), true); err != nil {
			return dropped, err
		}
		dropped += len(page)
		last = page[len(page)-1]
	}
}
