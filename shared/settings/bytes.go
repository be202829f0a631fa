package settings

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a size. It is written as a number of bytes or with a unit: B, KiB,
// MiB, GiB, TiB (powers of 1024), or KB, MB, GB, TB (powers of 1000). Case and
// a space before the unit do not matter. Negative sizes do not exist.
type Bytes int64

// Units of size, in bytes.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var byteUnits = map[string]Bytes{
	"": 1, "b": 1,
	"kib": KiB, "mib": MiB, "gib": GiB, "tib": TiB,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
}

// UnmarshalText reads a size such as 8MiB, 64KB or 1048576.
func (b *Bytes) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	digits := len(s) - len(strings.TrimLeft(s, "0123456789."))
	unit, known := byteUnits[strings.ToLower(strings.TrimSpace(s[digits:]))]
	number, err := strconv.ParseFloat(s[:digits], 64)
	if err != nil || !known {
		return fmt.Errorf("%q is not a size such as 64KiB, 8MiB or 1048576", s)
	}
	size := number * float64(unit)
	if size >= math.MaxInt64 || size != math.Trunc(size) {
		return fmt.Errorf("%q is not a whole number of bytes below 8 EiB", s)
	}
	*b = Bytes(size)
	return nil
}

// String returns the size in the largest unit with at most two digits after
// the point: 8MiB, 1.5GiB, 1000B.
func (b Bytes) String() string {
	for _, u := range []struct {
		size Bytes
		name string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if b >= u.size || b <= -u.size {
			value := math.Round(float64(b)/float64(u.size)*100) / 100
			return strconv.FormatFloat(value, 'f', -1, 64) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}
