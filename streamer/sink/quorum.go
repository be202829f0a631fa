package sink

import (
	"context"
	"errors"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// errUnsettled is transient: ClickHouse goes on copying the rows by itself.
var errUnsettled = errors.New("rows of an insert wait for more replicas (CLICKHOUSE_INSERT_QUORUM): are all replicas up? see system.replication_queue")

// settled reads what a table holds. Where inserts need a quorum, rows that too
// few replicas have can be read on the node that took them. They must neither be
// acknowledged, because they may yet be lost, nor be sent again, because they may
// yet be settled: as long as there are some, the answer is errUnsettled.
func settled[T any](ctx context.Context, quorum bool, read func(context.Context) (T, error), equal func(a, b T) bool) (T, error) {
	all, err := read(ctx)
	if err != nil || !quorum {
		return all, err
	}
	kept, err := read(clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"select_sequential_consistency": 1})))
	if err == nil && !equal(all, kept) {
		err = errUnsettled
	}
	return all, err
}
