package clickhouse

import (
	"context"
	"maps"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// fixedSettings are sent with every query, so that no profile, user or server
// default changes an answer or what a table definition means. The values are
// ClickHouse's own defaults, except for async_insert. ClickHouse accepts a setting
// that a profile forbids to change if the value is the profile's own.
//
// Source: ClickHouse docs, "Session Settings" and "Restrictions on Query Complexity".
var fixedSettings = clickhouse.Settings{
	// Aggregates, NULL and names.
	"aggregate_functions_null_for_empty":        0,
	"empty_result_for_aggregation_by_empty_set": 0,
	"count_distinct_implementation":             "uniqExact",
	"group_by_use_nulls":                        0,
	"join_use_nulls":                            0,
	"transform_null_in":                         0,
	"cast_keep_nullable":                        0,
	"prefer_column_name_to_alias":               0,
	"extremes":                                  0,
	// Rows that would be missing without an error.
	"limit":                    0,
	"offset":                   0,
	"final":                    0,
	"additional_result_filter": "",
	"apply_deleted_mask":       1,
	"skip_unavailable_shards":  0,
	"use_query_cache":          0,
	"read_overflow_mode":       "throw",
	"read_overflow_mode_leaf":  "throw",
	"result_overflow_mode":     "throw",
	"group_by_overflow_mode":   "throw",
	"sort_overflow_mode":       "throw",
	"set_overflow_mode":        "throw",
	"join_overflow_mode":       "throw",
	"distinct_overflow_mode":   "throw",
	"transfer_overflow_mode":   "throw",
	"timeout_overflow_mode":    "throw",
	// Queries that would be refused for the way in which they find their rows.
	"force_primary_key":                   0,
	"merge_tree_coarse_index_granularity": 8,
	"force_index_by_date":                 0,
	"force_optimize_projection":           0,
	"force_optimize_projection_name":      "",
	// Names that would be refused: those of an operator's columns, and of a column of our own.
	"enforce_strict_identifier_format": 0,
	// The protocol: what a client that does not know of these expects and sends.
	"low_cardinality_allow_in_native_format":             1,
	"input_format_native_decode_types_in_binary_format":  0,
	"output_format_native_encode_types_in_binary_format": 0,
	// Time.
	"session_timezone": "",
	// Table definitions.
	"data_type_default_nullable":                 0,
	"describe_compact_output":                    0,
	"describe_include_subcolumns":                0,
	"describe_include_virtual_columns":           0,
	"show_create_query_identifier_quoting_rule":  "when_necessary",
	"show_create_query_identifier_quoting_style": "Backticks",
	// An insert is one block, is written when it is acknowledged, and has no token but its own.
	"async_insert":               0,
	"insert_deduplication_token": "",
	// An error of a materialized view is heard.
	"materialized_views_ignore_errors":                    0,
	"ignore_materialized_views_with_dropped_target_table": 0,
}

// settingsOf returns the settings for every query of c.
func settingsOf(c Config) clickhouse.Settings {
	settings := maps.Clone(fixedSettings)
	if c.InsertQuorum > 0 {
		// Not parallel: sequential consistency needs it.
		settings["insert_quorum"], settings["insert_quorum_parallel"] = c.InsertQuorum, 0
	}
	return settings
}

// ReadOwnWrites returns a context for queries on a table of engine, as
// system.tables names it, that must see every row that any replica has
// acknowledged. It sets select_sequential_consistency for Replicated and Shared
// engines; other engines have no replicas.
func ReadOwnWrites(ctx context.Context, engine string) context.Context {
	if !strings.HasPrefix(engine, "Replicated") && !strings.HasPrefix(engine, "Shared") {
		return ctx
	}
	return clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"select_sequential_consistency": 1}))
}
