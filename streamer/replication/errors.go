package replication

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"diehard/shared/failure"
)

// ErrSlotActive means that another session streams from the slot: wait for it.
var ErrSlotActive = errors.New("the slot is in use by another streamer")

// SQLSTATEs, PostgreSQL docs, "PostgreSQL Error Codes".
const (
	codeObjectInUse         = "55006"
	codeNotInPrerequisite   = "55000"
	codeUndefinedObject     = "42704"
	codeInvalidPassword     = "28P01"
	codeInvalidAuthorizaton = "28000"
	codeInvalidCatalog      = "3D000"
	codePrivilege           = "42501"
	codeFeature             = "0A000"
	codeDuplicateObject     = "42710"
	codeUndefinedTable      = "42P01"
)

// classify gives a PostgreSQL error its class. Errors without a SQLSTATE are
// the network's and stay transient.
func classify(err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err
	}
	switch pg.Code {
	case codeObjectInUse:
		return fmt.Errorf("%w: %w", ErrSlotActive, err)
	case codePrivilege:
		return failure.Wrap(failure.Fatal, fmt.Errorf("%w (the role needs the attribute REPLICATION and membership in diehard_streamer)", err))
	case codeInvalidPassword, codeInvalidAuthorizaton, codeInvalidCatalog, codeFeature, codeUndefinedTable:
		return failure.Wrap(failure.Fatal, err)
	case codeUndefinedObject:
		return failure.Wrap(failure.Fatal, fmt.Errorf("%w: %w", errGone, err))
	case codeNotInPrerequisite:
		return failure.Wrap(failure.Fatal, fmt.Errorf("%w: %w", errLost, err))
	default:
		return err
	}
}

var (
	errGone = errors.New("the slot or the publication vanished, or the publication is younger than the slot's position: " +
		"rows may be missing; run `streamer slot drop`, `streamer slot create` and `streamer replay --from-table`")
	errLost = errors.New("the server can no longer serve the slot's WAL: " +
		"run `streamer slot drop`, `streamer slot create` and `streamer replay --from-table`, and raise max_slot_wal_keep_size")
)
