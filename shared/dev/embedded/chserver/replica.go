package chserver

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"
)

// replica is one listener. Several listeners on one engine look like the replicas
// of a ClickHouse Cloud service: each has its own system.processes, sees inserts
// through another one after a lag, and shows Shared engines in system.tables.
//
// A part that was inserted through another replica is hidden by a filter on _part
// (additional_table_filters); merges are stopped while parts are hidden.
type replica struct {
	server   *server
	registry registry

	mu      sync.Mutex
	stopped bool               // by SYSTEM STOP FETCHES
	hidden  map[part]time.Time // until when
}

// part is an active part of a table.
type part struct{ database, table, name string }

// isReplicated reports whether the server has several listeners.
func (s *server) isReplicated() bool { return len(s.replicas) > 1 }

// query rewrites the system tables that differ between replicas.
func (r *replica) query(sql string) string {
	if strings.Contains(sql, "processes") {
		sql = replaceTable(sql, "processes", r.registry.table())
	}
	if r.server.isReplicated() && strings.Contains(sql, "tables") {
		sql = replaceTable(sql, "tables", "(SELECT * REPLACE (if(engine LIKE '%MergeTree', concat('Shared', engine), engine) AS engine) FROM system.tables)")
	}
	return sql
}

// fetch runs SYSTEM STOP FETCHES, START FETCHES or SYNC REPLICA. It reports false
// for any other statement.
func (r *replica) fetch(sql string) (bool, error) {
	l := &lexer{sql: sql}
	words := []string{strings.ToUpper(l.next().text), strings.ToUpper(l.next().text), strings.ToUpper(l.next().text)}
	switch strings.Join(words, " ") {
	case "SYSTEM STOP FETCHES":
		r.mu.Lock()
		defer r.mu.Unlock()
		r.stopped = true
		return true, nil
	case "SYSTEM START FETCHES":
		r.mu.Lock()
		r.stopped = false
		r.mu.Unlock()
		return true, r.sync()
	case "SYSTEM SYNC REPLICA":
		return true, r.sync()
	default:
		return false, nil
	}
}

// sync makes every part visible, as select_sequential_consistency asks for.
func (r *replica) sync() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped && len(r.hidden) > 0 {
		return newException(proto.ErrReplicaIsNotInQuorum, "REPLICA_IS_NOT_IN_QUORUM",
			"DB::Exception: Replica does not have parts that were written to other replicas, and fetches are stopped")
	}
	clear(r.hidden)
	return nil
}

// isBehind reports whether an insert through another replica is not visible at once.
func (r *replica) isBehind() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopped || r.server.lag > 0
}

// filters returns the value of additional_table_filters that hides what has not
// arrived, "" if everything has.
func (r *replica) filters() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.stopped {
		maps.DeleteFunc(r.hidden, func(_ part, until time.Time) bool { return time.Now().After(until) })
	}
	tables := map[string][]string{}
	for p := range r.hidden {
		table := p.database + "." + p.table
		tables[table] = append(tables[table], quote(p.name))
	}
	var filters []string
	for _, table := range slices.Sorted(maps.Keys(tables)) {
		slices.Sort(tables[table])
		filters = append(filters, quote(table)+": "+quote("_part NOT IN ("+strings.Join(tables[table], ", ")+")"))
	}
	if len(filters) == 0 {
		return ""
	}
	return "{" + strings.Join(filters, ", ") + "}"
}

// hide hides parts until they have arrived.
func (r *replica) hide(parts []part) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hidden == nil {
		r.hidden = map[part]time.Time{}
	}
	for _, p := range parts {
		r.hidden[p] = time.Now().Add(r.server.lag)
	}
}

// insert runs an INSERT and hides its parts from the replicas that are behind.
func (r *replica) insert(run func() error) error {
	s := r.server
	behind := slices.DeleteFunc(slices.Clone(s.replicas), func(other *replica) bool { return other == r || !other.isBehind() })
	if len(behind) == 0 {
		return run()
	}
	s.inserting.Lock() // parts that appear are this insert's
	defer s.inserting.Unlock()
	if err := s.root.exec("SYSTEM STOP MERGES"); err != nil {
		return err
	}
	before, err := s.parts()
	if err != nil {
		return err
	}
	errInsert := run()
	after, err := s.parts()
	if err != nil {
		return err
	}
	added := slices.DeleteFunc(after, func(p part) bool { return slices.Contains(before, p) })
	for _, other := range behind {
		other.hide(added)
	}
	s.mergeLater()
	return errInsert
}

// mergeLater starts merges as soon as no part is hidden.
func (s *server) mergeLater() {
	if !s.merging.CompareAndSwap(false, true) {
		return
	}
	s.serving.Go(func() {
		defer s.merging.Store(false)
		for !s.stopping.Load() {
			s.inserting.Lock()
			hidden := slices.ContainsFunc(s.replicas, func(r *replica) bool { return r.filters() != "" })
			if !hidden {
				if err := s.root.exec("SYSTEM START MERGES"); err != nil {
					s.log.Error("start merges", "error", err)
				}
				s.inserting.Unlock()
				return
			}
			s.inserting.Unlock()
			<-time.After(killPause)
		}
	})
}

// parts lists the active parts of all tables of users.
func (s *server) parts() ([]part, error) {
	var parts []part
	err := s.root.query("SELECT database, table, name FROM system.parts WHERE active AND database != 'system'"+whole, nil, func(native []byte) error {
		table, err := stringTable(native)
		if err != nil {
			return fmt.Errorf("list parts: %w", err)
		}
		for i := range table[0] {
			parts = append(parts, part{table[0][i], table[1][i], table[2][i]})
		}
		return nil
	})
	return parts, err
}
