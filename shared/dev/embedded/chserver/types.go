package chserver

import (
	"fmt"
	"strconv"
	"strings"
)

// columnType knows how many bytes a column of a ClickHouse type takes.
type columnType struct {
	kind  typeKind
	size  int           // bytes per row, of kindFixed
	elems []*columnType // of the kinds that contain other types
}

type typeKind uint8

const (
	kindFixed typeKind = iota
	kindString
	kindNullable
	kindArray
	kindTuple
	kindLowCardinality
	kindVariant
	kindDynamic // elems are known once the prefix was read
	kindJSON    // as a string
)

var fixedSizes = map[string]int{
	"Bool": 1, "Int8": 1, "UInt8": 1, "Enum8": 1, "Nothing": 1,
	"Int16": 2, "UInt16": 2, "Enum16": 2, "Date": 2, "BFloat16": 2,
	"Int32": 4, "UInt32": 4, "Float32": 4, "Date32": 4, "DateTime": 4, "Time": 4, "IPv4": 4, "Decimal32": 4,
	"Int64": 8, "UInt64": 8, "Float64": 8, "DateTime64": 8, "Time64": 8, "Decimal64": 8,
	"Int128": 16, "UInt128": 16, "UUID": 16, "IPv6": 16, "Decimal128": 16,
	"Int256": 32, "UInt256": 32, "Decimal256": 32,
}

// geoTypes are names for compositions of other types.
var geoTypes = map[string]string{
	"Point":           "Tuple(Float64, Float64)",
	"Ring":            "Array(Point)",
	"LineString":      "Array(Point)",
	"Polygon":         "Array(Ring)",
	"MultiLineString": "Array(LineString)",
	"MultiPolygon":    "Array(Polygon)",
}

// parseType reads a type's name, such as Map(String, Array(UInt8)).
func parseType(name string) (*columnType, error) {
	base, args := splitType(name)
	if size, ok := fixedSizes[base]; ok {
		return &columnType{kind: kindFixed, size: size}, nil
	}
	if strings.HasPrefix(base, "Interval") {
		return &columnType{kind: kindFixed, size: 8}, nil
	}
	if geo, ok := geoTypes[base]; ok {
		return parseType(geo)
	}
	switch base {
	case "JSON":
		return &columnType{kind: kindJSON}, nil
	case "Dynamic":
		return &columnType{kind: kindDynamic}, nil
	case "String":
		return &columnType{kind: kindString}, nil
	case "FixedString":
		return fixedString(args)
	case "Decimal":
		return decimal(args)
	case "SimpleAggregateFunction":
		if len(args) == 2 {
			return parseType(args[1])
		}
	default:
		return parseComposite(base, args)
	}
	return nil, fmt.Errorf("type %s: cannot read", name)
}

func parseComposite(base string, args []string) (*columnType, error) {
	elems := make([]*columnType, len(args))
	for i, arg := range args {
		if base == "Tuple" || base == "Nested" {
			arg = withoutName(arg)
		}
		var err error
		if elems[i], err = parseType(arg); err != nil {
			return nil, err
		}
	}
	tuple := &columnType{kind: kindTuple, elems: elems}
	switch {
	case base == "Tuple" && len(args) == 0:
		return &columnType{kind: kindFixed, size: 1}, nil
	case base == "Tuple":
		return tuple, nil
	case base == "Variant":
		return &columnType{kind: kindVariant, elems: elems}, nil
	case base == "Nested", base == "Map" && len(args) == 2:
		return &columnType{kind: kindArray, elems: []*columnType{tuple}}, nil
	case base == "Array" && len(args) == 1:
		return &columnType{kind: kindArray, elems: elems}, nil
	case base == "Nullable" && len(args) == 1:
		return &columnType{kind: kindNullable, elems: elems}, nil
	case base == "LowCardinality" && len(args) == 1:
		return lowCardinality(elems[0]), nil
	}
	return nil, fmt.Errorf("type %s", base)
}

// lowCardinality stores its dictionary without the NULL mask of its values.
func lowCardinality(of *columnType) *columnType {
	if of.kind == kindNullable {
		of = of.elems[0]
	}
	return &columnType{kind: kindLowCardinality, elems: []*columnType{of}}
}

