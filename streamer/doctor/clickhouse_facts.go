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

// clickhouseFacts is the input of the ClickHouse checks.
type clickhouseFacts struct {
	*ops.ClickHouse
	eventLog, deadLetter table
	tableErr, engineErr  error // of the streamer's own checks
	readonly             bool
	free, total          uint64 // bytes of the fullest disk, by percentage
	disk                 string
	pendingMigration     int
	skew                 time.Duration
	doubleEncoded        uint64
	doubleEncodedTypes   string   // of some of them
	further              string   // another table with later rows of our source, if any
	otherServers         []string // sources of our slot on other servers
}

// table is event_log or the dead-letter table.
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

func readClickHouse(ctx context.Context, p Target, pg *postgresFacts) (*clickhouseFacts, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	f := &clickhouseFacts{}
	source := sink.Source{Slot: p.Probe.Origin.SlotName()}
	if pg != nil {
		source.SystemID = pg.SystemID
	}
	if err := p.Probe.ClickHouse.Ping(ctx); err != nil {
		return nil, err
	}
	var err error
	if f.eventLog, err = readTable(ctx, p.Probe, p.Probe.EventLog); err != nil {
		return nil, err
	}
	if f.deadLetter, err = readTable(ctx, p.Probe, p.Probe.DeadLetter); err != nil {
		return nil, err
	}
	if f.eventLog.exists && f.deadLetter.exists {
		s := sink.New(p.Probe.ClickHouse, sink.Tables{EventLog: p.Probe.EventLog, DeadLetter: p.Probe.DeadLetter, Quorum: p.ClickHouse.InsertQuorum > 1}, source, nil)
		f.engineErr = s.CheckEngine(ctx, sink.InsertBound(p.InsertTimeout))
		if f.tableErr = s.CheckTables(ctx); f.tableErr == nil {
			if f.ClickHouse, err = p.Probe.AskClickHouse(ctx, source.String()); err != nil {
				return nil, err
			}
			f.skew = f.ClickHouse.Skew()
			if f.otherServers, err = sink.OtherServers(ctx, p.Probe.ClickHouse, sink.Quote(p.Probe.EventLog), source); err != nil {
				return nil, err
			}
			if err := f.readOthers(ctx, p.Probe, source); err != nil {
				return nil, err
			}
			if err := f.readDoubleEncoded(ctx, p.Probe, source); err != nil {
				return nil, err
			}
		}
	}
	if err := f.readServer(ctx, p.Probe); err != nil {
		return nil, err
	}
	list, err := migrations.StatusClickHouse(ctx, p.ClickHouse)
	f.pendingMigration = pending(list)
	return f, err
}

func (f *clickhouseFacts) readServer(ctx context.Context, p *ops.Probe) error {
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

// readDoubleEncoded counts the contexts of the last hour that event.DoubleEncoded reports.
func (f *clickhouseFacts) readDoubleEncoded(ctx context.Context, p *ops.Probe, source sink.Source) error {
	err := p.ClickHouse.QueryRow(ctx, `
		SELECT count(), arrayStringConcat(arraySort(groupUniqArray(3)(toString(event_type))), ', ') FROM `+sink.Quote(p.EventLog)+`
		WHERE source = {source:String} AND ingested_at > now() - INTERVAL 1 HOUR
		  AND match(event_context, '^\\s*"') AND match(JSONExtractString(event_context), '^\\s*[{\\[]')
		  AND isValidJSON(JSONExtractString(event_context))`,
		ch.Named("source", source.String())).Scan(&f.doubleEncoded, &f.doubleEncodedTypes)
	if err != nil {
		return fmt.Errorf("count contexts that are encoded twice: %w", err)
	}
	return nil
}

// maxTables bounds the search for other event logs.
const maxTables = 20

// readOthers looks for another event log on this server that a streamer with our
// slot writes to. A replay into another table ends before ours does.
func (f *clickhouseFacts) readOthers(ctx context.Context, p *ops.Probe, source sink.Source) error {
	rows, err := p.ClickHouse.Query(ctx, `
		SELECT database, table FROM system.columns
		WHERE name IN ('source', 'commit_lsn', 'commit_seq', 'timeline', 'ingested_at')
		  AND NOT (database = currentDatabase() AND table = {table:String})
		  AND (database, table) IN (SELECT database, name FROM system.tables WHERE engine LIKE '%MergeTree')
		GROUP BY database, table HAVING count() = 5 ORDER BY database = currentDatabase() DESC, database, table LIMIT {most:UInt8}`,
		ch.Named("table", p.EventLog), ch.Named("most", strconv.Itoa(maxTables)))
	if err != nil {
		return fmt.Errorf("find other event logs: %w", err)
	}
	defer rows.Close()
	var names []string
	for rows.Next() {
		var database, name string
		if err := rows.Scan(&database, &name); err != nil {
			return fmt.Errorf("find other event logs: %w", err)
		}
		names = append(names, sink.Quote(database)+"."+sink.Quote(name))
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("find other event logs: %w", err)
	}
	for _, name := range names {
		end, err := sink.ReadEnd(ctx, p.ClickHouse, name, source.String())
		if sink.Code(err) != 0 {
			continue // dropped meanwhile, or without SELECT
		}
		if err != nil {
			return fmt.Errorf("look into %s: %w", name, err)
		}
		if end.LSN > f.LastLSN() {
			f.further = name
		}
	}
	return nil
}

// readTable reads the table's settings, with the server's as defaults.
func readTable(ctx context.Context, p *ops.Probe, name string) (table, error) {
	t := table{name: name, settings: map[string]int64{}}
	var n uint64
	var names, values []string
	err := p.ClickHouse.QueryRow(ctx, `
		SELECT count(), any(engine), any(engine_full), countIf(position(create_table_query, 'PROJECTION p_position ') > 0) > 0,
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
	return t, t.readGrant(ctx, p)
}

// tableSetting is a setting in the engine clause of a table.
var tableSetting = regexp.MustCompile(`(\w+) = (\d+)`)

// readGrant needs CHECK GRANT; on older servers the first insert reports a missing grant.
func (t *table) readGrant(ctx context.Context, p *ops.Probe) error {
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
