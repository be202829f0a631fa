package ops

import (
	"math"
	"time"

	"github.com/jackc/pglogrepl"
)

// Lag is how far each stage is behind the end of PostgreSQL's WAL.
type Lag struct {
	WALEnd    string   `json:"wal_end"`
	Received  Distance `json:"received"`  // sent by PostgreSQL and here
	Decoded   Distance `json:"decoded"`   // whole transactions
	Flushed   Distance `json:"flushed"`   // durable in ClickHouse
	Confirmed Distance `json:"confirmed"` // acknowledged to PostgreSQL
	Retained  Distance `json:"retained"`  // what PostgreSQL keeps on disk for the slot
	Buffered  Buffered `json:"buffered"`  // in memory: read and not yet durable
}

// Distance is how far a position is behind the end of the WAL.
type Distance struct {
	LSN     string   `json:"lsn,omitempty"` // empty: unknown
	Bytes   int64    `json:"bytes"`
	Seconds *float64 `json:"seconds"`            // age of the oldest WAL behind it; nil: unknown
	AtLeast bool     `json:"at_least,omitempty"` // it is older, from before the streamer began to watch
}

// Buffered is what waits in memory.
type Buffered struct {
	Rows  int64 `json:"rows"`
	Bytes int64 `json:"bytes"`
}

// stages names the parts of l as metrics and the page do, in order.
func (l *Lag) stages() []namedDistance {
	return []namedDistance{
		{"received", &l.Received},
		{"decoded", &l.Decoded},
		{"flushed", &l.Flushed},
		{"confirmed", &l.Confirmed},
		{"retained", &l.Retained},
	}
}

type namedDistance struct {
	name string
	*Distance
}

// positions are those of the stages; 0 is unknown.
type positions struct {
	received, decoded, flushed, confirmed, retained pglogrepl.LSN
	rows, bytes                                     int64
}

// age is how old something is. At least: it is older than what is known of the past.
type age struct {
	time.Duration
	atLeast bool
}

// shortest is the least age that is worth telling when it is only a bound.
const shortest = 2 * time.Second

// lag measures the positions against the end of the WAL. What is confirmed is
// also flushed, although it may hold no rows.
func (p positions) lag(end pglogrepl.LSN, ageOf func(pglogrepl.LSN) age) Lag {
	distance := func(lsn pglogrepl.LSN) Distance {
		if lsn == 0 {
			return Distance{}
		}
		d := Distance{LSN: lsn.String(), Bytes: behind(end, lsn)}
		if d.Bytes == 0 {
			d.Seconds = new(float64)
		} else if a := ageOf(lsn); !a.atLeast || a.Duration >= shortest {
			seconds := math.Round(a.Seconds()*1000) / 1000
			d.Seconds, d.AtLeast = &seconds, a.atLeast
		}
		return d
	}
	return Lag{
		WALEnd:    end.String(),
		Received:  distance(p.received),
		Decoded:   distance(p.decoded),
		Flushed:   distance(max(p.flushed, p.confirmed)),
		Confirmed: distance(p.confirmed),
		Retained:  distance(p.retained),
		Buffered:  Buffered{Rows: p.rows, Bytes: p.bytes},
	}
}

const (
	// growthWindow is the time over which the growth of the retained WAL is measured.
	growthWindow = time.Minute
	// leastWindow is the shortest such time for a slot that is read: PostgreSQL moves
	// its restart_lsn once in 15 seconds, and each half must have seen such a step.
	leastWindow = 40 * time.Second
)

// growth watches how fast the WAL that is kept for the slot piles up. That is what
// max_slot_wal_keep_size limits: a transaction that never ends uses it up, too,
// although every event is confirmed.
type growth struct {
	points []growthPoint
}

type growthPoint struct {
	at    time.Time
	bytes int64
}

func (g *growth) add(at time.Time, bytes int64) {
	g.points = append(g.points, growthPoint{at, bytes})
	for len(g.points) > 2 && at.Sub(g.points[1].at) >= growthWindow {
		g.points = g.points[1:]
	}
}

// rate is in bytes per second. known is false while there are too few points.
type rate struct {
	bytes float64
	known bool
}

// rate compares the least of the window's younger half with that of the older
// half: so a peak is no growth. An inactive slot only grows,
// so two points are enough.
func (g *growth) rate(read bool) rate {
	n := len(g.points)
	if n < 2 || read && g.points[n-1].at.Sub(g.points[0].at) < leastWindow {
		return rate{}
	}
	middle := n / 2
	older, younger := least(g.points[:middle]), least(g.points[middle:])
	seconds := g.points[middle].at.Sub(g.points[0].at).Seconds()
	if seconds <= 0 {
		return rate{}
	}
	return rate{bytes: float64(younger-older) / seconds, known: true}
}

func least(points []growthPoint) int64 {
	bytes := points[0].bytes
	for _, p := range points {
		bytes = min(bytes, p.bytes)
	}
	return bytes
}

// WALHeadroom is how much WAL may still be written before PostgreSQL invalidates the slot.
type WALHeadroom struct {
	Limited bool     `json:"limited"` // max_slot_wal_keep_size is set
	Bytes   int64    `json:"bytes"`   // of WAL that may still be written; negative: the next checkpoint may invalidate it
	Growth  float64  `json:"growth_bytes_per_second"`
	Seconds *float64 `json:"seconds"` // at that growth; nil: never at that rate
}

// walHeadroom combines what PostgreSQL still grants the slot with the present growth.
func walHeadroom(slot *Slot, r rate) WALHeadroom {
	if slot == nil || slot.SafeBytes == nil {
		return WALHeadroom{Growth: r.bytes}
	}
	w := WALHeadroom{Limited: true, Bytes: *slot.SafeBytes, Growth: r.bytes}
	switch {
	case w.Bytes <= 0:
		w.Seconds = new(float64)
	case r.known && r.bytes >= 1:
		seconds := math.Round(float64(w.Bytes) / r.bytes)
		w.Seconds = &seconds
	}
	return w
}

// behind is how many bytes of WAL lie between lsn and end; 0 for an unknown lsn.
func behind(end, lsn pglogrepl.LSN) int64 {
	if lsn == 0 || lsn >= end {
		return 0
	}
	return int64(end - lsn) //nolint:gosec // a distance within one WAL
}
