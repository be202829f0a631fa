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
	codeTooManyParts       = 252
	codeViolatedConstraint = 469
)

// hints say what to do about fatal errors that an operator causes.
var hints = map[int32]string{
	16:  "the table is not ours: run `streamer migrate up`",
	60:  "create the tables with `streamer migrate up`, or correct CLICKHOUSE_EVENT_LOG_TABLE_NAME",
	81:  "create the database, or correct CLICKHOUSE_SCHEMA",
	164: "the user may only read: correct its profile",
	192: "correct CLICKHOUSE_USER",
	193: "correct CLICKHOUSE_PASSWORD",
	194: "set CLICKHOUSE_PASSWORD",
	452: "the user's profile must allow the settings that the streamer sends with its queries: remove the constraint that this names",
	471: "the user's profile has a value that does not go with the settings that the streamer sends with its queries: correct what this names",
	472: "the user's profile must allow the settings that the streamer sends with its queries",
	497: "grant the user INSERT and SELECT on the tables",
	291: "grant the user access to the database",
	392: "the server or the user's profile prohibits the query: allow INSERT and SELECT on the tables",
	620: "the server or the user's profile prohibits the query: allow INSERT and SELECT on the tables",
	720: "the user has expired: extend VALID UNTIL",
	516: "correct CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
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
	if !code.textIsSafe {
		err = &redacted{ex}
	}
	switch {
	case ex.Code == codeTooManyParts && strings.Contains(ex.Message, "Too many partitions"):
		return failure.Wrap(failure.Fatal, err) // the other meaning of 252 is back-pressure
	case code.class == fatal:
		if hint := hints[ex.Code]; hint != "" {
			err = fmt.Errorf("%w (%s)", err, hint)
		}
		return failure.Wrap(failure.Fatal, err)
	case code.class == poison:
		return failure.Wrap(failure.Poison, err)
	default:
		return err
	}
}
