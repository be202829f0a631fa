package doctor

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"

	"diehard/migrations"
	"diehard/streamer/ops"
	"diehard/streamer/sink"
)

// clickhouseFacts is what the checks of ClickHouse judge.
type clickhouseFacts struct {
	*ops.ClickHouse
	eventLog, deadLetter table
	tableErr             error // of the streamer's own look at the columns
	readonly             bool
	free, total          uint64 // bytes of the disk that is fullest, by share
	disk                 string
	pendingMigration     int
	skew                 time.Duration
	further              string // table that holds later rows of our source than ours does, if any
}

// table is one of ours.
type table struct {
	name       string
	exists     bool
	engine     string
	full       string // engine with its clauses
	projection bool
	settings   map[string]int64
	mayInsert  bool
	quorum     int64 // insert_quorum of our session
}

func askClickHouse(ctx context.Context, p Patient, pg *postgresFacts) (*clickhouseFacts, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	f := &clickhouseFacts{}
	source := sink.Source{Slot: p.Probe.Slot}
	if pg != nil {
		source.SystemID = pg.SystemID
	}
	if err := p.Probe.ClickHouse.Ping(ctx); err != nil {
		return nil, err
	}
	var err error
	if f.eventLog, err = askTable(ctx, p.Probe, p.Probe.EventLog); err != nil {
		return nil, err
	}
	if f.deadLetter, err = askTable(ctx, p.Probe, p.Probe.DeadLetter); err != nil {
		return nil, err
	}
	if f.eventLog.exists && f.deadLetter.exists {
		tables := sink.Tables{EventLog: p.Probe.EventLog, DeadLetter: p.Probe.DeadLetter}
		if f.tableErr = sink.New(p.Probe.ClickHouse, tables, source, 0).CheckTables(ctx); f.tableErr == nil {
			if f.ClickHouse, err = p.Probe.AskClickHouse(ctx, source.String()); err != nil {
				return nil, err
			}
			f.skew = f.ClickHouse.Skew()
			if err := f.askOthers(ctx, p.Probe, source); err != nil {
				return nil, err
			}
		}
	}
	if err := f.askServer(ctx, p.Probe); err != nil {
		return nil, err
	}
	list, err := migrations.StatusClickHouse(ctx, p.ClickHouse)
	f.pendingMigration = pending(list)
	return f, err
}

func (f *clickhouseFacts) askServer(ctx context.Context, p *ops.Probe) error {
	var readonly string
	if err := p.ClickHouse.QueryRow(ctx, `SELECT toString(getSetting('readonly'))`).Scan(&readonly); err != nil {
		return fmt.Errorf("examine ClickHouse: %w", err)
	}
	f.readonly = readonly != "0" && readonly != "false"
	err := p.ClickHouse.QueryRow(ctx, `
		SELECT name, free_space, total_space FROM system.disks WHERE total_space > 0
		ORDER BY free_space / total_space LIMIT 1`).Scan(&f.disk, &f.free, &f.total)
	if err != nil {
		return fmt.Errorf("examine ClickHouse: %w", err)
	}
	return nil
}

// mostTables bounds the search for event logs beside ours.
const mostTables = 20

// askOthers looks for another event log on this server that a streamer with our
// slot writes to. A replay into another table ends before ours does.
func (f *clickhouseFacts) askOthers(ctx context.Context, p *ops.Probe, source sink.Source) error {
	rows, err := p.ClickHouse.Query(ctx, `
		SELECT database, table FROM system.columns
		WHERE name IN ('source', 'commit_lsn', 'commit_seq', 'ingested_at')
		  AND NOT (database = currentDatabase() AND table = {table:String})
		  AND (database, table) IN (SELECT database, name FROM system.tables WHERE engine LIKE '%MergeTree')
		GROUP BY database, table HAVING count() = 4 ORDER BY database = currentDatabase() DESC, database, table LIMIT {most:UInt8}`,
		ch.Named("table", p.EventLog), ch.Named("most", strconv.Itoa(mostTables)))
	if err != nil {
		return fmt.Errorf("look for other event logs: %w", err)
	}
	defer rows.Close()
	var names []string
	for rows.Next() {
		var database, name string
		if err := rows.Scan(&database, &name); err != nil {
			return fmt.Errorf("look for other event logs: %w", err)
		}
		names = append(names, "`"+database+"`.`"+name+"`")
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("look for other event logs: %w", err)
	}
	for _, name := range names {
		var lsn uint64
		err := p.ClickHouse.QueryRow(ctx, `SELECT tupleElement(max((commit_lsn, commit_seq)), 1) FROM `+name+
			` WHERE source = {source:String}`, ch.Named("source", source.String())).Scan(&lsn)
		if sink.Code(err) != 0 {
			continue // it has just gone, or is not ours to read
		}
		if err != nil {
			return fmt.Errorf("look into %s: %w", name, err)
		}
		if lsn > uint64(f.Landed()) {
			f.further = name
		}
	}
	return nil
}

// askTable reads the table's own settings, and the server's for those it has not.
func askTable(ctx context.Context, p *ops.Probe, name string) (table, error) {
	t := table{name: name, settings: map[string]int64{}}
	var n uint64
	var names, values []string
	err := p.ClickHouse.QueryRow(ctx, `
		SELECT count(), any(engine), any(engine_full), countIf(position(create_table_query, 'PROJECTION p_resume ') > 0) > 0,
		       toInt64OrZero(toString(getSetting('insert_quorum'))),
		       (SELECT groupArray(name) FROM system.merge_tree_settings), (SELECT groupArray(value) FROM system.merge_tree_settings)
		FROM system.tables WHERE database = currentDatabase() AND name = {name:String}`, ch.Named("name", name)).
		Scan(&n, &t.engine, &t.full, &t.projection, &t.quorum, &names, &values)
	if err != nil {
		return t, fmt.Errorf("examine table %s: %w", name, err)
	}
	t.exists = n > 0
	if !t.exists {
		return t, nil
	}
	for i, setting := range names {
		if v, err := strconv.ParseInt(values[i], 10, 64); err == nil {
			t.settings[setting] = v
		}
	}
	for _, own := range tableSetting.FindAllStringSubmatch(t.full, -1) {
		if v, err := strconv.ParseInt(own[2], 10, 64); err == nil {
			t.settings[own[1]] = v
		}
	}
	return t, t.askGrant(ctx, p)
}

// tableSetting is a setting in the engine clause of a table.
var tableSetting = regexp.MustCompile(`(\w+) = (\d+)`)

// askGrant is for servers that know CHECK GRANT; the others say so at the first insert.
func (t *table) askGrant(ctx context.Context, p *ops.Probe) error {
	var granted uint8
	if err := p.ClickHouse.QueryRow(ctx, "CHECK GRANT SELECT, INSERT ON `"+t.name+"`").Scan(&granted); err != nil {
		const syntaxError = 62
		if sink.Code(err) == syntaxError {
			t.mayInsert = true
			return nil
		}
		return fmt.Errorf("examine grants on %s: %w", t.name, err)
	}
	t.mayInsert = granted == 1
	return nil
}
