package decode_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/streamer/decode"
)

func appendType(rows *decode.Rows, v string) {
	e := decode.Event{Type: []byte(v)}
	rows.Append(at(1, 1), 0, &e)
}

// typeAt is the type of row i, as ClickHouse will read it.
func typeAt(rows *decode.Rows, i int) string { return rows.Type.Values[rows.Type.Keys[i]] }

// Values that meet in one slot of the memo must not be taken for each other:
// same length, same outer and middle bytes.
func TestLookalikesAreDistinguished(t *testing.T) {
	t.Parallel()
	values := []string{"", "a", "aa", "axxbxxc", "ayybyyc", "axxbxxd", "é", strings.Repeat("a", 1000), strings.Repeat("a", 1064)}
	random := rand.New(rand.NewPCG(1, 2))
	rows := new(decode.Rows)
	var want []string
	for range 10_000 {
		v := values[random.IntN(len(values))]
		want = append(want, v)
		appendType(rows, v)
	}
	assert.ElementsMatch(t, values, rows.Type.Values, "each once")
	for i, v := range want {
		require.Equal(t, v, typeAt(rows, i))
	}
}

func TestADictionaryHolds65536ValuesAndThenIsFull(t *testing.T) {
	t.Parallel()
	const most = 1 << 16
	rows := new(decode.Rows)
	for i := range most {
		require.False(t, rows.Full(), "at %d values", i)
		appendType(rows, fmt.Sprint(i))
	}
	assert.True(t, rows.Full())
	assert.Len(t, rows.Type.Values, most)
	for i := range most {
		require.Equal(t, fmt.Sprint(i), typeAt(rows, i))
	}
	// Known values, the very last among them, are found again through memo and map.
	for _, i := range []int{0, 1, most - 2, most - 1, most - 1, 0} {
		appendType(rows, fmt.Sprint(i))
		assert.Equal(t, fmt.Sprint(i), typeAt(rows, rows.Len()-1))
	}
	rows.Reset()
	assert.False(t, rows.Full())
	assert.Zero(t, rows.Bytes())
	appendType(rows, "again")
	assert.Equal(t, "again", typeAt(rows, 0))
}

func TestEnvironmentsFillADictionaryToo(t *testing.T) {
	t.Parallel()
	rows := new(decode.Rows)
	for i := range 1 << 16 {
		e := decode.Event{Environment: fmt.Append(nil, i)}
		rows.Append(at(1, 1), 0, &e)
	}
	assert.True(t, rows.Full())
}
