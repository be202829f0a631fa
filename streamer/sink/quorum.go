package sink

import (
	"context"
	"errors"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// errBelowQuorum is transient: ClickHouse goes on copying the rows by itself.
var errBelowQuorum = errors.New("rows of an insert wait for more replicas (CLICKHOUSE_INSERT_QUORUM): are all replicas up? see system.replication_queue")

// reading fixes the settings on which what is read depends, so that no profile decides
// them. On replicas and on shared storage, sequential consistency shows what every insert
// that was answered has written; other engines ignore it.
func reading(ctx context.Context, sequential int) context.Context {
	return clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{
		"select_sequential_consistency":             sequential,
		"aggregate_functions_null_for_empty":        0,
		"empty_result_for_aggregation_by_empty_set": 0,
	}))
}

// Decide reads what a table holds, for a decision on what to write. read must ask through what
// ReadThrough was given, under the context that it gets, and may be called twice.
//
// Where inserts need a quorum, rows that too few replicas have can be read on the node that
// took them. They must neither be acknowledged, because they may yet be lost, nor be sent
// again, because they may yet reach the quorum: as long as there are some, the answer is
// errBelowQuorum. Without a quorum a replica that lags shows too little, and sequential consistency does not
// help: see upToDate.
//
// Errors: errBelowQuorum, errReplicaLags and errAnotherReplica, which are transient.
func Decide[T any](ctx context.Context, s *Sink, read func(context.Context) (T, error), equal func(a, b T) bool) (T, error) {
	if !s.knowsEngine {
		if _, err := s.knowEngine(ctx); err != nil {
			var none T
			return none, err
		}
	}
	if s.mayLag && !s.quorum {
		return upToDate(ctx, s, read)
	}
	kept, err := read(reading(ctx, 1))
	if err != nil || !s.quorum {
		return kept, err
	}
	all, err := read(reading(ctx, 0))
	if err == nil && !equal(all, kept) {
		err = errBelowQuorum
	}
	return all, err
}

const (
	// settleWait is how long Await waits, and settlePoll how long between two attempts.
	settleWait = time.Minute
	settlePoll = 200 * time.Millisecond
)

// Await is Decide, for commands: it waits for a while where what ClickHouse shows decides nothing yet.
func Await[T any](ctx context.Context, s *Sink, read func(context.Context) (T, error), equal func(a, b T) bool) (T, error) {
	for began := time.Now(); ; {
		value, err := Decide(ctx, s, read, equal)
		unsettled := errors.Is(err, errBelowQuorum) || errors.Is(err, errReplicaLags) || errors.Is(err, errAnotherReplica)
		if !unsettled || time.Since(began) > settleWait {
			return value, err
		}
		select {
		case <-ctx.Done():
			return value, ctx.Err()
		case <-time.After(settlePoll):
		}
	}
}
