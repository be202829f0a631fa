package sink

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"

	"diehard/shared/failure"
)

const (
	codeTooManyParts       = int32(proto.ErrTooManyParts)
	codeViolatedConstraint = int32(proto.ErrViolatedConstraint)
)

// hints say what to do about fatal errors that an operator causes.
var hints = map[proto.Error]string{
	proto.ErrNoSuchColumnInTable:        "the table is not ours: run `streamer migrate up`",
	proto.ErrUnknownTable:               "create the tables with `streamer migrate up`, or correct CLICKHOUSE_EVENT_LOG_TABLE_NAME",
	proto.ErrUnknownDatabase:            "create the database, or correct CLICKHOUSE_SCHEMA",
	proto.ErrReadonly:                   "the user may only read: correct its profile, which `streamer doctor` names",
	proto.ErrUnknownUser:                "correct CLICKHOUSE_USER",
	proto.ErrWrongPassword:              "correct CLICKHOUSE_PASSWORD",
	proto.ErrRequiredPassword:           "set CLICKHOUSE_PASSWORD",
	proto.ErrSettingConstraintViolation: "the user's profile must allow the settings that the streamer sends with its queries: remove the constraint that this names; `streamer doctor` names the profile and all of them",
	proto.ErrInvalidSettingValue:        "the user's profile has a value that does not go with the settings that the streamer sends with its queries: correct what this names; `streamer doctor` names the profile",
	proto.ErrReadonlySetting:            "the user's profile must allow the settings that the streamer sends with its queries; `streamer doctor` names both",
	proto.ErrAccessDenied:               "grant the user INSERT and SELECT on the tables",
	proto.ErrDatabaseAccessDenied:       "grant the user access to the database",
	proto.ErrQueryIsProhibited:          "the server or the user's profile prohibits the query: allow INSERT and SELECT on the tables",
	proto.ErrQueryNotAllowed:            "the server or the user's profile prohibits the query: allow INSERT and SELECT on the tables",
	proto.ErrUserExpired:                "the user has expired: extend VALID UNTIL",
	proto.ErrAuthenticationFailed:       "correct CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
}

// Answered reports that err is the server's word that an insert is over and will not be written.
func Answered(err error) bool {
	switch proto.Error(Code(err)) {
	case 0, proto.ErrUnknownStatusOfInsert, proto.ErrUnsatisfiedQuorumForPreviousWrite:
		return false
	default:
		return true
	}
}

// Code returns ClickHouse's error code, 0 for an error that is not the server's.
func Code(err error) int32 {
	if ex, ok := errors.AsType[*clickhouse.Exception](err); ok {
		return ex.Code
	}
	return 0
}

// Classify gives an error of ClickHouse its class, for others that use the same tables.
func Classify(err error) error { return classify(err) }

// withoutValues hides a text that may quote the data.
func withoutValues(ex *clickhouse.Exception) error {
	if !codes[ex.Code].textIsSafe {
		return &redacted{ex}
	}
	return ex
}

// classify gives a ClickHouse error its class, and hides a text that may quote
// the data; Reason gives it back. An error that is not the server's is the
// network's, and leaves the outcome of an insert unknown.
func classify(err error) error {
	if err == nil {
		return nil
	}
	ex, ok := errors.AsType[*clickhouse.Exception](err)
	if !ok {
		return err
	}
	code := codes[ex.Code]
	err = withoutValues(ex)
	switch {
	case ex.Code == codeTooManyParts && strings.Contains(ex.Message, "Too many partitions"):
		return failure.Wrap(failure.Fatal, err) // the other meaning of 252 is back-pressure
	case code.class == fatal:
		if hint := hints[proto.Error(ex.Code)]; hint != "" {
			err = fmt.Errorf("%w (%s)", err, hint)
		}
		return failure.Wrap(failure.Fatal, err)
	case code.class == poison:
		return failure.Wrap(failure.Poison, err)
	default:
		return err
	}
}
