package postgres

// BehindPooler reports that a connection pooler answers at the address. It is known
// from the first connection on.
func (p *Pool) BehindPooler() bool { return p.pooler.Load() }
