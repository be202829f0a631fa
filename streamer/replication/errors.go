package replication

import (
	"errors"
	"fmt"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"

	"diehard/shared/failure"
)

// ErrSlotActive means that another session streams from the slot: wait for it.
var ErrSlotActive = errors.New("the slot is in use by another streamer")

// rowSecurityRoutine is where PostgreSQL raises the error of a session that has
// row_security off; the text is translated on some servers.
const rowSecurityRoutine = "check_enable_rls"

// classify gives a PostgreSQL error its class. Errors without a SQLSTATE are
// the network's and stay transient.
func classify(err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err
	}
	switch pg.Code {
	case pgerrcode.ObjectInUse:
		return fmt.Errorf("%w: %w", ErrSlotActive, err)
	case pgerrcode.InsufficientPrivilege:
		if pg.Routine == rowSecurityRoutine {
			return fatal(failure.Privileges, fmt.Errorf("%w (ALTER TABLE … DISABLE ROW LEVEL SECURITY, on this table and on those that `streamer doctor` names)", err))
		}
		return fatal(failure.Privileges, fmt.Errorf("%w (the role needs the attribute REPLICATION and membership in diehard_streamer)", err))
	case pgerrcode.InvalidPassword, pgerrcode.InvalidAuthorizationSpecification:
		return fatal(failure.Credentials, err)
	case pgerrcode.UndefinedTable, pgerrcode.InvalidCatalogName:
		return fatal(failure.Schema, err)
	case pgerrcode.FeatureNotSupported:
		return failure.Wrap(failure.Fatal, err)
	case pgerrcode.UndefinedObject:
		return fatal(failure.SlotLost, fmt.Errorf("%w: %w", errSlotMissing, err))
	case pgerrcode.ObjectNotInPrerequisiteState:
		return fatal(failure.SlotLost, fmt.Errorf("%w: %w", errSlotInvalidated, err))
	default:
		return err
	}
}

func fatal(cause failure.Cause, err error) error {
	return failure.Wrap(failure.Fatal, failure.Because(cause, err))
}

var (
	errSlotMissing = errors.New("the slot or the publication vanished, or the publication is younger than the slot's position: " +
		"rows may be missing; run `streamer slot drop`, `streamer slot create` and `streamer replay --from-table`")
	errSlotInvalidated = errors.New("the server can no longer serve the slot's WAL: " +
		"run `streamer slot drop`, `streamer slot create` and `streamer replay --from-table`, and raise max_slot_wal_keep_size")
)
