package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

var (
	// errReplicaLags is transient: the replica goes on copying by itself, and another one may answer.
	errReplicaLags = errors.New("the replica that answers lacks inserts which others have (system.replicas: log_pointer, inserts_in_queue), " +
		"or has no session with Keeper: what it shows decides nothing")
	errAnotherReplica = errors.New("another replica has answered")
)

// ReadThrough makes conn ask what decides on inserts. It should have a single connection, so that one replica
// answers what belongs together.
func (s *Sink) ReadThrough(conn driver.Conn) { s.reader = conn }

// upToDate reads on a replica that has everything which any replica had when the question
// began: it is asked before, and afterwards whether it was the same one.
//
// Errors: errReplicaLags, errAnotherReplica.
func upToDate[T any](ctx context.Context, s *Sink, read func(context.Context) (T, error)) (T, error) {
	var none T
	before, lags, err := s.replica(ctx)
	if err != nil {
		return none, err
	}
	if lags {
		return none, errReplicaLags
	}
	value, err := read(reading(ctx, 1))
	if err != nil {
		return none, err
	}
	after, _, err := s.replica(ctx)
	if err != nil {
		return none, err
	}
	if after != before {
		return none, errAnotherReplica
	}
	return value, nil
}

// replica names the server that answers, and whether one of the tables lacks inserts there. A
// log in which nothing was ever written has the positions 0 and 0.
func (s *Sink) replica(ctx context.Context) (server string, lags bool, err error) {
	var lagging uint64
	err = s.reader.QueryRow(reading(ctx, 0), `
		SELECT toString(serverUUID()), (
			SELECT count() FROM system.replicas
			WHERE database = currentDatabase() AND table IN ({event_log:String}, {dead_letter:String})
				AND (is_readonly OR is_session_expired OR inserts_in_queue > 0 OR log_pointer <= log_max_index AND log_max_index + log_pointer > 0))`,
		clickhouse.Named("event_log", s.tables.EventLog), clickhouse.Named("dead_letter", s.tables.DeadLetter)).Scan(&server, &lagging)
	if err != nil {
		return "", false, fmt.Errorf("read system.replicas: %w", classify(err))
	}
	return server, lagging > 0, nil
}
