package decode

// maxDict is the number of distinct values a Dict can hold: keys are 16 bits wide.
const maxDict = 1 << 16

// memoSize is the number of slots of the direct-mapped memo in front of the map.
const memoSize = 64

// Dict is a dictionary-encoded string column, the shape of a LowCardinality(String).
//
// Values holds the distinct values in order of appearance, Keys one index into
// it per row. Both stay valid until the next Reset.
type Dict struct {
	Values []string
	Keys   []uint16

	index map[string]uint16
	memo  [memoSize]uint16 // key+1 of the value last seen in this slot
	bytes int              // of Values
}

// append adds a row. The caller must have checked Full.
func (d *Dict) append(v []byte) {
	slot := &d.memo[memoSlot(v)]
	if k := int(*slot) - 1; k >= 0 && d.Values[k] == string(v) {
		d.Keys = append(d.Keys, uint16(k)) //nolint:gosec // k < maxDict
		return
	}
	k, ok := d.index[string(v)]
	if !ok {
		k = d.add(string(v))
	}
	if k < maxDict-1 { // key+1 must fit
		*slot = k + 1
	}
	d.Keys = append(d.Keys, k)
}

func (d *Dict) add(v string) uint16 {
	if d.index == nil {
		d.index = make(map[string]uint16)
	}
	k := uint16(len(d.Values)) //nolint:gosec // full() keeps it below maxDict
	d.Values = append(d.Values, v)
	d.index[v] = k
	d.bytes += len(v)
	return k
}

// memoSlot spreads values by length and outer bytes, which tell event types apart well enough.
func memoSlot(v []byte) int {
	n := len(v)
	if n == 0 {
		return 0
	}
	return (n*7 + int(v[0])*3 + int(v[n-1])*5 + int(v[n/2])) & (memoSize - 1)
}

// full reports that the next row might not find a key.
func (d *Dict) full() bool { return len(d.Values) >= maxDict }

func (d *Dict) reset() {
	clear(d.index)
	clear(d.Values) // let go of the strings
	d.Values, d.Keys = d.Values[:0], d.Keys[:0]
	d.memo = [memoSize]uint16{}
	d.bytes = 0
}
