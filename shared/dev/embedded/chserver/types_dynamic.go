package chserver

import (
	"fmt"

	"github.com/ClickHouse/ch-go/proto"
)

// Dynamic, Variant and JSON hold values of several types. They are read in the
// forms that outputSettings make the engine write.

// outputSettings hold for every query that does not say otherwise.
var outputSettings = map[string]string{
	"output_format_native_use_flattened_dynamic_and_json_serialization": "1",
	"output_format_native_write_json_as_string":                         "1",
}

const (
	dynamicFlattened = 3
	variantBasic     = 0
	jsonAsString     = 1
	variantNull      = 0xff
)

// skipVersion passes the version of a serialization, which must be the one expected.
func skipVersion(c *cursor, want uint64) error {
	version, err := c.uint64()
	if err == nil && version != want {
		err = newException(proto.ErrNotImplemented, "NOT_IMPLEMENTED",
			fmt.Sprintf("the embedded server does not read version %d of this serialization", version))
	}
	return err
}

// skipDynamicPrefix reads which types the column's values have.
func (t *columnType) skipDynamicPrefix(c *cursor) error {
	if err := skipVersion(c, dynamicFlattened); err != nil {
		return err
	}
	n, err := c.uvarint()
	if err != nil {
		return err
	}
	t.elems = t.elems[:0]
	for range n {
		name, err := c.string()
		if err != nil {
			return err
		}
		elem, err := parseType(name)
		if err != nil {
			return unknownType("a value of type " + name)
		}
		t.elems = append(t.elems, elem)
	}
	return t.skipElemPrefixes(c)
}

func (t *columnType) skipElemPrefixes(c *cursor) error {
	for _, elem := range t.elems {
		if err := elem.skipPrefix(c); err != nil {
			return err
		}
	}
	return nil
}

// skipDynamic passes the number of each row's type, and the values type by type.
// The number behind the last type stands for NULL.
func (t *columnType) skipDynamic(c *cursor, rows int) error {
	width := 1
	switch n := len(t.elems); {
	case n > 0xffff:
		width = 4
	case n > 0xff:
		width = 2
	}
	numbers, err := c.take(width * rows)
	if err != nil {
		return err
	}
	counts := make([]int, len(t.elems)+1)
	for ; len(numbers) > 0; numbers = numbers[width:] {
		number := 0
		for i := range width {
			number |= int(numbers[i]) << (8 * i)
		}
		if number >= len(counts) {
			return fmt.Errorf("block: type number %d of %d", number, len(t.elems))
		}
		counts[number]++
	}
	return t.skipCounted(c, counts)
}

// skipVariant passes the number of each row's type, and the values type by type.
func (t *columnType) skipVariant(c *cursor, rows int) error {
	numbers, err := c.take(rows)
	if err != nil {
		return err
	}
	counts := make([]int, variantNull+1)
	for _, number := range numbers {
		counts[number]++
	}
	return t.skipCounted(c, counts)
}

func (t *columnType) skipCounted(c *cursor, counts []int) error {
	for i, elem := range t.elems {
		if err := elem.skipData(c, counts[i]); err != nil {
			return err
		}
	}
	return nil
}
