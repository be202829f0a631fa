package share_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"diehard/api/share"
)

// takeAll takes units of n until the pool refuses, and returns how many it got.
func takeAll(p *share.Pool, caller string, n int64) (got int64, err error) {
	for {
		if err = p.Take(caller, n); err != nil {
			return got, err
		}
		got += n
	}
}

func TestCallersLeaveUnitsToOthers(t *testing.T) {
	t.Parallel()
	p := share.NewPool(256)
	for i, want := range []int64{128, 64, 32, 16, 8, 4, 2, 1} {
		got, err := takeAll(p, fmt.Sprint(i), 1)
		assert.Equal(t, want, got, "caller %d", i)
		require.ErrorIs(t, err, share.ErrOwnShare)
	}
	require.NoError(t, p.Take("last", 1), "a caller without units gets the last one")
	require.ErrorIs(t, p.Take("later", 1), share.ErrExhausted)
	p.Return("0", 128)
	got, _ := takeAll(p, "later", 1)
	assert.Equal(t, int64(64), got)
}

func TestSmallPools(t *testing.T) {
	t.Parallel()
	p := share.NewPool(1)
	require.NoError(t, p.Take("a", 1))
	require.ErrorIs(t, p.Take("a", 1), share.ErrExhausted)
	p.Return("a", 1)
	require.NoError(t, p.Take("b", 1))

	p = share.NewPool(100)
	require.NoError(t, p.Take("a", 100), "all at once, if it holds nothing")
	p.Return("a", 100)
	require.ErrorIs(t, p.Take("a", 101), share.ErrExhausted)
}

func TestUnitsAreNeitherMadeNorLost(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 1000).Draw(t, "size")
		p := share.NewPool(size)
		type hold struct {
			caller string
			n      int64
		}
		var holds []hold
		var held int64
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			if len(holds) > 0 && rapid.Bool().Draw(t, "return") {
				i := rapid.IntRange(0, len(holds)-1).Draw(t, "which")
				p.Return(holds[i].caller, holds[i].n)
				held -= holds[i].n
				holds = append(holds[:i], holds[i+1:]...)
			} else {
				h := hold{rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "caller"), rapid.Int64Range(1, size).Draw(t, "n")}
				if p.Take(h.caller, h.n) == nil {
					holds = append(holds, h)
					held += h.n
				}
			}
			if p.Free() != size-held || p.Free() < 0 {
				t.Fatalf("%d free of %d with %d held", p.Free(), size, held)
			}
		}
	})
}
