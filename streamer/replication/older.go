package replication

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// A change is sent by what the publication was at its place in the WAL, and not at the
// commit. So a transaction that was open when the publication was read may commit later
// with rows that are not sent.

// olderTransactions are those of this database that began to write before transaction $1,
// which may be prepared. Locks are shown to every role, backend_xid is not.
const olderTransactions = `
	SELECT 'process ' || l.pid AS name FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
	WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND a.datname = pg_catalog.current_database()
	  AND age(l.transactionid) > age($1::text::xid8::xid)
	UNION SELECT 'prepared transaction ' || gid FROM pg_catalog.pg_prepared_xacts
	WHERE database = pg_catalog.current_database() AND age(transaction) > age($1::text::xid8::xid)`

// OlderTransactionsOver reports whether every transaction is over that was open when
// Preflight read the publication.
func (c *Control) OlderTransactionsOver(ctx context.Context) (over bool, err error) {
	if err = c.conn.QueryRow(ctx, `SELECT NOT EXISTS (`+olderTransactions+`)`, c.before).Scan(&over); err != nil {
		return false, classify(fmt.Errorf("look for open transactions: %w", err))
	}
	return over, nil
}

const (
	olderPoll = 100 * time.Millisecond
	olderWait = 10 * time.Second
)

// awaitOlder waits until the transactions are over that were open at Preflight.
//
// Errors: failure.Fatal, with their names, when they do not end soon.
func (c *Control) awaitOlder(ctx context.Context) error {
	for began := time.Now(); ; {
		over, err := c.OlderTransactionsOver(ctx)
		if err != nil || over {
			return err
		}
		if time.Since(began) > olderWait {
			return c.refuseOlder(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(olderPoll):
		}
	}
}

func (c *Control) refuseOlder(ctx context.Context) error {
	var names []string
	if err := c.conn.QueryRow(ctx, `SELECT coalesce(array_agg(name), '{}') FROM (`+olderTransactions+`) AS t`, c.before).Scan(&names); err != nil {
		return classify(fmt.Errorf("look for open transactions: %w", err))
	}
	return refuse("transactions that may have written events are still open: %s. Their events would be missed: end them, and run it once more", strings.Join(names, ", "))
}
