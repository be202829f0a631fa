package simch

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"
)

// query is one that reads. The cluster's lock is held.
type query struct {
	node   *Node
	sql    string
	params map[string]string
	table  string
	// consistent asks for select_sequential_consistency.
	consistent bool
	external   []Row
}

type handler struct {
	has string
	run func(*query) (proto.Input, error)
}

func (c *Cluster) stranger(sql string) error {
	e := &exception{proto.ErrNotImplemented, "NOT_IMPLEMENTED", "the model does not know the query: " + sql}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unknown == nil {
		c.unknown = fmt.Errorf("ClickHouse model: %w", e)
	}
	return e
}

var fromTable = regexp.MustCompile("(?:FROM|TABLE) (?:`?\\w+`?\\.)?`(\\w+)`")

func (n *Node) answer(q *running, sql string, params map[string]string, external []Row) (proto.Input, error) {
	c := n.cluster
	i := slices.IndexFunc(queries, func(h handler) bool { return strings.Contains(sql, h.has) })
	if i < 0 {
		return nil, c.stranger(sql)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	question := &query{node: n, sql: sql, params: params, external: external, consistent: q.settings["select_sequential_consistency"] == "1"}
	if m := fromTable.FindStringSubmatch(sql); m != nil {
		question.table = m[1]
		if c.tables[m[1]] == nil {
			return nil, &exception{proto.ErrUnknownTable, "UNKNOWN_TABLE", "Unknown table " + m[1]}
		}
	}
	return queries[i].run(question)
}

func (q *query) number(name string) uint64 {
	n, _ := strconv.ParseUint(q.params[name], 10, 64)
	return n
}

// rows are the visible ones of the source in question that match.
func (q *query) rows(match func(*Row) bool) ([]*Row, error) {
	source := q.params["source"]
	return q.node.cluster.visible(q.node.number, q.table, q.consistent, func(r *Row) bool { return match(r) && r.Source == source })
}

// last is the last of rows; empty when there is none.
func (q *query) last(match func(*Row) bool) (*Row, error) {
	rows, err := q.rows(match)
	if err != nil || len(rows) == 0 {
		return &Row{}, err
	}
	return slices.MaxFunc(rows, position), nil
}

func position(a, b *Row) int {
	return cmp.Or(cmp.Compare(a.LSN, b.LSN), cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Timeline, b.Timeline))
}

// queries are those of the streamer, the most specific first.
var queries = []handler{
	{"DESCRIBE TABLE", (*query).describe},
	{"SELECT groupArray(name) FROM system.settings", func(*query) (proto.Input, error) {
		names := new(proto.ColStr).Array()
		names.Append([]string{"deduplicate_insert"})
		return proto.Input{{Name: "names", Data: names}}, nil
	}},
	{"SELECT toString(serverUUID()), countIf(startsWith(query_id, {prefix:String}))", (*query).runningEverywhere},
	{"SELECT count() FROM system.clusters", func(q *query) (proto.Input, error) {
		return proto.Input{{Name: "count()", Data: &proto.ColUInt64{uint64(len(q.node.cluster.nodes))}}}, nil
	}},
	{"SELECT toString(serverUUID()), ( SELECT count() FROM system.replicas", (*query).replica},
	{"SELECT any(engine), any(engine_full), any(partition_key) FROM system.tables", (*query).engine},
	{"SELECT toString(getSetting('insert_quorum'))", func(*query) (proto.Input, error) {
		return proto.Input{{Name: "insert_quorum", Data: textColumn("0")}}, nil
	}},
	{"EXPLAIN actions = 1 SELECT commit_lsn FROM", func(*query) (proto.Input, error) {
		return proto.Input{{Name: "explain", Data: textColumn("ReadFromMergeTree")}}, nil // without a filter
	}},
	{"FROM diehard_rows", (*query).violations},
	{"SELECT any(create_table_query) FROM system.tables", (*query).create},
	{"SELECT any(dependencies_database), any(dependencies_table) FROM system.tables", (*query).views},
	{"SELECT name, type, default_kind, default_expression FROM system.columns", (*query).derived},
	{"SELECT arrayMap(p -> p.1, list), arrayMap(p -> p.2, list) FROM", (*query).positions},
	{"SELECT groupUniqArray(event_id) FROM", (*query).events},
	{"SELECT toUnixTimestamp64Micro(argMax(commit_time, commit_lsn)) FROM", (*query).commitTime},
	{"SELECT toUInt64(bitShiftRight(last, 64))", (*query).end},
	{"SELECT source, toUInt64(bitShiftRight(max(", (*query).commits},
	{"SELECT source FROM", (*query).otherServers},
	{"SELECT count() FROM system.processes WHERE startsWith(query_id, {prefix:String})", (*query).running},
}

func textColumn(value string) *proto.ColStr {
	c := new(proto.ColStr)
	c.Append(value)
	return c
}

