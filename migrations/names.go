package migrations

import (
	"fmt"

	"diehard/shared/clickhouse"
)

// names fills the templates of ClickHouse's migrations. Identifiers are checked
// and quoted; tables carry their database.
type names struct {
	Database     string
	Versions     string // goose's table
	EventLog     string
	EventLogJSON string
	EventLogAll  string
	DeadLetter   string

	OnCluster           string // empty on one node
	MergeTree           string
	ReplacingMergeTree  string
	DistributedEventLog string
	DeduplicationWindow string
	Durability          string // settings that are followed by others
}

// replicatedWindow is how many tokens replicated tables remember, and for how long.
const replicatedWindow = "replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800"

// versionsTable is named after the event log, because several event logs may
// share a database and each has its own history.
func versionsTable(cfg clickhouse.Config) string { return cfg.EventLogTable + "_migrations" }

func namesOf(cfg clickhouse.Config) (names, error) {
	if err := cfg.Validate(); err != nil {
		return names{}, err
	}
	database := quoted(cfg.Database)
	table := func(name string) string { return database + "." + quoted(name) }
	n := names{
		Database:            database,
		Versions:            table(versionsTable(cfg)),
		EventLog:            table(cfg.EventLogTable),
		EventLogJSON:        table(cfg.EventLogTable + "_json"),
		EventLogAll:         table(cfg.EventLogTable + "_all"),
		DeadLetter:          table(cfg.DeadLetterTable),
		MergeTree:           "MergeTree",
		ReplacingMergeTree:  "ReplacingMergeTree(retried_at)",
		DeduplicationWindow: "non_replicated_deduplication_window = 1000",
		Durability:          "fsync_after_insert = 1, fsync_part_directory = 1, ",
	}
	if cfg.Cluster != "" {
		n.replicate(cfg)
	}
	return n, nil
}

// replicate turns n into the names of tables with a replica on each node.
// {shard}, {replica}, {database} and {table} are filled in by the server.
func (n *names) replicate(cfg clickhouse.Config) {
	const place = `'/clickhouse/tables/{shard}/{database}/{table}', '{replica}'`
	n.OnCluster = "ON CLUSTER " + quoted(cfg.Cluster)
	n.MergeTree = "ReplicatedMergeTree(" + place + ")"
	n.ReplacingMergeTree = "ReplicatedReplacingMergeTree(" + place + ", retried_at)"
	n.DistributedEventLog = fmt.Sprintf("Distributed('%s', '%s', '%s', cityHash64(event_id))",
		cfg.Cluster, cfg.Database, cfg.EventLogTable)
	n.DeduplicationWindow = replicatedWindow
}

// replicatedDatabase turns n into the names of tables in a database with the engine Replicated, which
// gives them their paths and carries every statement to the other nodes by itself.
// Source: ClickHouse docs, "Replicated" (database engines).
func (n *names) replicatedDatabase() {
	n.OnCluster, n.DeduplicationWindow = "", replicatedWindow
	n.MergeTree, n.ReplacingMergeTree = "ReplicatedMergeTree", "ReplicatedReplacingMergeTree(retried_at)"
}

// quoted is for names that have been checked.
func quoted(name string) string { return "`" + name + "`" }
