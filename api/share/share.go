// Package share divides something limited among callers, so that one caller
// cannot use all of it.
package share

import (
	"errors"
	"sync"
)

// Errors of [Pool.Take].
var (
	ErrOwnShare  = errors.New("the caller holds its share")
	ErrExhausted = errors.New("nothing is free")
)

// Pool is a number of units, such as places or bytes. A caller may hold as many
// units as stay free: one caller alone gets half of them, and n callers that take
// all they can leave 1/(n+1) to the next one. A caller without units always gets
// what it asks for if that is free. Safe for concurrent use.
//
// Source: Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory
// Packet Switches", 1998.
type Pool struct {
	mu   sync.Mutex
	free int64
	held map[string]int64 // by caller, without zeros
}

// NewPool returns a pool of size units, all free.
func NewPool(size int64) *Pool {
	return &Pool{free: size, held: map[string]int64{}}
}

// Take gives n units to caller until [Pool.Return]. It does not wait.
func (p *Pool) Take(caller string, n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch held := p.held[caller]; {
	case n > p.free:
		return ErrExhausted
	case held > 0 && held+n > p.free-n:
		return ErrOwnShare
	}
	p.free -= n
	p.held[caller] += n
	return nil
}

// Return gives n units of caller back.
func (p *Pool) Return(caller string, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free += n
	if p.held[caller] -= n; p.held[caller] == 0 {
		delete(p.held, caller)
	}
}

// Free returns the number of free units.
func (p *Pool) Free() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.free
}
