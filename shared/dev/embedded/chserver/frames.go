package chserver

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/go-faster/city"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// frameReader decompresses the frames that a client's block comes in. ch-go has
// such a reader too, but this one appends straight to the caller's buffer.
type frameReader struct {
	in   io.Reader
	raw  []byte
	zstd *zstd.Decoder // made when first needed
}

const (
	checksumSize    = 16
	frameHeaderSize = 9 // method, compressed size with this header, decompressed size
	maxFrameSize    = 1 << 30

	methodNone = 0x02
	methodLZ4  = 0x82
	methodZSTD = 0x90
)

// append adds the next frame's content to dst.
func (f *frameReader) append(dst []byte) ([]byte, error) {
	var head [checksumSize + frameHeaderSize]byte
	if _, err := io.ReadFull(f.in, head[:]); err != nil {
		return dst, fmt.Errorf("compressed frame: %w", err)
	}
	compressed := int(binary.LittleEndian.Uint32(head[17:]))
	size := int(binary.LittleEndian.Uint32(head[21:]))
	if compressed < frameHeaderSize || compressed > maxFrameSize || size > maxFrameSize {
		return dst, fmt.Errorf("compressed frame: sizes %d and %d are out of range", compressed, size)
	}
	f.raw = append(f.raw[:0], head[checksumSize:]...)
	f.raw = slices.Grow(f.raw, compressed)[:compressed]
	if _, err := io.ReadFull(f.in, f.raw[frameHeaderSize:]); err != nil {
		return dst, fmt.Errorf("compressed frame: %w", err)
	}
	sum := city.CH128(f.raw)
	if sum.Low != binary.LittleEndian.Uint64(head[0:]) || sum.High != binary.LittleEndian.Uint64(head[8:]) {
		return dst, fmt.Errorf("compressed frame: checksum does not match")
	}
	return f.decompress(dst, head[checksumSize], f.raw[frameHeaderSize:], size)
}

func (f *frameReader) decompress(dst []byte, method byte, src []byte, size int) ([]byte, error) {
	from := len(dst)
	dst = slices.Grow(dst, size)
	var n int
	var err error
	switch method {
	case methodNone:
		n = copy(dst[from:from+size], src)
	case methodLZ4:
		n, err = lz4.UncompressBlock(src, dst[from:from+size])
	case methodZSTD:
		return f.appendZSTD(dst, src, size)
	default:
		err = fmt.Errorf("method %#x is not supported", method)
	}
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes instead of %d", n, size)
	}
	if err != nil {
		return dst, fmt.Errorf("compressed frame: %w", err)
	}
	return dst[:from+size], nil
}

func (f *frameReader) appendZSTD(dst, src []byte, size int) ([]byte, error) {
	if f.zstd == nil {
		decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return dst, fmt.Errorf("compressed frame: %w", err)
		}
		f.zstd = decoder
	}
	from := len(dst)
	dst, err := f.zstd.DecodeAll(src, dst)
	if err == nil && len(dst) != from+size {
		err = fmt.Errorf("%d bytes instead of %d", len(dst)-from, size)
	}
	if err != nil {
		return dst, fmt.Errorf("compressed frame: %w", err)
	}
	return dst, nil
}
