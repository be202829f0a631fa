package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
)

// Running is what the nodes of ClickHouse say of the inserts that they run.
type Running struct {
	Inserts uint64 // queries with the prefix
	// Unknown says which nodes were not asked, in words; "" for none.
	Unknown string
}

// Running counts the queries whose id begins with prefix on all replicas of Tables.Cluster, or
// on the node that answers. What other nodes run is unknown.
func (s *Sink) Running(ctx context.Context, prefix string) (Running, error) {
	ctx, cancel := context.WithTimeout(ctx, fenceAnswer)
	defer cancel()
	if s.tables.Cluster != "" {
		r, err := s.runningOnReplicas(ctx, prefix)
		if !cannotAskReplicas(err) {
			return r, err
		}
	}
	var r Running
	err := s.conn.QueryRow(ctx, `SELECT count() FROM system.processes WHERE startsWith(query_id, {prefix:String})`,
		clickhouse.Named("prefix", prefix)).Scan(&r.Inserts)
	if err != nil {
		return r, fmt.Errorf("read system.processes: %w", classify(err))
	}
	switch {
	case s.tables.Cluster != "":
		r.Unknown = "the other replicas: the user may not read clusterAllReplicas('" + s.tables.Cluster + "', system.processes), or there is no such cluster"
	case s.replicated:
		r.Unknown = "the other replicas: CLICKHOUSE_CLUSTER does not name them"
	}
	return r, nil
}

// cannotAskReplicas reports that the user must not ask other replicas, or that the cluster is not known.
func cannotAskReplicas(err error) bool {
	switch proto.Error(Code(err)) {
	case proto.ErrAccessDenied, proto.ErrClusterDoesntExist:
		return true
	default:
		return false
	}
}

// runningOnReplicas counts on every replica that answers. Each of them runs at least this query.
func (s *Sink) runningOnReplicas(ctx context.Context, prefix string) (r Running, err error) {
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"skip_unavailable_shards": 1}))
	rows, err := s.conn.Query(ctx, `SELECT toString(serverUUID()), countIf(startsWith(query_id, {prefix:String}))
		FROM clusterAllReplicas(`+Quote(s.tables.Cluster)+`, system, processes) GROUP BY 1`,
		clickhouse.Named("prefix", prefix))
	if err != nil {
		return r, fmt.Errorf("read system.processes of all replicas: %w", classify(err))
	}
	var answered uint64
	for ; rows.Next(); answered++ {
		var server string
		var n uint64
		if err := rows.Scan(&server, &n); err != nil {
			return r, errors.Join(fmt.Errorf("read system.processes of all replicas: %w", err), rows.Close())
		}
		r.Inserts += n
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return r, fmt.Errorf("read system.processes of all replicas: %w", classify(err))
	}
	var all uint64
	if err := s.conn.QueryRow(ctx, `SELECT count() FROM system.clusters WHERE cluster = {cluster:String}`,
		clickhouse.Named("cluster", s.tables.Cluster)).Scan(&all); err != nil {
		return r, fmt.Errorf("read system.clusters: %w", classify(err))
	}
	if answered < all {
		r.Unknown = fmt.Sprintf("%d of %d replicas, which did not answer", all-answered, all)
	}
	return r, nil
}
