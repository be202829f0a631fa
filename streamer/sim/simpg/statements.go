package simpg

import (
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pglogrepl"
)

const (
	publicationState = "16400 740 16410,741,16390"
	tableSlot        = "diehard_slot"
)

// statements are those of the streamer, the most specific first.
var statements = []statement{
	{
		has: "SELECT pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=)", columns: oids{tBool, tText}, // a session without a pooler
		run: func(*query) ([][]any, error) { return one(true, nil), nil },
	},
	{
		has: "pg_catalog.pg_get_userbyid(pg_catalog.min(o.owner))", columns: oids{tText, tText, tText}, // no stranger
		run: func(*query) ([][]any, error) { return one("10", nil, nil), nil },
	},
	{
		has:    "SELECT s.slot_name, coalesce(s.plugin, ''), coalesce(s.database, ''), s.active",
		params: oids{tText}, columns: oids{tText, tText, tText, tBool, tText, tText, tText, tLSN, tLSN, tInt8, tInt8, tInt8, tTime, tBool, tTexts},
		run: func(q *query) ([][]any, error) {
			slot := q.server.slots[q.text(0)]
			if slot == nil {
				return nil, nil
			}
			lag := int64(q.server.end - slot.confirmed)
			return one(slot.name, "pgoutput", "sim", slot.active != nil, "", "reserved", "", slot.confirmed-8, slot.confirmed, lag, lag+8, nil, nil, true, nil), nil
		},
	},
	{
		has:    "diehard_intent_write(",
		params: oids{tText, tInt4, tText, tText, tText, tInt8, tText, tInt8, tLSN, tJSONB, tTime, tLSN}, columns: oids{tBool, tText, tBool, tLSN},
		run: (*query).writeIntent,
	},
	{
		has:    "diehard_intent_claim(",
		params: oids{tText, tText, tInt8}, columns: intentColumns,
		run: (*query).claimIntent,
	},
	{
		has:    "diehard_intent_creating(",
		params: oids{tText}, columns: oids{tText},
		run: (*query).creating,
	},
	{
		has:    "diehard_intent_created(",
		params: oids{tText, tLSN}, columns: oids{tText},
		run: (*query).created,
	},
	{
		has:    "SELECT pg_catalog.pg_advisory_lock(",
		params: oids{tText}, columns: oids{tText},
		run: func(q *query) ([][]any, error) { return one(""), q.advisoryLock(q.text(0)) },
	},
	{
		has:    "SELECT pg_catalog.pg_try_advisory_lock(",
		params: oids{tText}, columns: oids{tBool},
		run: func(q *query) ([][]any, error) { return one(q.tryAdvisoryLock(q.text(0))), nil },
	},
	{
		has:    "WHERE l.locktype = 'advisory' AND l.granted",
		params: oids{tText, tText}, columns: oids{tText},
		run: func(q *query) ([][]any, error) { return one(q.text(1)), nil },
	},
	{
		has:    "SELECT pg_catalog.pg_advisory_unlock(",
		params: oids{tText}, columns: oids{tBool},
		run: func(q *query) ([][]any, error) { return one(q.advisoryUnlock(q.text(0))), nil },
	},
	{
		has:    "diehard_intent WHERE slot_name = $1",
		params: oids{tText}, columns: intentColumns,
		run: func(q *query) ([][]any, error) { return intentRow(q.row(tableIntent, q.text(0))), nil },
	},
	{
		has:    "SELECT s.active_pid = $2::int AND a.application_name = $3",
		params: oids{tText, tInt4, tText, tText}, columns: oids{tBool, tText},
		run: func(q *query) ([][]any, error) { return one(q.owns(), publicationState), nil },
	},
	{
		has: "SELECT pg_catalog.pg_current_wal_insert_lsn()", columns: oids{tLSN},
		run: func(q *query) ([][]any, error) { return one(q.server.end), nil },
	},
	{
		has:    "SELECT id FROM public.outbox WHERE",
		params: oids{tTime, tText}, columns: oids{tUUID},
		run: func(q *query) (ids [][]any, err error) {
			since, _ := q.args[0].(time.Time)
			delivered, _ := q.row(tableSlot, q.text(1))["delivered_since"].(time.Time)
			began, known := q.row(tableIntent, q.text(1))["began"].(int64)
			for _, r := range q.server.wal {
				if r.at.Before(since) || r.at.Before(delivered) && (!known || int64(r.xid) < began) {
					continue
				}
				for _, e := range r.events {
					ids = append(ids, []any{e.ID})
				}
			}
			return ids, nil
		},
	},
	{
		has: "ELSE current_setting('wal_level') END, pg_catalog.pg_is_in_recovery()", columns: oids{tText, tBool},
		run: func(*query) ([][]any, error) { return one("logical", false), nil },
	},
	{
		has: "SELECT current_setting('server_version_num')::int", columns: oids{tInt4},
		run: func(*query) ([][]any, error) { return one(int32(Version)), nil },
	},
	{
		has:    "FROM public.diehard_partitions WHERE state = 'detached'",
		params: oids{tText}, columns: oids{tTexts},
		run: func(*query) ([][]any, error) { return one([]string{}), nil },
	},
	{
		has:    "SELECT public.diehard_slot_missed(",
		params: oids{tText}, columns: oids{tText},
		run: func(*query) ([][]any, error) { return one(""), nil },
	},
	{
		has:    "SELECT current_setting('synchronous_standby_names')",
		params: oids{tText, tText, tText}, columns: oids{tText, tTexts, tTexts, tTexts, tTexts, tBool},
		run: func(*query) ([][]any, error) {
			none := []string{}
			return one("", none, none, none, none, false), nil
		},
	},
	{
		has:    "SELECT CASE c.relkind WHEN 'p' THEN 'table'",
		params: oids{tText}, columns: oids{tText},
		run: func(*query) ([][]any, error) { return one("table"), nil },
	},
	{
		has: "SELECT current_database()", columns: oids{tText},
		run: func(*query) ([][]any, error) { return one("sim"), nil },
	},
	{
		has: "SELECT EXISTS (SELECT FROM public.outbox)", columns: oids{tBool},
		run: func(q *query) ([][]any, error) {
			return one(slices.ContainsFunc(q.server.wal, func(r record) bool { return len(r.events) > 0 })), nil
		},
	},
	{
		has:    "pubinsert, pubupdate OR pubdelete OR pubtruncate",
		params: oids{tText}, columns: oids{tText, tText, tText, tBool, tBool, tBool, tTexts, tTexts, tBool},
		run: func(*query) ([][]any, error) {
			return one("1", "1", publicationState, true, false, true, []string{"public.outbox"}, []string{""}, false), nil
		},
	},
	{
		has:    "SELECT min(slot_name) FROM pg_catalog.pg_replication_slots",
		params: oids{tTexts, tText}, columns: oids{tText},
		run: func(*query) ([][]any, error) { return one(nil), nil },
	},
	{
		has:    "SELECT coalesce(array_agg(n ORDER BY n), '{}') FROM unnest($1::text[]) AS n",
		params: oids{tTexts, tText}, columns: oids{tTexts},
		run: func(*query) ([][]any, error) { return one([]string{}), nil },
	},
	{
		has:    "SELECT lsn FROM pg_catalog.pg_create_logical_replication_slot(",
		params: oids{tText}, columns: oids{tLSN},
		run: func(q *query) ([][]any, error) {
			name := q.text(0)
			if q.server.slots[name] != nil {
				return nil, &sqlError{pgerrcode.DuplicateObject, "replication slot already exists"}
			}
			q.server.slots[name] = &slot{name: name, confirmed: q.server.end}
			if q.server.Created != nil {
				began, _ := q.row(tableIntent, name)["written_at"].(time.Time)
				q.server.Created(name, q.server.end, began)
			}
			return one(q.server.end), nil
		},
	},
	{
		has:    "SELECT pg_catalog.pg_drop_replication_slot(",
		params: oids{tText}, columns: oids{tText},
		run: func(q *query) ([][]any, error) {
			_, err := q.server.slotOf(q.text(0))
			if err == nil {
				delete(q.server.slots, q.text(0))
			}
			return one(""), err
		},
	},
	{
		has:    "SELECT coalesce(publication_state, $2)",
		params: oids{tText, tText}, columns: oids{tText},
		run: func(q *query) ([][]any, error) {
			row := q.row(tableSlot, q.text(0))
			if row == nil {
				return nil, nil
			}
			return one(row["publication_state"]), nil
		},
	},
	{
		has:    "SELECT public.diehard_slot_record(",
		params: oids{tText, tText, tText, tBool}, columns: oids{tText},
		run: func(q *query) ([][]any, error) {
			if q.row(tableSlot, q.text(0)) != nil {
				return one(""), nil
			}
			row := Row{"publication_state": q.text(2), "delivered_since": time.Now()}
			return one(""), q.write(tableSlot, q.text(0), row)
		},
	},
	{
		has:    "SELECT public.diehard_slot_replace(",
		params: oids{tText, tText, tText, tBool}, columns: oids{tText},
		run: func(q *query) ([][]any, error) {
			row := Row{"publication_state": q.text(2), "delivered_since": time.Now()}
			return one(""), q.write(tableSlot, q.text(0), row)
		},
	},
	{
		has:    "SELECT coalesce(messages_from, '0/0') FROM public.diehard_slot",
		params: oids{tText}, columns: oids{tLSN},
		run: func(*query) ([][]any, error) { return one(pglogrepl.LSN(0)), nil },
	},
	{
		has:    "SELECT public.diehard_slot_messages(",
		params: oids{tText, tBool, tLSN}, columns: oids{tText},
		run: func(*query) ([][]any, error) { return one(""), nil },
	},
}

