package crash_test

import "time"

// cut resets every connection.
func (g group) cut() { g.each((*proxy).cut) }

// refuse ends every connection, and new ones at once.
func (g group) refuse(yes bool) { g.each(func(c *proxy) { c.refuse(yes) }) }

// keepBack holds what is sent, while connections seem to live: on every link, or
// only on those that are there now.
func (g group) keepBack(every bool, directions ...direction) {
	g.each(func(c *proxy) { c.keepBack(every, directions...) })
}

// release delivers what was held back, however old it is by now.
func (g group) release() { g.each((*proxy).release) }

// slow delays all data.
func (g group) slow(delay time.Duration) { g.each(func(c *proxy) { c.slow(delay) }) }

func (g group) each(do func(*proxy)) {
	for _, c := range g {
		do(c)
	}
}

func (c *proxy) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for l := range c.open {
		l.drop()
	}
}

func (c *proxy) refuse(yes bool) {
	c.mu.Lock()
	c.refuses = yes
	c.mu.Unlock()
	if yes {
		c.cut()
	}
}

func (c *proxy) keepBack(every bool, directions ...direction) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range directions {
		c.holds[d] = hold{ended: make(chan struct{}), older: everyLink}
		if !every {
			c.holds[d].older = c.laid
		}
	}
}

func (c *proxy) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for d, h := range c.holds {
		if h.ended != nil {
			close(h.ended)
			c.holds[d] = hold{}
		}
	}
}

func (c *proxy) slow(delay time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = delay
}
