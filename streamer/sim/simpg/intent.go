package simpg

import (
	"time"

	"github.com/jackc/pglogrepl"
)

// What the functions on diehard_intent do; see migrations.

const tableIntent = "diehard_intent"

var intentColumns = oids{tText, tInt8, tInt8, tLSN, tJSONB, tTime, tLSN, tTime}

func intentRow(row Row) [][]any {
	if row == nil {
		return nil
	}
	return one(row["system_id"], row["timeline"], row["epoch"], row["confirm_lsn"], row["intent"], row["unproved_since"], row["unproved_until"], row["written_at"])
}

// owns reports whether process $2 with the application name $3 holds slot $1.
func (q *query) owns() bool {
	slot := q.server.slots[q.text(0)]
	return slot != nil && slot.active != nil && int64(slot.active.pid) == q.int(1) && slot.active.application == q.text(2)
}

// writeIntent proves first and writes then; a claim may come in between.
func (q *query) writeIntent() ([][]any, error) {
	ours, end := q.owns(), q.server.end
	if !ours || q.text(4) != publicationState {
		return one(ours, publicationState, nil, end), nil
	}
	q.gap()
	if err := q.lock(tableIntent, q.text(0)); err != nil {
		return nil, err
	}
	row := q.row(tableIntent, q.text(0))
	if row == nil || row["epoch"] != q.int(5) {
		return one(ours, publicationState, false, end), nil
	}
	row["system_id"], row["timeline"], row["confirm_lsn"], row["intent"] = q.args[6], q.args[7], q.lsn(8), q.args[9]
	if q.args[9] == "null" {
		row["intent"] = nil
	}
	row["unproved_since"], row["unproved_until"], row["written_at"] = q.args[10], q.lsn(11), time.Now()
	if q.server.Intended != nil {
		defer q.server.Intended(q.ses.conn.RemoteAddr().String(), q.args[9])
	}
	return one(ours, publicationState, true, end), q.write(tableIntent, q.text(0), row)
}

// claimIntent raises the epoch, or makes the first row.
func (q *query) claimIntent() ([][]any, error) {
	if err := q.lock(tableIntent, q.text(0)); err != nil {
		return nil, err
	}
	row := q.row(tableIntent, q.text(0))
	if row == nil {
		slot := q.server.slots[q.text(0)]
		if slot == nil {
			return nil, nil
		}
		row = firstIntent(q.args[1], q.args[2], int64(1), slot.confirmed)
		row["unproved_since"] = time.Time{} // none of our programs has created the slot
	} else {
		row["epoch"] = asInt(row["epoch"]) + 1
	}
	return intentRow(row), q.write(tableIntent, q.text(0), row)
}

// creating is for a slot that is about to be made.
func (q *query) creating() ([][]any, error) {
	if err := q.lock(tableIntent, q.text(0)); err != nil {
		return nil, err
	}
	epoch := int64(1)
	if row := q.row(tableIntent, q.text(0)); row != nil {
		epoch = asInt(row["epoch"]) + 1
	}
	row := firstIntent(q.server.systemID, int64(q.server.timeline), epoch, 0)
	row["began"] = int64(q.server.xid) + 1
	return one(""), q.write(tableIntent, q.text(0), row)
}

// created is for one that was made.
func (q *query) created() ([][]any, error) {
	if err := q.lock(tableIntent, q.text(0)); err != nil {
		return nil, err
	}
	row := q.row(tableIntent, q.text(0))
	if row == nil || row["confirm_lsn"] != pglogrepl.LSN(0) {
		return one(""), nil
	}
	row["confirm_lsn"], row["written_at"] = q.lsn(1), time.Now()
	return one(""), q.write(tableIntent, q.text(0), row)
}

func firstIntent(system, timeline any, epoch int64, confirmed pglogrepl.LSN) Row {
	return Row{"system_id": system, "timeline": timeline, "epoch": epoch, "confirm_lsn": confirmed, "intent": nil, "unproved_since": nil, "unproved_until": pglogrepl.LSN(0), "written_at": time.Now()}
}

func asInt(v any) int64 {
	n, _ := v.(int64)
	return n
}