// views are the names of a table's views.
func (q *query) views() (proto.Input, error) {
	databases, names := new(proto.ColStr).Array(), new(proto.ColStr).Array()
	databaseOf, nameOf := []string{}, []string{}
	if t := q.node.cluster.tables[q.params["table"]]; t != nil && t.view != nil {
		databaseOf, nameOf = append(databaseOf, "default"), append(nameOf, t.view.name)
	}
	databases.Append(databaseOf)
	names.Append(nameOf)
	return proto.Input{{Name: "databases", Data: databases}, {Name: "names", Data: names}}, nil
}

// create is the definition of a table, without what the streamer has no use for.
func (q *query) create() (proto.Input, error) {
	definition := ""
	if t := q.node.cluster.tables[q.params["table"]]; t != nil && t.constraint {
		definition = "CREATE TABLE t (`event_context` String, CONSTRAINT c CHECK position(event_context, 'poison') = 0) ENGINE = MergeTree"
	}
	return proto.Input{{Name: "any(create_table_query)", Data: textColumn(definition)}}, nil
}

// derived are the columns of a table that the streamer does not write: none.
func (*query) derived() (proto.Input, error) {
	var out proto.Input
	for _, name := range []string{"name", "type", "default_kind", "default_expression"} {
		out = append(out, proto.InputColumn{Name: name, Data: new(proto.ColStr)})
	}
	return out, nil
}

// violations are the rows of the external table that violate the constraint of create.
func (q *query) violations() (proto.Input, error) {
	var lsns proto.ColUInt64
	var seqs, by proto.ColUInt32
	for _, r := range q.external {
		if strings.Contains(q.sql, "LIMIT 0") || !strings.Contains(q.sql, "'poison'") || !strings.Contains(r.Context, "poison") {
			continue
		}
		lsns.Append(r.LSN)
		seqs.Append(r.Seq)
		by.Append(1)
	}
	return proto.Input{{Name: "commit_lsn", Data: &lsns}, {Name: "commit_seq", Data: &seqs}, {Name: "by", Data: &by}}, nil
}

func (q *query) describe() (proto.Input, error) {
	var names, types, rest proto.ColStr
	for _, c := range q.node.cluster.tables[q.table].columns {
		names.Append(c.Name)
		types.Append(c.Type)
		rest.Append("")
	}
	out := proto.Input{{Name: "name", Data: &names}, {Name: "type", Data: &types}}
	for _, name := range []string{"default_type", "default_expression", "comment", "codec_expression", "ttl_expression"} {
		out = append(out, proto.InputColumn{Name: name, Data: &rest})
	}
	return out, nil
}

// engine names the engine of a table, and its window.
func (q *query) engine() (proto.Input, error) {
	o := q.node.cluster.options
	name := map[Kind]string{Plain: "MergeTree", Replicated: "ReplicatedMergeTree", Shared: "SharedMergeTree"}[o.Kind]
	window := fmt.Sprintf("replicated_deduplication_window = %[1]d, replicated_deduplication_window_seconds = %.0[2]f", o.Window, cmp.Or(o.Age, 7*24*time.Hour).Seconds())
	if o.Kind == Plain {
		window = fmt.Sprintf("non_replicated_deduplication_window = %d", o.Window)
	}
	if strings.HasSuffix(q.params["table"], "dead_letter") {
		name = strings.Replace(name, "Merge", "ReplacingMerge", 1)
	}
	var engine, full proto.ColStr
	engine.Append(name)
	full.Append(name + " PARTITION BY toYYYYMM(ingested_at) ORDER BY event_id SETTINGS " + window)
	return proto.Input{
		{Name: "any(engine)", Data: &engine},
		{Name: "any(engine_full)", Data: &full},
		{Name: "any(partition_key)", Data: textColumn("toYYYYMM(ingested_at)")},
	}, nil
}

func (q *query) end() (proto.Input, error) {
	last, err := q.last(func(*Row) bool { return true })
	if err != nil {
		return nil, err
	}
	return proto.Input{
		{Name: "a", Data: &proto.ColUInt64{last.LSN}},
		{Name: "b", Data: &proto.ColUInt32{last.Seq}},
		{Name: "c", Data: &proto.ColUInt32{last.Timeline}},
	}, nil
}

// commitTime is that of the last row before lsn.
func (q *query) commitTime() (proto.Input, error) {
	last, err := q.last(func(r *Row) bool { return r.LSN >= q.number("from") && r.LSN < q.number("lsn") })
	if err != nil {
		return nil, err
	}
	return proto.Input{{Name: "t", Data: &proto.ColInt64{last.CommitTime}}}, nil
}

