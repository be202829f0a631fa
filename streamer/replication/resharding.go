package replication

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// ShardingPattern is a regular expression for the slots that may ever have divided the same
// outbox. Its group is their number of shards, empty for the whole.
func (o Origin) ShardingPattern() string {
	return regexp.QuoteMeta(o.Slot) + "(?:_[0-9]{1,2}_of_([0-9]{1,2}))?"
}

// CheckOverlap refuses to begin at a position at or behind which rows are written by
// a slot that divides the same outbox differently: they would be written again, by
// this slot. written is the last commit of each slot that has rows in ClickHouse.
//
// Errors: failure.Fatal with the fix.
func (c *Control) CheckOverlap(ctx context.Context, begin pglogrepl.LSN, written map[string]pglogrepl.LSN) error {
	other, slots := c.otherSharding(begin, written)
	if other == "" {
		return nil
	}
	last := written[other]
	twice := fmt.Sprintf("slot %s divided the outbox differently, and its events up to %s are in ClickHouse: "+
		"this streamer (STREAMER_SHARD = %s) would begin at %s and deliver them again", other, last, c.from.Shard, begin)
	behind, confirmed, err := c.leastConfirmed(ctx, slots)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return refuse("%s. Give `streamer run --start-lsn %s`. That slot is gone, and with it the knowledge whether all before this position was delivered: "+
			"run `streamer replay --from-table` then", twice, last+1)
	case err != nil:
		return err
	case confirmed <= last:
		return refuse("%s. Slot %s has confirmed %s only, so that some of it may be missing yet: start its streamer again, with the STREAMER_SHARD it had, "+
			"let it finish its transaction, and stop it when `TABLE slot_lag` shows no lag; then start this one and do what it says", twice, behind, confirmed)
	}
	return refuse("%s. Give `streamer run --start-lsn %s`, which is what slot %s has confirmed", twice, confirmed, behind)
}

// otherSharding returns the slot of another division whose rows reach farthest beyond
// begin, "" for none, and the names of all slots of such divisions.
func (c *Control) otherSharding(begin pglogrepl.LSN, written map[string]pglogrepl.LSN) (farthest string, slots []string) {
	form := regexp.MustCompile("^" + c.from.ShardingPattern() + "$")
	for slot, last := range written {
		parts := form.FindStringSubmatch(slot)
		if parts == nil || last < begin {
			continue
		}
		count, _ := strconv.Atoi(parts[1]) // "" of the whole is 0
		if count == c.from.Shard.Count {
			continue
		}
		slots = append(slots, Origin{Slot: c.from.Slot, Shard: Shard{Index: 1, Count: count}}.slots()...)
		if last > written[farthest] {
			farthest = slot
		}
	}
	return farthest, slots
}

// leastConfirmed returns the slot that has confirmed least.
//
// Errors: pgx.ErrNoRows when none of them exists.
func (c *Control) leastConfirmed(ctx context.Context, slots []string) (name string, lsn pglogrepl.LSN, err error) {
	err = c.conn.QueryRow(ctx, `
		SELECT slot_name, coalesce(confirmed_flush_lsn, '0/0') FROM pg_catalog.pg_replication_slots
		WHERE database = current_database() AND slot_name = ANY ($1) ORDER BY confirmed_flush_lsn NULLS FIRST LIMIT 1`, slots).Scan(&name, &lsn)
	if err != nil {
		return "", 0, classify(fmt.Errorf("look for the slots of before: %w", err))
	}
	return name, lsn, nil
}