func fixedString(args []string) (*columnType, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("type FixedString: length missing")
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, fmt.Errorf("type FixedString: %w", err)
	}
	return &columnType{kind: kindFixed, size: n}, nil
}

func decimal(args []string) (*columnType, error) {
	if len(args) == 0 {
		return nil, fmt.Errorf("type Decimal: precision missing")
	}
	precision, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, fmt.Errorf("type Decimal: %w", err)
	}
	size := 32
	switch {
	case precision <= 9:
		size = 4
	case precision <= 18:
		size = 8
	case precision <= 38:
		size = 16
	}
	return &columnType{kind: kindFixed, size: size}, nil
}

// splitType separates Name(arg, arg) at its outermost commas.
func splitType(name string) (base string, args []string) {
	open := strings.IndexByte(name, '(')
	if open < 0 || !strings.HasSuffix(name, ")") {
		return name, nil
	}
	base = name[:open]
	body := name[open+1 : len(name)-1]
	l := &lexer{sql: body}
	start := 0
	for t := l.next(); t.kind != tokenEnd; t = l.next() {
		switch {
		case t.punct("("):
			l.skipGroup()
		case t.punct(","):
			args = append(args, strings.TrimSpace(body[start:t.start]))
			start = t.end
		}
	}
	if strings.TrimSpace(body) != "" {
		args = append(args, strings.TrimSpace(body[start:]))
	}
	return base, args
}

// withoutName drops an element's name: "a UInt8" is a UInt8.
func withoutName(elem string) string {
	l := &lexer{sql: elem}
	l.next()
	if second := l.peek(); second.kind == tokenWord {
		return elem[second.start:]
	}
	return elem
}

// skipPrefix passes the state that stands before all data of a column.
func (t *columnType) skipPrefix(c *cursor) error {
	switch t.kind {
	case kindLowCardinality:
		return c.skip(8) // version of the key serialization
	case kindJSON:
		return skipVersion(c, jsonAsString)
	case kindDynamic:
		return t.skipDynamicPrefix(c)
	case kindVariant:
		if err := skipVersion(c, variantBasic); err != nil {
			return err
		}
		return t.skipElemPrefixes(c)
	default:
		return t.skipElemPrefixes(c)
	}
}

// skipData passes a column's data.
func (t *columnType) skipData(c *cursor, rows int) error {
	switch t.kind {
	case kindString, kindJSON:
		return c.skipStrings(rows)
	case kindNullable:
		if err := c.skip(rows); err != nil {
			return err
		}
		return t.elems[0].skipData(c, rows)
	case kindArray:
		return t.skipArray(c, rows)
	case kindTuple:
		for _, elem := range t.elems {
			if err := elem.skipData(c, rows); err != nil {
				return err
			}
		}
		return nil
	case kindLowCardinality:
		return t.skipLowCardinality(c, rows)
	case kindVariant:
		return t.skipVariant(c, rows)
	case kindDynamic:
		return t.skipDynamic(c, rows)
	default:
		return c.skip(t.size * rows)
	}
}

// skipArray passes the end offset of every row, then the elements of all rows.
func (t *columnType) skipArray(c *cursor, rows int) error {
	if rows == 0 {
		return t.elems[0].skipData(c, 0)
	}
	if err := c.skip(8 * (rows - 1)); err != nil {
		return err
	}
	total, err := c.uint64()
	if err != nil {
		return err
	}
	return t.elems[0].skipData(c, int(total))
}

// skipLowCardinality passes the dictionary and the indexes into it.
func (t *columnType) skipLowCardinality(c *cursor, rows int) error {
	if rows == 0 {
		return nil
	}
	const hasKeys = 1 << 9
	flags, err := c.uint64()
	if err != nil {
		return err
	}
	if flags&hasKeys != 0 {
		keys, err := c.uint64()
		if err != nil {
			return err
		}
		if err := t.elems[0].skipData(c, int(keys)); err != nil {
			return err
		}
	}
	indexes, err := c.uint64()
	if err != nil {
		return err
	}
	width := 1 << (flags & 0xff)
	return c.skip(width * int(indexes))
}
