package link

import "encoding/binary"

// RoundTrips is how often data has gone from the near end to the far one and back, one after
// the other: all that is sent before an answer has come belongs to one round trip. Packets that
// only acknowledge do not count. Where connections take turns it is the sum of theirs.
func (l *Link) RoundTrips() int64 { return l.trips[Near].Load() }

// tripOf is the number of the round trip that a packet belongs to, 0 for none. Each end knows
// the latest one that it has heard of.
func (l *Link) tripOf(from End, content []byte) int64 {
	if !carriesData(content) {
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

// carriesData reports whether a packet is TCP over IPv4 with data.
// Source: RFC 791, Internet Header Format; RFC 9293, Header Format.
func carriesData(packet []byte) bool {
	const tcp = 6
	if len(packet) < 40 || packet[0]>>4 != 4 || packet[9] != tcp {
		return false
	}
	ip := int(packet[0]&15) * 4
	if len(packet) < ip+20 {
		return false
	}
	return int(binary.BigEndian.Uint16(packet[2:])) > ip+int(packet[ip+12]>>4)*4
}
