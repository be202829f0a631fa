package decode

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// errTruncated is returned for a message that ends before its content does.
var errTruncated = errors.New("message is truncated")

// cursor reads a message with bounds checks; after the first error it returns zeros.
// It serves the rare messages; rows are walked by hand, see Decoder.insert.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) take(n int) []byte {
	if c.err != nil || n < 0 || len(c.b) < n {
		c.err = errTruncated
		return make([]byte, 8)
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u8() byte    { return c.take(1)[0] }
func (c *cursor) u16() uint16 { return binary.BigEndian.Uint16(c.take(2)) }
func (c *cursor) u32() uint32 { return binary.BigEndian.Uint32(c.take(4)) }
func (c *cursor) u64() uint64 { return binary.BigEndian.Uint64(c.take(8)) }

// str reads a zero-terminated string.
func (c *cursor) str() string {
	if c.err != nil {
		return ""
	}
	i := bytes.IndexByte(c.b, 0)
	if i < 0 {
		c.err = errTruncated
		return ""
	}
	v := string(c.b[:i])
	c.b = c.b[i+1:]
	return v
}
