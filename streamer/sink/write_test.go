package sink

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/decode"
)

// blocks is a Writer that notes what Write asks for.
type blocks struct {
	f       *fixture
	inserts int
	refused []decode.Reject
	causes  []error // of halves
}

func (w *blocks) Insert(_ context.Context, b Block) error {
	w.inserts++
	from, to := b.Bounds()
	unknown, limits := UnknownErrors{Limit: 1}, LimitErrors{Limit: 1}
	return limits.Classify(unknown.Classify(w.f.insert(b.Rows, from, to)))
}

func (w *blocks) Refuse(_ context.Context, _ Block, refused []decode.Reject) error {
	w.refused = append(w.refused, refused...)
	return nil
}

func (w *blocks) Halve(_ context.Context, _ Block, cause error) error {
	w.causes = append(w.causes, cause)
	return nil
}

func (w *blocks) Ask(ctx context.Context, query func(context.Context) error) error { return query(ctx) }

// numbered are rows whose n is what list says.
func numbered(list ...int) *decode.Rows {
	rows := new(decode.Rows)
	for i, n := range list {
		e := event(n)
		e.Type = fmt.Appendf(nil, "type %d", n%10)
		rows.Append(at(500, uint32(i+1)), sampleTime, &e)
	}
	return rows
}

func all(rows *decode.Rows) Block { return Block{Rows: rows, Range: Range{Through: rows.Last()}} }

// Whatever of event_log's own columns and constraints refuses rows: they are found without
// writing, and the others are one insert.
func TestRowsThatAreRefusedAreFoundWithoutWriting(t *testing.T) {
	t.Parallel()
	const odd = "JSONExtractInt(event_context, 'n') % 2 = 1"
	for name, c := range map[string]struct {
		alter  []string
		code   int32
		reason string
	}{
		"a constraint":              {[]string{"ADD CONSTRAINT even CHECK NOT (" + odd + ")"}, 469, "Constraint even for table `event_log` is violated"},
		"one with a strange name":   {[]string{"ADD CONSTRAINT `a), (b` CHECK NOT (" + odd + ") AND event_type != 'x), CONSTRAINT c CHECK 0, ('"}, 469, "Constraint `a), (b`"},
		"one of several":            {[]string{"ADD CONSTRAINT a CHECK 1", "ADD CONSTRAINT b ASSUME " + odd, "ADD CONSTRAINT c CHECK NOT (" + odd + ")"}, 469, "Constraint c "},
		"one that is Bool":          {[]string{"ADD CONSTRAINT c CHECK (NOT (" + odd + "))::Bool"}, 469, "Constraint c "},
		"one that is NULL":          {[]string{"ADD CONSTRAINT c CHECK if(" + odd + ", NULL, 1)"}, 469, "Constraint c "},
		"a column":                  {[]string{"ADD COLUMN u UUID MATERIALIZED toUUID(if(" + odd + ", 'x', '01a20f75-044c-7c2e-94ce-f32c3b0285f2'))"}, 376, "Cannot parse uuid"},
		"a column and unknown code": {[]string{"ADD COLUMN u UInt64 DEFAULT toUInt64(if(" + odd + ", '', '7'))"}, 32, "Attempt to read after eof"},
		"a column that is NULL":     {[]string{"ADD COLUMN u UInt64 MATERIALIZED if(" + odd + ", NULL, 7)"}, 349, "NULL"},
		"a column of columns":       {[]string{"ADD COLUMN a String MATERIALIZED if(" + odd + ", 'x', '7')", "ADD COLUMN b UInt8 MATERIALIZED toUInt8(a)"}, 6, "Cannot parse string 'x'"},
		"columns of all kinds": {[]string{
			"ADD COLUMN j JSON DEFAULT '{}', ADD COLUMN d Dynamic MATERIALIZED 1, ADD COLUMN l LowCardinality(Nullable(String)) MATERIALIZED event_type",
			"ADD COLUMN m Map(String, Array(UInt8)), ADD COLUMN t Tuple(a DateTime64(3, 'Europe/Paris'), b Enum8('it\\'s' = 1)), ADD COLUMN e UInt8 EPHEMERAL 3",
			"ADD COLUMN n Nested(a String, b UInt8), ADD COLUMN x UInt8 ALIAS " + odd + ", ADD COLUMN f FixedString(1) MATERIALIZED if(" + odd + ", 'ab', 'a')",
		}, 131, "TOO_LARGE_STRING_SIZE"},
		"a constraint on columns":     {[]string{"ADD COLUMN a UInt8 MATERIALIZED " + odd, "ADD COLUMN plain Nullable(String)", "ADD CONSTRAINT c CHECK a = 0 AND plain IS NULL"}, 469, "Constraint c "},
		"a constraint that may throw": {[]string{"ADD CONSTRAINT c CHECK throwIf(" + odd + ", 'it is odd') = 0"}, 395, "it is odd"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			for _, a := range c.alter {
				f.exec("ALTER TABLE event_log " + a)
			}
			rows, w := numbered(0, 1, 2, 3, 4, 5, 5, 6, 8, 9), &blocks{f: f}
			require.NoError(t, f.Write(t.Context(), all(rows), w))
			assert.Equal(t, 2, w.inserts, "all rows, and the good ones")
			assert.Equal(t, 5, f.count("event_log WHERE NOT ("+odd+")"))
			assert.Zero(t, f.count("event_log WHERE "+odd))
			require.Len(t, w.refused, 5)
			for i, seq := range []uint32{2, 4, 6, 7, 10} {
				assert.Equal(t, at(500, seq), w.refused[i].Position)
				assert.Equal(t, c.code, w.refused[i].Code)
				assert.Contains(t, w.refused[i].Reason, c.reason)
			}
			assert.Empty(t, w.causes)
		})
	}
}