func (q *query) commits() (proto.Input, error) {
	last := make(map[string]uint64)
	_, err := q.node.cluster.visible(q.node.number, q.table, q.consistent, func(r *Row) bool {
		if strings.HasPrefix(r.Source, q.params["server"]) {
			last[r.Source] = max(last[r.Source], r.LSN)
		}
		return false
	})
	if err != nil {
		return nil, err
	}
	var sources proto.ColStr
	var lsns proto.ColUInt64
	for source, lsn := range last {
		sources.Append(source)
		lsns.Append(lsn)
	}
	return proto.Input{{Name: "source", Data: &sources}, {Name: "lsn", Data: &lsns}}, nil
}

// otherServers are the sources of the same slot on another server.
func (q *query) otherServers() (proto.Input, error) {
	seen := make(map[string]bool)
	_, err := q.node.cluster.visible(q.node.number, q.table, q.consistent, func(r *Row) bool {
		if strings.HasSuffix(r.Source, q.params["slot"]) && r.Source != q.params["source"] {
			seen[r.Source] = true
		}
		return false
	})
	if err != nil {
		return nil, err
	}
	var sources proto.ColStr
	for source := range seen {
		sources.Append(source)
	}
	return proto.Input{{Name: "source", Data: &sources}}, nil
}

// positions are those of the rows behind one position, up to another.
func (q *query) positions() (proto.Input, error) {
	after, through := place{q.number("after_lsn"), q.number("after_seq")}, place{q.number("through_lsn"), q.number("through_seq")}
	rows, err := q.rows(func(r *Row) bool {
		at := place{r.LSN, uint64(r.Seq)}
		return at.compare(after) > 0 && at.compare(through) <= 0
	})
	if err != nil {
		return nil, err
	}
	limit := len(rows)
	if m := limitClause.FindStringSubmatch(q.sql); m != nil {
		limit, _ = strconv.Atoi(m[1])
	}
	var lsns []uint64
	var seqs []uint32
	for _, r := range rows[:min(limit, len(rows))] {
		lsns, seqs = append(lsns, r.LSN), append(seqs, r.Seq)
	}
	allLSNs, allSeqs := new(proto.ColUInt64).Array(), new(proto.ColUInt32).Array()
	allLSNs.Append(lsns)
	allSeqs.Append(seqs)
	return proto.Input{{Name: "lsns", Data: allLSNs}, {Name: "seqs", Data: allSeqs}}, nil
}

var (
	limitClause = regexp.MustCompile(` LIMIT (\d+)`)
	uuidLiteral = regexp.MustCompile(`'([0-9a-f-]{36})'`)
	anyTable    = regexp.MustCompile("FROM (?:`?\\w+`?\\.)?`(\\w+)`")
)

type place struct{ lsn, seq uint64 }

func (p place) compare(other place) int {
	return cmp.Or(cmp.Compare(p.lsn, other.lsn), cmp.Compare(p.seq, other.seq))
}

// events are the ids of those that are in any of the tables.
func (q *query) events() (proto.Input, error) {
	wanted := make(map[uuid.UUID]bool)
	for _, m := range uuidLiteral.FindAllStringSubmatch(q.sql, -1) {
		id, err := uuid.Parse(m[1])
		if err != nil {
			return nil, err
		}
		wanted[id] = true
	}
	var found []uuid.UUID
	for _, m := range anyTable.FindAllStringSubmatch(q.sql, -1) {
		rows, err := q.node.cluster.visible(q.node.number, m[1], q.consistent, func(r *Row) bool { return wanted[r.ID] })
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			if wanted[r.ID] {
				found, wanted[r.ID] = append(found, r.ID), false
			}
		}
	}
	list := proto.NewArray(new(proto.ColUUID))
	list.Append(found)
	return proto.Input{{Name: "events", Data: list}}, nil
}

func (q *query) running() (proto.Input, error) {
	return proto.Input{{Name: "count()", Data: &proto.ColUInt64{q.node.running(q.params["prefix"])}}}, nil
}

func (n *Node) running(prefix string) (count uint64) {
	for id := range n.queries {
		if strings.HasPrefix(id, prefix) {
			count++
		}
	}
	return count
}

// runningEverywhere asks the nodes that answer.
func (q *query) runningEverywhere() (proto.Input, error) {
	var servers proto.ColStr
	var counts proto.ColUInt64
	for _, n := range q.node.cluster.nodes {
		if away := q.node.cluster.options.Away; n != q.node && away != nil && away(n.number) {
			continue
		}
		servers.Append(n.name())
		counts.Append(n.running(q.params["prefix"]))
	}
	return proto.Input{{Name: "server", Data: &servers}, {Name: "running", Data: &counts}}, nil
}

func (n *Node) name() string { return fmt.Sprintf("node %d", n.number) }

// replica names the node, and says whether it lags.
func (q *query) replica() (proto.Input, error) {
	var server proto.ColStr
	server.Append(q.node.name())
	var lagging uint64
	if q.node.cluster.options.Kind == Replicated && q.node.cluster.lags(q.node.number) {
		lagging = 1
	}
	return proto.Input{{Name: "server", Data: &server}, {Name: "lagging", Data: &proto.ColUInt64{lagging}}}, nil
}
