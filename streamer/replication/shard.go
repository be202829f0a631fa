package replication

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/jackc/pgerrcode"

	"diehard/shared/failure"
	"diehard/shared/postgres"
)

// Shard is one of Count parts of the outbox, counted from 1. It holds the events
// whose id ends in a byte that leaves Index-1 when divided by Count: the id never
// changes, and event.WithKey and event_id_for decide the byte. The zero Shard is
// the whole outbox. Messages, which publications do not filter, are all the first one's.
type Shard struct{ Index, Count int }

// MaxShards keeps the parts of 256 values about equal.
const MaxShards = 32

var shardForm = regexp.MustCompile(`^([0-9]{1,2})/([0-9]{1,2})$`)

// UnmarshalText reads "2/4"; "1/1" and "" are the whole.
func (s *Shard) UnmarshalText(text []byte) error {
	*s = Shard{}
	if len(text) == 0 {
		return nil
	}
	parts := shardForm.FindSubmatch(text)
	if parts == nil {
		return errors.New("a shard is i/n, such as 1/2")
	}
	index, _ := strconv.Atoi(string(parts[1])) // two digits
	count, _ := strconv.Atoi(string(parts[2]))
	switch {
	case index < 1 || index > count || count > MaxShards:
		return fmt.Errorf("a shard is i/n with 1 ≤ i ≤ n ≤ %d", MaxShards)
	case count > 1:
		*s = Shard{index, count}
	}
	return nil
}

func (s Shard) String() string {
	if s.Count == 0 {
		return "1/1"
	}
	return fmt.Sprintf("%d/%d", s.Index, s.Count)
}

func (s Shard) suffix() string {
	if s.Count == 0 {
		return ""
	}
	return fmt.Sprintf("_%d_of_%d", s.Index, s.Count)
}

// Name is what the shard's part of something is called: outbox_pub_1_of_2.
func (s Shard) Name(whole string) string { return whole + s.suffix() }

// Filter is the condition on a row of the outbox, as PostgreSQL itself writes it; "" for the whole.
func (s Shard) Filter() string {
	if s.Count == 0 {
		return ""
	}
	return fmt.Sprintf("((get_byte(uuid_send(id), 15) %% %d) = %d)", s.Count, s.Index-1)
}

// All returns the shards that s is one of; s alone if it is the whole.
func (s Shard) All() []Shard {
	if s.Count == 0 {
		return []Shard{s}
	}
	all := make([]Shard, s.Count)
	for i := range all {
		all[i] = Shard{i + 1, s.Count}
	}
	return all
}

// slots are the names of the slots of all shards.
func (o Origin) slots() (names []string) {
	for _, s := range o.Shard.All() {
		names = append(names, s.Name(o.Slot))
	}
	return names
}

// rowFilters is the first version of PostgreSQL with row filters in publications.
const rowFilters = 150000

// checkShards demands that all shards have their publications, with the filters that
// make them complete and disjoint.
func (c *Control) checkShards(ctx context.Context) error {
	if c.from.Shard.Count > 0 {
		version, err := c.ServerVersion(ctx)
		if err != nil {
			return err
		}
		if version < rowFilters {
			return refuse("STREAMER_SHARD = %s needs row filters in publications, which PostgreSQL has from version 15 on: "+
				"unset it, or upgrade PostgreSQL", c.from.Shard)
		}
	}
	for _, other := range c.from.Shard.All() {
		state, err := c.checkPublication(ctx, other)
		if err != nil {
			return err
		}
		if other == c.from.Shard {
			c.published = state
		}
	}
	return nil
}

// CheckResharding refuses to stream beside a streamer that has divided the same
// outbox differently: events would arrive twice.
//
// Errors: failure.Fatal with the fix.
func (c *Control) CheckResharding(ctx context.Context) error {
	var other *string
	err := c.conn.QueryRow(ctx, `
		SELECT min(slot_name) FROM pg_catalog.pg_replication_slots
		WHERE database = current_database() AND active AND slot_name <> ALL ($1)
		  AND (slot_name = $2 OR slot_name ~ ('^' || $2 || '_[0-9]+_of_[0-9]+$'))`, c.from.slots(), c.from.Slot).Scan(&other)
	switch {
	case err != nil:
		return classify(fmt.Errorf("look for other shards: %w", err))
	case other != nil:
		return refuse("slot %s is in use by a streamer that divides the outbox differently, and this one is %s (STREAMER_SHARD): "+
			"both would deliver the same events. Stop that one first; streamer/README.md, \"Sharding\", says how to go from one to the other",
			*other, c.slot)
	}
	return nil
}

// MissingShards names the slots of other shards that do not exist: their events reach no streamer.
func (c *Control) MissingShards(ctx context.Context) ([]string, error) {
	var missing []string
	err := c.conn.QueryRow(ctx, `SELECT coalesce(array_agg(n ORDER BY n), '{}') FROM unnest($1::text[]) AS n
		WHERE n <> $2 AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = n)`, c.from.slots(), c.slot).Scan(&missing)
	if err != nil {
		return nil, classify(fmt.Errorf("look for the slots of other shards: %w", err))
	}
	return missing, nil
}

// CreatePublications makes the publications of all shards that are missing. It
// does nothing without shards: the migrations have made the publication of the whole.
func (c *Control) CreatePublications(ctx context.Context) error {
	if c.from.Shard.Count == 0 {
		return nil
	}
	version, err := c.ServerVersion(ctx)
	if err != nil || version < rowFilters {
		return err // Preflight says why
	}
	for _, s := range c.from.Shard.All() {
		_, err := c.conn.Exec(ctx, fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WHERE %s WITH (publish = 'insert', publish_via_partition_root = true)",
			quoteIdent(s.Name(c.from.Publication)), c.table(), s.Filter()))
		if err != nil && !postgres.IsCode(err, pgerrcode.DuplicateObject) {
			return failure.Wrap(failure.Of(err), fmt.Errorf("create publication %s: %w", s.Name(c.from.Publication), err))
		}
	}
	return nil
}
