// Package sim runs the real pipeline, sink, decoder and replication code of several
// streamers in one process and in virtual time, between a model of PostgreSQL
// (simpg) and a model of ClickHouse (simch) that speak the real protocols over a
// network in memory (simnet). A seed decides what goes wrong and when.
package sim
