package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"time"

	"diehard/shared/settings"
	"diehard/streamer/config"
	"diehard/streamer/replication"
)

// ourReader does with the streamer's reader what pg_recvlogical does.
func ourReader(ctx context.Context, b *testbed, slot string, log backlog) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.env.self, "discard", strconv.Itoa(log.rows()))
	cmd.Env = b.environ(slot)
	return cmd
}

// discard reads so many rows of a slot, with the commit of the last one.
func discard(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("discard: a number of rows is needed, not %q", args)
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	cfg, err := settings.Parse[config.Config]("discard")
	if err != nil {
		return err
	}
	conn, err := replication.Connect(ctx, cfg.Postgres.URL, "discard", time.Minute, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Start(ctx, cfg.Replication.Slot, cfg.Replication.Publication, replication.Wanted{}, 0); err != nil {
		return err
	}
	for rows, committed := 0, false; rows < want || !committed; {
		m, err := conn.Receive(time.Now().Add(time.Minute))
		if err != nil {
			return fmt.Errorf("discard: after %d of %d rows: %w", rows, want, err)
		}
		if m.Kind != replication.Data {
			continue
		}
		committed = m.Data[0] == 'C'
		if m.Data[0] == 'I' {
			rows++
		}
	}
	return nil
}