// replicationCommand answers what a walsender's grammar has besides START_REPLICATION.
func (ses *session) replicationCommand(word string, err *error) bool {
	s := ses.server
	name, rest, _ := strings.Cut(word, " ")
	switch name {
	case "IDENTIFY_SYSTEM":
		s.mu.Lock()
		values := []any{s.systemID, s.timeline, s.end.String(), "sim"}
		s.mu.Unlock()
		*err = ses.result(oids{tText, tInt4, tText, tText}, values)
	case "TIMELINE_HISTORY":
		*err = ses.result(oids{tText, tText}, []any{rest + ".history", s.timelineHistory()})
	default:
		return false
	}
	return true
}

func (s *Server) timelineHistory() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, h := range s.history {
		b.WriteString(strings.Join([]string{itoa(int(h.timeline)), h.lsn.String(), "no recovery target specified"}, "\t") + "\n")
	}
	return b.String()
}

// slotOf is the slot of a session that streams.
func (s *Server) slotOf(name string) (*slot, error) {
	slot := s.slots[name]
	switch {
	case slot == nil:
		return nil, &sqlError{pgerrcode.UndefinedObject, "replication slot \"" + name + "\" does not exist"}
	case slot.active != nil:
		return nil, &sqlError{pgerrcode.ObjectInUse, "replication slot \"" + name + "\" is active for PID " + itoa(int(slot.active.pid))}
	}
	return slot, nil
}

// Slot is what the slot has confirmed, 0 without the slot.
func (s *Server) Slot(name string) pglogrepl.LSN {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slot := s.slots[name]; slot != nil {
		return slot.confirmed
	}
	return 0
}

// Sessions is how many sessions have taken a slot.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// CreateSlot makes a slot at the end of the WAL.
func (s *Server) CreateSlot(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots[name] = &slot{name: name, confirmed: s.end}
}
