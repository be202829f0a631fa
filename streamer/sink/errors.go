package sink

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"

	"diehard/shared/failure"
)

// ClickHouse's error codes, from its ErrorCodes.cpp. A code in none of these lists
// is transient for a start: retrying is the only reaction that loses nothing. When
// it comes for the same rows again and again, see Doubt.
var (
	// What values raise in columns, constraints, derived columns and views.
	poisonCodes = codes(
		6,   // CANNOT_PARSE_TEXT
		25,  // CANNOT_PARSE_ESCAPE_SEQUENCE
		26,  // CANNOT_PARSE_QUOTED_STRING
		27,  // CANNOT_PARSE_INPUT_ASSERTION_FAILED
		38,  // CANNOT_PARSE_DATE
		41,  // CANNOT_PARSE_DATETIME
		43,  // ILLEGAL_TYPE_OF_ARGUMENT
		69,  // ARGUMENT_OUT_OF_BOUND
		70,  // CANNOT_CONVERT_TYPE
		72,  // CANNOT_PARSE_NUMBER
		117, // INCORRECT_DATA
		128, // TOO_LARGE_ARRAY_SIZE
		130, // CANNOT_READ_ARRAY_FROM_TEXT
		131, // TOO_LARGE_STRING_SIZE
		153, // ILLEGAL_DIVISION
		190, // SIZES_OF_ARRAYS_DONT_MATCH
		306, // TOO_DEEP_RECURSION
		321, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
		349, // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
		376, // CANNOT_PARSE_UUID
		395, // FUNCTION_THROW_IF_VALUE_IS_NON_ZERO
		407, // DECIMAL_OVERFLOW
		441, // CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING
		467, // CANNOT_PARSE_BOOL
		469, // VIOLATED_CONSTRAINT
		563, // CANNOT_READ_MAP_FROM_TEXT
		621, // CANNOT_NORMALIZE_STRING
		632, // UNEXPECTED_DATA_AFTER_PARSED_VALUE
		645, // NUMBER_OF_DIMENSIONS_MISMATCHED
		675, // CANNOT_PARSE_IPV4
		676, // CANNOT_PARSE_IPV6
		691, // UNKNOWN_ELEMENT_OF_ENUM
	)
	fatalCodes = codes(
		16,  // NO_SUCH_COLUMN_IN_TABLE
		20,  // NUMBER_OF_COLUMNS_DOESNT_MATCH
		49,  // LOGICAL_ERROR
		53,  // TYPE_MISMATCH
		60,  // UNKNOWN_TABLE
		62,  // SYNTAX_ERROR
		81,  // UNKNOWN_DATABASE
		115, // UNKNOWN_SETTING
		164, // READONLY, the user's
		192, // UNKNOWN_USER
		193, // WRONG_PASSWORD
		194, // REQUIRED_PASSWORD
		195, // IP_ADDRESS_NOT_ALLOWED
		218, // TABLE_IS_DROPPED
		497, // ACCESS_DENIED
		516, // AUTHENTICATION_FAILED
	)
	// The server's own trouble, or that of an expression in a view: no row is to blame.
	// 32 ATTEMPT_TO_READ_AFTER_EOF and 33 are missing on purpose: toUInt64('') raises them too.
	transientCodes = codes(
		8, 10, 46, 47, 50, // an expression names what is not there
		23, 74, 75, 76, 95, 96, 101, 173, 198, 204, // input and output
		159, 160, 201, 202, 203, 209, 210, 216, 236, 241, 243, 252, 364, 373, 394, 410, 425, 439, 473, 733, 735, 745, 749, 762, 776, 777, 778, // load
		225, 242, 244, 254, 265, 279, 285, 286, 289, 297, 319, 369, 415, 416, 519, 529, 774, 904, 999, // replicas
		499, 500, 574, 692, // storage
	)
	// textIsSafe are the codes whose text names tables, users and limits and never a value.
	textIsSafe = union(transientCodes, codes(16, 20, 60, 81, 115, 164, 192, 193, 194, 195, 218, 497, 516))
)

const (
	codeTooManyParts = 252
	codeMemoryLimit  = 241
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
	497: "grant the user INSERT and SELECT on the tables",
	516: "correct CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
}

func codes(list ...int32) map[int32]bool {
	m := make(map[int32]bool, len(list))
	for _, c := range list {
		m[c] = true
	}
	return m
}

func union(lists ...map[int32]bool) map[int32]bool {
	all := make(map[int32]bool)
	for _, l := range lists {
		maps.Copy(all, l)
	}
	return all
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
	if !textIsSafe[ex.Code] {
		err = &masked{ex}
	}
	switch {
	case ex.Code == codeTooManyParts && strings.Contains(ex.Message, "Too many partitions"):
		return failure.Wrap(failure.Fatal, err) // the other meaning of 252 is back-pressure
	case fatalCodes[ex.Code]:
		if hint := hints[ex.Code]; hint != "" {
			err = fmt.Errorf("%w (%s)", err, hint)
		}
		return failure.Wrap(failure.Fatal, err)
	case poisonCodes[ex.Code]:
		return failure.Wrap(failure.Poison, err)
	default:
		return err
	}
}
