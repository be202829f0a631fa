package crash_test

import (
	"time"
)

func (x *chaos) cutPostgres() bool   { return x.cut(x.w.network.postgres, "PostgreSQL") }
func (x *chaos) cutClickHouse() bool { return x.cut(x.w.network.clickhouse, "ClickHouse") }

// cut resets the connections and refuses new ones for a moment.
func (x *chaos) cut(to *way, name string) bool {
	c := to.some(x.rng)
	return x.during(&to.busy, between(x.rng, 0, time.Second), func() error {
		x.w.did("cut off "+name, false)
		c.refuse(true)
		return nil
	}, func() error {
		c.refuse(false)
		return nil
	})
}

func (x *chaos) stallPostgres() bool   { return x.stall(x.w.network.postgres, "PostgreSQL") }
func (x *chaos) stallClickHouse() bool { return x.stall(x.w.network.clickhouse, "ClickHouse") }

// stall makes connections half open: all seems well and nothing arrives. In the
// end everything arrives late, or nothing ever does.
func (x *chaos) stall(to *way, name string) bool {
	which := weighted(x.rng, []choice[[]direction]{
		{2, []direction{toServer, toStreamer}}, {1, []direction{toServer}}, {1, []direction{toStreamer}},
	})
	c, late, every := to.some(x.rng), x.rng.IntN(2) == 0, x.rng.IntN(2) == 0
	return x.during(&to.busy, between(x.rng, 100*time.Millisecond, 4*time.Second), func() error {
		x.w.did(map[bool]string{true: "delay ", false: "half-open "}[late]+name, false)
		c.keepBack(every, which...)
		return nil
	}, func() error {
		if !late {
			c.cut()
		}
		c.release()
		return nil
	})
}

// loseAnswers leaves the streamer without answers to inserts that are written.
func (x *chaos) loseAnswers() bool {
	c := x.w.network.clickhouse.some(x.rng)
	return x.during(&x.w.network.clickhouse.busy, between(x.rng, 200*time.Millisecond, time.Second), func() error {
		x.w.did("lose ClickHouse's answers", false)
		c.keepBack(true, toStreamer)
		return nil
	}, func() error {
		c.cut()
		c.release()
		return nil
	})
}

// strandInsert kills the streamer while what it sent to ClickHouse is still on its
// way, to arrive when another one has taken over.
func (x *chaos) strandInsert() bool {
	c := x.w.network.clickhouse.proxies
	return x.during(&x.w.network.clickhouse.busy, between(x.rng, 2*time.Second, 4*time.Second), func() error {
		c.keepBack(false, toServer)
		pause(x.ctx, between(x.rng, 0, 300*time.Millisecond))
		x.kill(x.streamers.holder(), "kill streamer, its insert comes late")
		return nil
	}, func() error {
		c.release()
		return nil
	})
}

// slowClickHouse lets a try of an insert take seconds.
func (x *chaos) slowClickHouse() bool {
	c := x.w.network.clickhouse.some(x.rng)
	return x.during(&x.w.network.clickhouse.busy, between(x.rng, time.Second, 3*time.Second), func() error {
		x.w.did("slow ClickHouse", false)
		c.slow(between(x.rng, 50*time.Millisecond, 300*time.Millisecond))
		return nil
	}, func() error {
		c.slow(0)
		return nil
	})
}
