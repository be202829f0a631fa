package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/shared/event"
)

// waysToPublish publish an event of a type with a context, by the names that the table of
// shared/event/README.md gives them: it has one column for text and json, and one for messages.
func waysToPublish(env *testenv.Env, db *sql.DB, api string) map[string]func(ctx context.Context, kind, content string) error {
	ways := map[string]func(context.Context, string, string) error{}
	for name, publish := range waysOfFields(env, db, api) {
		ways[name] = func(ctx context.Context, kind, content string) error {
			return publish(ctx, fields{"event_type": kind, "event_context": content})
		}
	}
	asText, asJSON := ways["`publish_event`, text"], ways["`publish_event`, json"]
	for _, name := range []string{"`publish_event`, text", "`publish_event`, json", "Go, messages"} {
		delete(ways, name)
	}
	ways["`publish_event`, text or json"] = func(ctx context.Context, kind, content string) error {
		return errors.Join(asText(ctx, kind, content), asJSON(ctx, kind, content))
	}
	return ways
}

var errStatus = errors.New("refused by the api")

func postEvent(ctx context.Context, api, kind, body string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, api+"/events", strings.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", kind)
	request.Close = true // no idle connection outlives the test
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusAccepted {
		return nil
	}
	var problem struct {
		Errors []struct{ Field, Message string }
	}
	_ = json.NewDecoder(response.Body).Decode(&problem) // the status says enough
	err = fmt.Errorf("%w: %s", errStatus, response.Status)
	for _, e := range problem.Errors {
		err = fmt.Errorf("%w: %s %s", err, e.Field, e.Message)
	}
	return err
}

// named are the contexts of the table that are too long for it.
var named = map[string]string{
	"a blank on both sides": ` {"a": 1} `,
	"1,000 nested arrays":   strings.Repeat("[", 1000) + strings.Repeat("]", 1000),
	"1,001 nested arrays":   strings.Repeat("[", 1001) + strings.Repeat("]", 1001),
	"1 MiB":                 `"` + strings.Repeat("x", event.MaxContextBytes-2) + `"`,
	"1 MiB and a byte":      `"` + strings.Repeat("x", event.MaxContextBytes-1) + `"`,
	"not UTF-8":             "\"\xff\"",
}

// waysTable reads the table: the head, and the rows.
func waysTable(t *testing.T) (head []string, rows [][]string) {
	t.Helper()
	root, err := embedded.Root()
	require.NoError(t, err)
	readme, err := os.ReadFile(filepath.Join(root, "shared", "event", "README.md"))
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(readme), "<!-- tested: ways -->\n")
	require.True(t, found)
	table, _, _ := strings.Cut(rest, "\n\n")
	for i, line := range strings.Split(table, "\n") {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		switch i {
		case 0:
			head = cells
		case 1: // the rule under the head
		default:
			require.Len(t, cells, len(head), line)
			rows = append(rows, cells)
		}
	}
	return head, rows
}

// Every context is published in every way, and ClickHouse has of it what the table says.
func TestEveryWayKeepsWhatTheTableSays(t *testing.T) {
	t.Parallel()
	env := newEnv(t)
	start(t, env, withMessages)
	api := run(t, env, "api", "API_OPEN=true").address()
	db := stdlib.OpenDBFromPool(env.Pool)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	all := waysToPublish(env, db, api)
	head, rows := waysTable(t)
	require.Len(t, head, len(all)+1, "a column for every way")
	require.Greater(t, len(rows), 15)

	want := map[string]string{} // by event type
	total := 0
	for _, cells := range rows {
		content, long := named[cells[0]]
		if !long {
			content = strings.Trim(cells[0], "`")
		}
		for i, promise := range cells[1:] {
			way := head[i+1]
			require.Contains(t, all, way)
			kind := fmt.Sprintf("%.40s by %s", cells[0], way)
			err := all[way](t.Context(), kind, content)
			if promise == "refused" {
				assert.Error(t, err, kind)
				continue
			}
			require.NoError(t, err, kind)
			total++
			if strings.Contains(way, "text or json") {
				total++
			}
			switch promise {
			case "kept":
			case "trimmed":
				require.NotEqual(t, content, strings.TrimSpace(content), "what is trimmed is not kept")
				content := strings.TrimSpace(content)
				want[kind] = content
				continue
			case "rewritten":
				var written string
				require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT $1::jsonb::text", content).Scan(&written))
				assert.NotEqual(t, content, written, "%s: what is rewritten is not kept", kind)
				want[kind] = written
				continue
			default:
				require.Fail(t, "not a promise", promise)
			}
			want[kind] = content
		}
	}
	awaitRows(t, env, total)
	var found []logRow
	require.NoError(t, env.ClickHouse.Select(t.Context(), &found, "SELECT * FROM "+env.ClickHouseConfig.EventLogTable))
	for _, row := range found {
		if want[row.Type] != row.Context {
			assert.Failf(t, "other bytes", "%s: %.100s", row.Type, row.Context)
		}
	}
}
