package sink

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	ours "diehard/shared/clickhouse"
)

// ViewError says that materialized views on a table of ours fail, and not the table itself.
type ViewError struct {
	// Views are their names with the database; several when it is not known which of them fails.
	Views []string
	// Refuses: every insert is refused, and none is written without ignoring the view.
	Refuses bool
	err     error
}

func (e *ViewError) Error() string {
	if len(e.Views) == 1 {
		return fmt.Sprintf("materialized view %s: %s", e.Views[0], e.err)
	}
	return fmt.Sprintf("one of the materialized views %s: %s", strings.Join(e.Views, ", "), e.err)
}

func (e *ViewError) Unwrap() error { return e.err }

var errTooSlow = errors.New("ClickHouse did not answer within CLICKHOUSE_INSERT_TIMEOUT although the rows are there")

// ignoreViews is sent with an insert that a view refuses, or may have refused, and with no other: an
// error of a view is to be heard.
var ignoreViews = clickhouse.Settings{
	"materialized_views_ignore_errors":                    1,
	"ignore_materialized_views_with_dropped_target_table": 1,
}

// register sends the query of an insert, whose data is to follow. A view that cannot be built, because
// its target is gone, refuses it: then it is registered to go on without.
func (s *Sink) register(ctx context.Context, table, query string, a InsertRequest) (ours.Insert, error) {
	settings := s.insertSettings(a.Token)
	if a.WithoutViews {
		maps.Copy(settings, ignoreViews)
	}
	insert, err := s.conn.PrepareInsert(ctx, a.QueryID, query, settings)
	if err == nil {
		return insert, nil
	}
	refusal := classify(err)
	if Code(refusal) == 0 {
		return nil, refusal
	}
	failed, err := RefusingViews(ctx, s.conn, table)
	if err != nil || failed == nil {
		return nil, refusal
	}
	maps.Copy(settings, ignoreViews)
	insert, err = s.conn.PrepareInsert(ctx, a.QueryID+"-without", query, settings)
	if err != nil {
		return nil, classify(err)
	}
	if a.ViewFailed != nil {
		a.ViewFailed(failed)
	}
	return insert, nil
}

// FailedViews says which views on table have failed with err, the error of an insert that was written; nil
// when there are none. An insert whose rows are there and that does not end in time is held up by a view. Of
// one whose connection was lost, or whose rows wait for replicas, nothing is known.
func (s *Sink) FailedViews(ctx context.Context, table string, err error) (*ViewError, error) {
	failed, message := &ViewError{err: errTooSlow}, ""
	ex, ok := errors.AsType[*clickhouse.Exception](err)
	switch tooSlow := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded); {
	case ok && Answered(err):
		failed.err, message = withoutValues(ex), ex.Message
	case ok || !tooSlow:
		return nil, nil
	}
	views, err := viewsOn(ctx, s.conn, table)
	if err != nil || len(views) == 0 {
		return nil, err
	}
	failed.Views = namedIn(message, views)
	return failed, nil
}

// RefusingViews returns the views on table for which every insert is refused; nil when there are none.
// ClickHouse is asked to build an insert, which writes nothing: with the views and without.
func RefusingViews(ctx context.Context, conn driver.Conn, table string) (*ViewError, error) {
	views, err := viewsOn(ctx, conn, table)
	if err != nil || len(views) == 0 {
		return nil, err
	}
	build := func(settings clickhouse.Settings) error {
		return conn.Exec(clickhouse.Context(ctx, clickhouse.WithSettings(settings)), "EXPLAIN PIPELINE INSERT INTO "+Quote(table)+" (event_type) SELECT '' ORDER BY ALL")
	}
	refusal := build(nil)
	if refusal == nil {
		return nil, nil
	}
	ex, ok := errors.AsType[*clickhouse.Exception](refusal)
	if !ok {
		return nil, fmt.Errorf("look for views that fail: %w", refusal)
	}
	if buildsWithout := build(ignoreViews) == nil; !buildsWithout { // it is not a view's
		return nil, nil
	}
	failed := &ViewError{Refuses: true, err: withoutValues(ex)}
	for _, v := range views {
		if v.lacksTarget(ctx, conn) {
			failed.Views = append(failed.Views, v.String())
		}
	}
	if failed.Views == nil {
		failed.Views = namedIn(ex.Message, views)
	}
	return failed, nil
}

// view names a materialized view.
type view struct{ database, name string }

func (v view) String() string { return v.database + "." + v.name }

// viewsOn lists the materialized views on a table.
func viewsOn(ctx context.Context, conn driver.Conn, table string) ([]view, error) {
	var databases, names []string
	err := conn.QueryRow(reading(ctx, 0), `SELECT any(dependencies_database), any(dependencies_table) FROM system.tables
		WHERE database = currentDatabase() AND name = {table:String}`, clickhouse.Named("table", table)).Scan(&databases, &names)
	if err != nil {
		return nil, fmt.Errorf("list the materialized views on %s: %w", table, classify(err))
	}
	views := make([]view, len(names))
	for i := range names {
		views[i] = view{databases[i], names[i]}
	}
	return views, nil
}

var targetOf = regexp.MustCompile("^CREATE MATERIALIZED VIEW \\S+ (?:ON CLUSTER \\S+ )?TO ((?:`[^`]+`|\\w+)\\.(?:`[^`]+`|\\w+))")

// lacksTarget reports whether the table that v writes to does not exist. For a user who may not know it says false.
func (v view) lacksTarget(ctx context.Context, conn driver.Conn) bool {
	var definition string
	err := conn.QueryRow(reading(ctx, 0), "SELECT any(create_table_query) FROM system.tables WHERE database = {database:String} AND name = {view:String}",
		clickhouse.Named("database", v.database), clickhouse.Named("view", v.name)).Scan(&definition)
	target := targetOf.FindStringSubmatch(definition)
	if err != nil || target == nil {
		return false
	}
	var exists uint8
	return conn.QueryRow(ctx, "EXISTS TABLE "+target[1]).Scan(&exists) == nil && exists == 0
}

// pushingTo is what ClickHouse adds to an error of a view.
const pushingTo = "while pushing to view "

// namedIn returns the view that a message of ClickHouse names, or all of them. What does not name one of
// them may be a value.
func namedIn(message string, views []view) (names []string) {
	text := ""
	if i := strings.LastIndex(message, pushingTo); i >= 0 {
		text = strings.ReplaceAll(message[i+len(pushingTo):], "`", "")
	}
	for _, v := range views {
		if rest, ok := strings.CutPrefix(text, v.String()); ok && (rest == "" || strings.ContainsAny(rest[:1], " .(:")) {
			return []string{v.String()}
		}
		names = append(names, v.String())
	}
	return names
}
