package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// peer is a way from PostgreSQL to a table that people would use instead. It is set up
// once per measurement on a testbed of its own, and consumes between start and stop.
type peer interface {
	name() string
	// config says how the peer is set up, in a line below the table.
	config() string
	// prepare makes the tables and the slot. Nothing is consumed before start.
	prepare(ctx context.Context, b *testbed) error
	start(ctx context.Context) error
	// kill is kill -9 of what consumes. start begins again.
	kill(ctx context.Context) error
	// stop ends the peer permanently and removes what it made in PostgreSQL.
	stop(ctx context.Context) error
	// usage is what the peer itself has used since it runs; 0 for what is not known.
	usage() usage

	// producing is where applications publish for this peer.
	producing() producing
	// arrived is where its rows arrive.
	arrived() arrival
}

type usage struct {
	cpu  time.Duration
	peak int64 // bytes
}

// producing is SQL that publishes events for a peer.
type producing struct {
	table string
	// insert is INSERT … SELECT without its FROM, which has column n; {context} is the document.
	insert string
	// id is the column of table that names an event.
	id string
}

func (p producing) columns(context string) string {
	return strings.Replace(p.insert, "{context}", context, 1)
}

// bulk is one transaction of rows [from, to].
func (p producing) bulk(from, to int) string {
	return p.columns(eventContextSQL) + fmt.Sprintf(" FROM generate_series(%d, %d) n", from, to)
}

// single are transactions of one row each.
func (p producing) single(from, to int) string {
	return fmt.Sprintf(`DO $$ BEGIN
		SET synchronous_commit = off;
		FOR i IN %d..%d LOOP `, from, to) + p.columns(eventContextSQL) + ` FROM (VALUES (i)) v(n); COMMIT; END LOOP;
	END $$`
}

// numbered publishes one event of a writer: $1 its number, $2 the writer's.
func (p producing) numbered() string {
	return p.columns(`json_build_object('w', $2::int, 'n', n, 'note', repeat('x', 200))`) + ` FROM (VALUES ($1::int)) v(n)`
}

var eventContextSQL = strings.ReplaceAll(eventContext, "%%", "%")

// arrival is SQL about the rows that have arrived.
type arrival struct {
	// count is the number of rows that a SELECT sees.
	count string
	// rows returns position, id, writer and number of each; rows of one insert may have the
	// same position.
	rows string
	// stored is the number of rows with those that a SELECT does not show (FINAL); empty for count.
	stored string
	query  func(ctx context.Context, sql string) (rowScanner, error)
}

// rowScanner is a result of either database.
type rowScanner interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
	Close() error
}

func (l arrival) number(ctx context.Context, sql string) (n int, err error) {
	rows, err := l.query(ctx, sql)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var count uint64
	if rows.Next() {
		err = rows.Scan(&count)
	}
	return int(count), errors.Join(err, rows.Err())
}

// program is a peer that is a process of its own beside both databases.
type program struct {
	title, setup string
	binary       string
	args         []string
	environ      []string
	slot         bool // it wants one
	from         producing
	to           func(b *testbed) arrival
	tables       []string // of PostgreSQL, before it starts
	log          bool     // its table in ClickHouse is peer_log

	b   *testbed
	cmd *exec.Cmd
}

func (p *program) name() string         { return p.title }
func (p *program) config() string       { return p.setup }
func (p *program) producing() producing { return p.from }
func (p *program) arrived() arrival     { return p.to(p.b) }

// peerLog is the table of the peers that have none of their own: like event_log without its indexes.
const peerLog = `CREATE TABLE peer_log (
	id UUID, event_type LowCardinality(String), event_date_time DateTime64(6, 'UTC'), environment LowCardinality(String),
	event_context String CODEC(ZSTD), arrived_at DateTime64(6, 'UTC') DEFAULT now64(6)
) ENGINE = MergeTree PARTITION BY toYYYYMM(event_date_time) ORDER BY (event_type, event_date_time)`

const peerSlot = "peer"

func (p *program) prepare(ctx context.Context, b *testbed) error {
	p.b = b
	for _, sql := range p.tables {
		if _, err := b.pool.Exec(ctx, sql); err != nil {
			return err
		}
	}
	if p.log {
		if err := b.ch.Exec(ctx, peerLog); err != nil {
			return err
		}
	}
	if !p.slot {
		return nil
	}
	return b.recordedSlot(ctx, peerSlot, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`)
}

func (p *program) start(ctx context.Context) error {
	p.cmd = exec.CommandContext(ctx, p.binary, p.args...)
	p.cmd.Env = append(p.b.environ(peerSlot), p.environ...)
	log, err := os.OpenFile(filepath.Join(p.b.env.dir, "peers.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	return p.cmd.Start()
}

func (p *program) kill(context.Context) error {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	_ = p.cmd.Wait()         // its rows are counted
	return nil
}

func (p *program) stop(ctx context.Context) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	gone := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	_ = p.cmd.Wait()
	gone.Stop()
	if !p.slot {
		return nil
	}
	return p.b.dropSlot(ctx, peerSlot)
}

func (p *program) usage() usage {
	return usage{cpu: cpuOf(p.cmd.Process.Pid, false), peak: peakOf(p.cmd.Process.Pid)}
}
