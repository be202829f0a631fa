package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// badRows are the shares of rows that ClickHouse refuses, and what refuses them.
var badRows = []struct {
	name  string
	every int // of so many rows one is bad; 0: none
	alter string
}{
	{"none", 0, ""},
	{"1 in 1000, a constraint", 1000, "ADD CONSTRAINT c CHECK JSONExtractUInt(event_context, 'order_id') %% %d != 0"},
	{"1 in 10, a constraint", 10, "ADD CONSTRAINT c CHECK JSONExtractUInt(event_context, 'order_id') %% %d != 0"},
	{"1 in 2, a constraint", 2, "ADD CONSTRAINT c CHECK JSONExtractUInt(event_context, 'order_id') %% %d != 0"},
	{"1 in 1000, a column", 1000, "ADD COLUMN u UInt8 MATERIALIZED throwIf(JSONExtractUInt(event_context, 'order_id') %% %d = 0)"},
}

// badRowsDrain measures how fast a backlog is written of which rows are refused. The target is
// 10,000 rows a second with 1 in 10 and 5,000 with 1 in 2.
func badRowsDrain(ctx context.Context, env *environment) (*report, error) {
	log := backlog{bulk: int(200_000 * env.Scale)}
	b, err := env.newTestbed(ctx, "badrows")
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.close(context.WithoutCancel(ctx)) }()
	r := newReport("badrows", fmt.Sprintf("Drain of %d rows of which ClickHouse refuses some", log.rows()), "rows/s", "dead letters", "parts", "CPU µs/row")
	for round := range env.Rounds {
		for i, c := range badRows {
			if err := b.freshClickHouse(ctx); err != nil {
				return nil, err
			}
			bad := 0
			if c.every > 0 {
				bad = log.rows() / c.every
				if err := b.ch.Exec(ctx, "ALTER TABLE event_log "+fmt.Sprintf(c.alter, c.every)); err != nil {
					return nil, err
				}
			}
			slot := fmt.Sprintf("bad_%d_%d", round, i)
			if err := b.backlogOf(ctx, slot, log.rows()); err != nil {
				return nil, err
			}
			m, err := drainBadRows(ctx, b, slot, log.rows(), bad)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			env.progress("round %d: %s: %.0f rows/s", round+1, c.name, m[0])
			r.add(c.name, m...)
		}
	}
	return r, nil
}

// backlogOf makes a slot as the streamer does, which trusts no other at once, and a transaction behind it.
func (b *testbed) backlogOf(ctx context.Context, slot string, rows int) error {
	create := exec.CommandContext(ctx, b.env.streamer, "slot", "create")
	create.Env, create.Stderr = b.environ(slot), os.Stderr
	if err := create.Run(); err != nil {
		return fmt.Errorf("create slot: %w", err)
	}
	_, err := b.pool.Exec(ctx, fmt.Sprintf(`INSERT INTO outbox (event_type, environment, event_context)
		SELECT `+eventType+`, 'Bench', `+eventContext+` FROM generate_series(1, %d) n`, rows))
	return err
}

// drainBadRows runs a streamer until every row is in one of the tables.
func drainBadRows(ctx context.Context, b *testbed, slot string, rows, bad int) ([]float64, error) {
	cmd := exec.CommandContext(ctx, b.env.streamer, "run")
	cmd.Env, cmd.Stderr = b.environ(slot, "LOG_LEVEL=error"), os.Stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var written, ids, deadLetters, parts uint64
	err := b.until(ctx, began, func() (bool, error) {
		err := b.ch.QueryRow(ctx, "SELECT (SELECT count() FROM event_log), (SELECT count() FROM event_dead_letter)").Scan(&written, &deadLetters)
		return written+deadLetters >= uint64(rows), err //nolint:gosec // never negative
	})
	took := time.Since(began)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait() // its rows are checked
	if err != nil {
		return nil, err
	}
	err = b.ch.QueryRow(ctx, `SELECT (SELECT uniqExact(event_id) FROM event_log), (SELECT uniqExact(event_id) FROM event_dead_letter),
		(SELECT count() FROM system.parts WHERE database = currentDatabase() AND table = 'event_log')`).Scan(&ids, &deadLetters, &parts)
	if err != nil {
		return nil, err
	}
	if int(written) != rows-bad || int(ids) != rows-bad || int(deadLetters) != bad {
		return nil, fmt.Errorf("%d rows with %d ids and %d dead letters, of %d rows %d are bad", written, ids, deadLetters, rows, bad)
	}
	cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return []float64{float64(rows) / took.Seconds(), float64(deadLetters), float64(parts), float64(cpu.Microseconds()) / float64(rows)}, b.dropSlot(ctx, slot)
}

// until asks until done, for at most ten minutes.
func (b *testbed) until(ctx context.Context, began time.Time, done func() (bool, error)) error {
	for {
		ok, err := done()
		switch {
		case err != nil || ok:
			return err
		case time.Since(began) > 10*time.Minute:
			return fmt.Errorf("not done after ten minutes")
		}
		sleepFor(ctx, 50*time.Millisecond)
	}
}
