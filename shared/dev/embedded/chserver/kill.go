package chserver

import (
	"fmt"
	"time"
)

// kill answers KILL QUERY. The condition is evaluated by the engine over the
// registry. A query that waits for its rows will never execute; one in the engine
// is cancelled there if it is a SELECT, and otherwise left to its end.
func (c *client) kill(q *request, result *resultWriter) error {
	sql := c.replica.query("SELECT query_id, user, query FROM system.processes WHERE (" + q.statement.where + "\n)")
	var found [][]string
	err := c.session.query(sql, q.params, func(native []byte) (err error) {
		found, err = stringTable(native)
		return err
	})
	if err != nil {
		return err
	}
	columns := []columnInfo{{"kill_status", "String"}, {"query_id", "String"}, {"user", "String"}, {"query", "String"}}
	if err := result.begin(headerBlock(columns)); err != nil || len(found) == 0 {
		return err
	}
	var statuses, ids, users, queries []string
	for i, id := range found[0] {
		target := c.replica.registry.find(id)
		if target == nil || target == q.running {
			continue
		}
		statuses = append(statuses, c.replica.killOne(target, q.statement.mode))
		ids, users, queries = append(ids, id), append(users, found[1][i]), append(queries, found[2][i])
	}
	if len(ids) == 0 {
		return nil
	}
	block := blockHead(nil, len(columns), len(ids))
	for i, values := range [][]string{statuses, ids, users, queries} {
		block = blockColumn(block, columnHeader(nil, columns[i].name, columns[i].typ), stringColumn(values))
	}
	return c.out.data(block, q.compressed)
}

// killOne kills a query as far as mode says and returns what ClickHouse calls its status.
func (r *replica) killOne(target *running, mode string) string {
	if mode == "TEST" {
		return "unknown_status"
	}
	r.cancel(target)
	if mode != "SYNC" {
		return "waiting"
	}
	<-target.done
	return "finished"
}

// cancel stops a query: at once if it waits for rows, as soon as the engine lets
// go of it otherwise.
func (r *replica) cancel(target *running) {
	if target.kill() {
		r.registry.end(target)
		return
	}
	s := r.server
	s.serving.Go(func() {
		if err := s.killInEngine(target); err != nil {
			s.log.Error("cancel query", "query_id", target.id, "error", err)
		}
	})
}

// killPause is the time between tries to kill a query in the engine.
const killPause = 50 * time.Millisecond

// killInEngine kills the query until it ends, for it may have been on its way
// into the engine the first time.
func (s *server) killInEngine(target *running) error {
	session, err := s.engine.open()
	if err != nil {
		return err
	}
	defer session.close()
	sql := fmt.Sprintf("KILL QUERY WHERE endsWith(query, %s) ASYNC", quote(target.marker()))
	for {
		if err := session.exec(sql); err != nil {
			return err
		}
		select {
		case <-target.done:
			return nil
		case <-time.After(killPause):
		}
	}
}
