package link

import "encoding/binary"

// RoundTrips is how often data has gone from the near end to the far one and back, one after
// the other: all that is sent before an answer has come belongs to one round trip. Packets that
// only acknowledge do not count. Where connections take turns it is the sum of theirs.
func (l *Link) RoundTrips() int64 { return l.trips[Near].Load() }

// tripOf is the number of the round trip that a packet belongs to, 0 for none. Each end knows
// the latest one that it has heard of.
func (l *Link) tripOf(from End, content []byte) int64 {
	if dataOf(content) <= 0 {
		return 0
	}
	if from == Far {
		return l.trips[Far].Load() + 1
	}
	return l.trips[Near].Load()
}

// arrived is called by one goroutine for each end.
func (l *Link) arrived(at End, trip int64) {
	if trip > l.trips[at].Load() {
		l.trips[at].Store(trip)
	}
}

// Segments is how many segments with data an end has sent, as a wire of the link's MTU carries them.
func (l *Link) Segments(from End) int64 { return l.segments[from].Load() }

// offloadHeader is what stands before each packet: flags and the type of segmentation, the size of
// the headers and of a segment, and where the checksum is.
// Source: Linux, virtio_net.h, virtio_net_hdr.
const offloadHeader = 10

// segmentsOf returns how many segments with data a packet becomes.
func segmentsOf(packet []byte) int64 {
	data := dataOf(packet)
	if data <= 0 {
		return 0
	}
	kind, size := packet[1], int(binary.NativeEndian.Uint16(packet[4:]))
	if kind == 0 || size == 0 {
		return 1
	}
	return int64((data + size - 1) / size)
}

// dataOf returns how many bytes of data a packet of TCP over IPv4 has.
// Source: RFC 791, Internet Header Format; RFC 9293, Header Format.
func dataOf(packet []byte) int {
	const tcp = 6
	if len(packet) < offloadHeader+40 {
		return 0
	}
	packet = packet[offloadHeader:]
	ip := int(packet[0]&15) * 4
	if packet[0]>>4 != 4 || packet[9] != tcp || len(packet) < ip+20 {
		return 0
	}
	return int(binary.BigEndian.Uint16(packet[2:])) - ip - int(packet[ip+12]>>4)*4
}
