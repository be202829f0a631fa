package replication

import (
	"context"
	"fmt"

	"github.com/jackc/pgerrcode"

	"diehard/shared/failure"
	"diehard/shared/postgres"
)

// CopySlot makes the slot to, a copy of the logical slot from that belongs to
// this session and goes with it. It may be started where from could be.
//
// Errors: failure.Fatal with the fix.
func (c *Conn) CopySlot(ctx context.Context, from, to string) error {
	sql := "SELECT pg_catalog.pg_copy_logical_replication_slot(" + quoteLiteral(from) + ", " + quoteLiteral(to) + ", true)"
	_, err := c.pg.Exec(ctx, sql).ReadAll()
	switch {
	case err == nil:
		return nil
	case postgres.IsCode(err, pgerrcode.UndefinedObject):
		return refuse("slot %s does not exist any more: %w", from, err)
	case postgres.IsCode(err, pgerrcode.ObjectNotInPrerequisiteState):
		return refuse("slot %s is lost: PostgreSQL has removed WAL it needed: %w", from, err)
	case postgres.IsCode(err, pgerrcode.ConfigurationLimitExceeded):
		return refuse("copy slot %s: %w (raise max_replication_slots, or drop a slot that is not needed)", from, err)
	default:
		return failure.Wrap(failure.Of(err), fmt.Errorf("copy slot %s: %w", from, err))
	}
}
