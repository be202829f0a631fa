package event_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/testenv"
	"diehard/shared/event"
)

// BenchmarkPublish compares ways to write many events at once; the choice in
// columns.go is by its figures.
func BenchmarkPublish(b *testing.B) {
	env := testenv.New(b)
	conn, err := pgx.Connect(b.Context(), env.PostgresURL)
	require.NoError(b, err)
	b.Cleanup(func() { _ = conn.Close(context.WithoutCancel(b.Context())) })
	ways := []struct {
		name  string
		write func(context.Context, *pgx.Conn, []event.Event) error
	}{
		{"unnest", func(ctx context.Context, conn *pgx.Conn, events []event.Event) error {
			return event.Publish(ctx, onlyExec{conn}, events...)
		}},
		{"copy", copyFrom},
		{"values", values},
	}
	for _, n := range []int{1, 10, 100, 1000, 10_000} {
		events := make([]event.Event, n)
		for i := range events {
			events[i] = event.Event{Type: "order_paid", Environment: "Bench", Context: json.RawMessage(benchContext)}
		}
		for _, way := range ways {
			if way.name == "values" && n > 1000 {
				continue // more parameters than a statement may have
			}
			b.Run(fmt.Sprintf("%s/%d", way.name, n), func(b *testing.B) {
				for b.Loop() {
					require.NoError(b, way.write(b.Context(), conn, events))
				}
				b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "events/s")
			})
			_, err := conn.Exec(b.Context(), "TRUNCATE outbox")
			require.NoError(b, err)
		}
	}
}

// onlyExec hides that a connection can COPY.
type onlyExec struct{ event.DB }

const benchContext = `{"order_id":123456,"customer":"e10adc3949ba59abbe56e057f20f883e","total":99.5,"currency":"EUR","items":3,` +
	`"channel":"web","ip":"192.0.2.17","note":"the quick brown fox jumps over the lazy dog","campaign":"autumn-17"}`

var columns = []string{"id", "event_type", "event_date_time", "environment", "event_context", "metadata_version", "trace_context"}

func arguments(e event.Event) ([]any, error) {
	e, err := event.New(e.Context, event.WithType(e.Type), event.WithEnvironment(e.Environment))
	return []any{[16]byte(e.ID), e.Type, e.DateTime, e.Environment, []byte(e.Context), e.MetadataVersion, nil}, err
}

func copyFrom(ctx context.Context, conn *pgx.Conn, events []event.Event) error {
	_, err := conn.CopyFrom(ctx, pgx.Identifier{event.Table}, columns, pgx.CopyFromSlice(len(events), func(i int) ([]any, error) {
		return arguments(events[i])
	}))
	return err
}

func values(ctx context.Context, conn *pgx.Conn, events []event.Event) error {
	var sql strings.Builder
	var all []any
	sql.WriteString("INSERT INTO outbox (" + strings.Join(columns, ", ") + ") VALUES ")
	for i, e := range events {
		row, err := arguments(e)
		if err != nil {
			return err
		}
		if i > 0 {
			sql.WriteByte(',')
		}
		n := len(all)
		fmt.Fprintf(&sql, "($%d,$%d,$%d,$%d,$%d,$%d,$%d)", n+1, n+2, n+3, n+4, n+5, n+6, n+7)
		all = append(all, row...)
	}
	_, err := conn.Exec(ctx, sql.String(), all...)
	return err
}