// The table checks more than columns and constraints, here what an index computes, and a constraint
// may need what our user may not read: then halves are written.
func TestWhatCannotBeFoundWithoutWriting(t *testing.T) {
	t.Parallel()
	for name, alter := range map[string]string{
		"an index":     "ADD INDEX i throwIf(JSONExtractInt(event_context, 'n') = 3) TYPE minmax",
		"a projection": "ADD PROJECTION p (SELECT max(throwIf(JSONExtractInt(event_context, 'n') = 3)) GROUP BY event_type)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.exec("ALTER TABLE event_log " + alter)
			f.exec("ALTER TABLE event_log ADD CONSTRAINT c CHECK JSONExtractInt(event_context, 'n') != 5")
			rows, w := numbered(0, 1, 2, 3, 4, 5, 6, 7), &blocks{f: f}
			require.NoError(t, f.Write(t.Context(), all(rows), w))
			require.Len(t, w.refused, 2)
			assert.EqualValues(t, 469, w.refused[0].Code)
			assert.EqualValues(t, 395, w.refused[1].Code)
			assert.Equal(t, at(500, 4), w.refused[1].Position)
			assert.Equal(t, 6, f.count("event_log"))
			require.NotEmpty(t, w.causes)
			assert.NoError(t, w.causes[0])
		})
	}
}

// A code that no list has and that every row meets is not the rows' fault, as far as that can be known.
func TestAnUnknownCodeForEveryRowIsNotFound(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec("ALTER TABLE event_log ADD COLUMN u UInt64 MATERIALIZED toUInt64(substring(event_context, 1, 0))")
	w := &blocks{f: f}
	_, err := f.findRefused(t.Context(), all(numbered(make([]int, 100)...)), w)
	require.ErrorIs(t, err, errCannotFind)
	refused, err := f.findRefused(t.Context(), all(numbered(1, 2, 3)), w)
	require.NoError(t, err)
	assert.Empty(t, refused)
}

// The query of the search is refused, and not the rows.
func TestASearchThatIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.exec("ALTER TABLE event_log ADD CONSTRAINT c CHECK JSONExtractInt(event_context, 'n') != 3")
	f.exec("CREATE TABLE diehard_rows (n UInt8) ENGINE = Memory") // hidden by the external table
	rows, w := numbered(1, 2, 3, 4), &blocks{f: f}
	require.NoError(t, f.Write(t.Context(), all(rows), w))
	require.Len(t, w.refused, 1)
	assert.Equal(t, 2, w.inserts)

	broken := &finder{s: f.Sink, b: all(numbered(1, 2)), w: w, checks: checks{constraints: []constraint{{"c", "plus(event_type, 1) = 1"}}}}
	require.ErrorIs(t, broken.findAll(t.Context(), 0, 2), errCannotFind)
}

func TestConstraintsOfADefinition(t *testing.T) {
	t.Parallel()
	const definition = "CREATE TABLE `d(`.`t)` UUID 'x(' (`a` String COMMENT 'CONSTRAINT x CHECK 1, (', `CONSTRAINT y CHECK` UInt8 CODEC(ZSTD(1)), " +
		"INDEX i a TYPE minmax, CONSTRAINT `we\\`ird, (x` CHECK (a != 'po),ison\\'s') AND (b >= [0, 1][1]), CONSTRAINT b CHECK length(a) > 0, " +
		"CONSTRAINT c ASSUME a = '', PROJECTION p (SELECT a, b)) ENGINE = MergeTree ORDER BY (a, b)"
	assert.Equal(t, []constraint{{"`we\\`ird, (x`", "(a != 'po),ison\\'s') AND (b >= [0, 1][1])"}, {"b", "length(a) > 0"}}, constraintsOf(definition))
	for i := range definition {
		constraintsOf(definition[:i]) // whatever a server says
	}
	assert.Empty(t, slices.Concat(constraintsOf(""), constraintsOf("CREATE TABLE t (a String) ENGINE = Log")))
}
