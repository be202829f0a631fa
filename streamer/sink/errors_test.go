package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/failure"
)

// The classes of ClickHouse's codes, as an operator would have them.
func TestCodesHaveTheirClass(t *testing.T) {
	t.Parallel()
	for class, list := range map[failure.Class][]int32{
		failure.Transient: {
			3, 23, 32, 33, 101, 159, 160, 201, 202, 203, 209, 210, 216, 225, 236, 241, 242, 243, 244, 254, 265, 279, 285, 286, 289, 319,
			364, 373, 394, 415, 416, 425, 439, 473, 499, 574, 692, 733, 735, 745, 749, 999, 100_000,
		},
		failure.Fatal: {16, 20, 49, 53, 60, 62, 81, 115, 164, 192, 193, 194, 195, 218, 497, 516},
		failure.Poison: {
			6, 25, 26, 27, 38, 41, 43, 69, 70, 72, 117, 128, 130, 131, 153, 190, 306, 321, 349, 376, 395, 407, 441, 467, 469, 563, 621, 632, 645,
			675, 676, 691,
		},
	} {
		for _, code := range list {
			err := classify(fmt.Errorf("send: %w", &clickhouse.Exception{Code: code, Message: "message"}))
			assert.Equal(t, class, failure.Of(err), "code %d", code)
			assert.Equal(t, code, Code(err))
		}
	}
}

// 252 means back-pressure or a partition key that can never work.
func TestTooManyPartsIsClassifiedByItsText(t *testing.T) {
	t.Parallel()
	of := func(message string) failure.Class {
		return failure.Of(classify(&clickhouse.Exception{Code: 252, Message: message}))
	}
	assert.Equal(t, failure.Transient, of("Too many parts (3001 with average size of 1.00 MiB) in table 'event_log'"))
	assert.Equal(t, failure.Fatal, of("Too many partitions for single INSERT block (more than 100)"))
}

func TestErrorsThatAreNotTheServersAreTransient(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, context.DeadlineExceeded, &net.OpError{Op: "dial", Err: errors.New("refused")},
		clickhouse.ErrAcquireConnTimeout,
	} {
		got := classify(err)
		assert.Equal(t, failure.Transient, failure.Of(got))
		assert.Zero(t, Code(got))
	}
	assert.NoError(t, classify(nil))
}

func TestFatalErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for code, want := range map[int32]string{
		16: "streamer migrate up", 60: "streamer migrate up", 81: "CLICKHOUSE_SCHEMA", 164: "profile",
		192: "CLICKHOUSE_USER", 193: "CLICKHOUSE_PASSWORD", 194: "CLICKHOUSE_PASSWORD", 497: "grant", 516: "CLICKHOUSE_USER",
	} {
		require.ErrorContains(t, classify(&clickhouse.Exception{Code: code}), want)
	}
}

// Every code that the server knows has a line, with its name, and the text of none that a value
// raises is taken to be safe.
func TestEveryCodeOfClickHouseHasAClass(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	rows, err := f.ClickHouse.Query(t.Context(), `SELECT toInt32(number) AS code, errorCodeToName(toUInt32(number)) AS name FROM numbers(1, 20000) WHERE name != '' ORDER BY code`)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var code int32
		var name string
		require.NoError(t, rows.Scan(&code, &name))
		assert.Equal(t, name, codes[code].name, "codes.txt has no line for %d %s: what does it say of the rows?", code, name)
	}
	require.NoError(t, rows.Err())
	for line := range strings.Lines(codesText) {
		if !strings.HasPrefix(line, "#") {
			assert.Regexp(t, `^\d+ [A-Z0-9_]+ (poison|fatal|unknown|transient( text)?)\n$|^\d+ [A-Z0-9_]+ fatal text\n$`, line)
		}
	}
}

// A refusal of the query itself, for its settings, its user, rights, quotas or limits, or of a server
// that is read-only or full, is never the rows' fault: it neither halves a batch nor makes a dead letter.
func TestARefusalOfTheQueryIsNeverTheRowsFault(t *testing.T) {
	t.Parallel()
	ofTheQuery := regexp.MustCompile(`SETTING|DENIED|QUOTA|READ_?ONLY|PASSWORD|AUTHENTICAT|USER|ROLE|GRANT|(^|_)LIMIT|EXCEEDED|TIMEOUT|TOO_MANY|NOT_ALLOWED|PROHIBITED|ZOOKEEPER|KEEPER|REPLICA|NETWORK|SOCKET|SESSION`)
	for code, c := range codes {
		if !ofTheQuery.MatchString(c.name) {
			continue
		}
		d := UnknownErrors{Limit: 1}
		err := d.Classify(classify(&clickhouse.Exception{Code: code}))
		assert.NotEqual(t, failure.Poison, failure.Of(err), "%d %s", code, c.name)
	}
}

// What may quote a row is nowhere in the error, however it is printed, and is kept for the dead letter.
func TestTextsThatMayQuoteARowAreHidden(t *testing.T) {
	t.Parallel()
	const text = "Cannot parse uuid my-secret"
	for code, want := range map[int32]string{376: "code 376 (CANNOT_PARSE_UUID)", 32: "code 32 (ATTEMPT_TO_READ_AFTER_EOF)", 49: "LOGICAL_ERROR", 100_000: "code 100000"} {
		err := fmt.Errorf("insert: %w", classify(fmt.Errorf("send: %w", &clickhouse.Exception{Code: code, Message: text})))
		require.ErrorContains(t, err, want)
		for e := err; e != nil; e = errors.Unwrap(e) {
			assert.NotContains(t, fmt.Sprintf("%v %+v", e, e), "secret")
		}
		assert.Equal(t, code, Code(err))
		assert.Contains(t, Reason(err), text)
	}
	require.ErrorContains(t, classify(&clickhouse.Exception{Code: 241, Message: "would use 9 GiB"}), "would use 9 GiB")
	assert.Equal(t, "column x is NULL", RedactedReason("column x is NULL", 0))
	assert.Equal(t, "ClickHouse refused it with code 376 (CANNOT_PARSE_UUID)", RedactedReason(text, 376))
}

func TestUnknownNeedsTheSameUnknownCodeInARow(t *testing.T) {
	t.Parallel()
	of := func(code int32) error { return classify(&clickhouse.Exception{Code: code}) }
	d := UnknownErrors{Limit: 3}
	for _, err := range []error{of(32), of(32), of(33), of(32), of(32), io.EOF, of(32), of(32), nil, of(241), of(241), of(241), of(32), of(32)} {
		assert.NotEqual(t, failure.Poison, failure.Of(d.Classify(err)))
	}
	verdict := d.Classify(of(32))
	assert.Equal(t, failure.Poison, failure.Of(verdict))
	assert.EqualValues(t, 32, Unknown(verdict))
	assert.Zero(t, Unknown(of(376)))
	assert.Zero(t, Unknown(io.EOF))
}
