package chserver

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// running is a query from its arrival to its last byte.
type running struct {
	id, user, address, sql string

	number  uint64 // unique in this process
	started time.Time
	done    chan struct{} // closed when the query has ended, or can no longer execute
	ended   sync.Once     // guards closing done

	mu    sync.Mutex
	state queryState
}

type queryState uint8

const (
	stateWaiting   queryState = iota // an INSERT that waits for its rows
	stateExecuting                   // in the engine
	stateKilled                      // by KILL QUERY, or because its client disconnected
)

// begin starts the execution, unless the query was killed before.
func (r *running) begin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == stateKilled {
		return cancelled()
	}
	r.state = stateExecuting
	return nil
}

// kill marks the query as killed. It reports whether the query was still
// waiting, and so will never execute.
func (r *running) kill() (wasWaiting bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wasWaiting = r.state == stateWaiting
	r.state = stateKilled
	return wasWaiting
}

func (r *running) killed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state == stateKilled
}

// marker ends the text that the engine sees, so that the query can be found in
// the engine's own list, which knows nothing of client query ids.
func (r *running) marker() string { return fmt.Sprintf("-- query %d", r.number) }

func cancelled() error {
	return newException(proto.ErrQueryWasCancelled, "QUERY_WAS_CANCELLED", "DB::Exception: Query was cancelled")
}

// registry holds the queries of all clients. Queries whose rows are still on
// their way are unknown to the engine, hence system.processes is served from here.
type registry struct {
	mu      sync.Mutex
	queries map[string]*running
}

// maxShownQuery is how much of a query's text system.processes shows, in bytes.
// All of them together must stay below the engine's max_query_size.
const maxShownQuery = 1000

func (g *registry) add(q *running) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, found := g.queries[q.id]; found {
		return newException(proto.ErrQueryWithSameIDIsAlreadyRunning, "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
			fmt.Sprintf("DB::Exception: Query with id = %s is already running", q.id))
	}
	if g.queries == nil {
		g.queries = make(map[string]*running)
	}
	g.queries[q.id] = q
	return nil
}

// end removes the query from the registry and closes its done channel.
func (g *registry) end(q *running) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.queries[q.id] == q {
		delete(g.queries, q.id)
	}
	q.ended.Do(func() { close(q.done) })
}

func (g *registry) find(id string) *running {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.queries[id]
}

// table renders the running queries as a subquery with the columns of
// system.processes that make sense here.
func (g *registry) table() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var b strings.Builder
	b.WriteString("(SELECT * FROM values('is_initial_query UInt8, user String, query_id String, address String, " +
		"initial_user String, initial_query_id String, elapsed Float64, is_cancelled UInt8, query String'")
	for _, q := range g.queries {
		fmt.Fprintf(&b, ", (1, %s, %s, %s, %s, %s, %f, %d, %s)",
			quote(q.user), quote(q.id), quote(q.address), quote(q.user), quote(q.id), time.Since(q.started).Seconds(), boolInt(q.killed()),
			quote(q.sql[:min(len(q.sql), maxShownQuery)]))
	}
	b.WriteString("))")
	return b.String()
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

var stringEscaper = strings.NewReplacer(`\`, `\\`, `'`, `\'`)

// quote renders s as an SQL string.
func quote(s string) string { return "'" + stringEscaper.Replace(s) + "'" }
