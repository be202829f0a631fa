package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	chconfig "diehard/shared/clickhouse"
	"diehard/shared/dev/await"
	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
)

// follower is `streamer events --follow --json` as it runs.
type follower struct{ out, log string } // files

func follow(t *testing.T, env *testenv.Env, program string) follower {
	t.Helper()
	f := follower{filepath.Join(t.TempDir(), "out"), filepath.Join(t.TempDir(), "log")}
	cmd := exec.Command(program, "events", "--follow", "--json")
	cmd.Env = env.Environ()
	for path, to := range map[string]*io.Writer{f.out: &cmd.Stdout, f.log: &cmd.Stderr} {
		file, err := os.Create(path)
		require.NoError(t, err)
		t.Cleanup(func() { _ = file.Close() })
		*to = file
	}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return f
}

// events are those that were printed until now.
func (f follower) events(t *testing.T) (list []eventJSON) {
	t.Helper()
	out, err := os.ReadFile(f.out)
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		var e eventJSON
		if strings.HasSuffix(line, "\n") { // written whole
			require.NoError(t, json.Unmarshal([]byte(line), &e))
			list = append(list, e)
		}
	}
	return list
}

// says is how often the log has text.
func (f follower) says(t *testing.T, text string) int {
	t.Helper()
	log, err := os.ReadFile(f.log)
	require.NoError(t, err)
	return strings.Count(string(log), text)
}

// withOwnClickHouse is env with a ClickHouse that t may kill.
func withOwnClickHouse(t *testing.T, env testenv.Env) (*testenv.Env, *embedded.ClickHouse) {
	t.Helper()
	engine := testenv.StartClickHouse(t, embedded.ClickHouseOptions{})
	env.ClickHouseConfig = engine.Config("default")
	require.NoError(t, migrations.UpClickHouse(t.Context(), env.ClickHouseConfig, slog.New(slog.DiscardHandler)))
	var err error
	env.ClickHouse, err = chconfig.Open(t.Context(), env.ClickHouseConfig)
	require.NoError(t, err)
	t.Cleanup(func() { _ = env.ClickHouse.Close() })
	return &env, engine
}

// A consumer may start before the first event, and before ClickHouse and the streamer start again.
func TestAFollowerSeesEveryEventThroughRestartsOfEitherSide(t *testing.T) {
	env, engine := withOwnClickHouse(t, *testenv.New(t))
	use(t, env)
	program := testenv.Build(t, "streamer")
	f := follow(t, env, program)
	restart := func() {
		t.Helper()
		const unavailable = "ClickHouse is unavailable"
		before := f.says(t, unavailable)
		require.NoError(t, engine.Kill())
		await.True(t, func() bool { return f.says(t, unavailable) > before }, "the follower notices that ClickHouse is gone")
		require.NoError(t, engine.Start(t.Context()))
	}
	await.True(t, func() bool { return f.says(t, "waiting for the first one") > 0 }, "the follower waits for the first event")
	restart()
	kill, stop := killedStreamer(t, env, program)
	for range 3 {
		before := len(f.events(t))
		await.True(t, func() bool { return len(f.events(t)) > before }, "the follower goes on")
		restart()
		kill()
	}
	stop()
	deliver(t, env, 1)
	total := committed(t, env)
	await.True(t, func() bool { return len(f.events(t)) >= total }, "the follower sees every event")
	seen := map[uuid.UUID]bool{}
	for _, e := range f.events(t) {
		assert.False(t, seen[e.EventID], "twice: %s", e.Position)
		seen[e.EventID] = true
	}
	assert.Len(t, seen, total)
	assert.Equal(t, shownEvents(t, "--after", "0/0/0", "--limit", "0"), f.events(t), "in commit order")
}

func TestFollowBeginsAtTheEnd(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	streamUntilEnd(t, env)
	deliver(t, env, 10)
	f := follow(t, env, testenv.Build(t, "streamer"))
	await.True(t, func() bool {
		deliver(t, env, 1)
		return len(f.events(t)) > 0
	}, "the follower sees a new event")
	deliver(t, env, 5)
	all := shownEvents(t, "--after", "0/0/0", "--limit", "0")
	last := all[len(all)-1]
	await.True(t, func() bool { list := f.events(t); return list[len(list)-1].EventID == last.EventID }, "the follower sees the last event")
	got := f.events(t)
	require.LessOrEqual(t, len(got), len(all)-10, "nothing from before")
	assert.Equal(t, all[len(all)-len(got):], got)
}

func TestTheLogIsThatOfOurSlotUnlessASourceIsGiven(t *testing.T) {
	env := testenv.New(t)
	use(t, env)
	_, err := command(t, "events", "--after", "0/0/0")
	require.ErrorContains(t, err, "event_log has no events of slot "+env.Slot+" yet: choose another with --source")
	for _, source := range []string{"1/" + env.Slot, "2/" + env.Slot, "2/another"} {
		require.NoError(t, env.ClickHouse.Exec(t.Context(), "INSERT INTO event_log (event_type, event_context, source, commit_lsn, commit_seq) VALUES (?, '1', ?, 1, 1)", source, source))
	}
	for _, way := range [][]string{{"--after", "0/0/0"}, {"--follow"}, {"--follow", "--after", "0/0/0"}} {
		_, err := command(t, append([]string{"events"}, way...)...)
		require.ErrorContains(t, err, `choose one with --source: ["1/`+env.Slot+`" "2/`+env.Slot+`"]`, way)
	}
	assert.Equal(t, []string{"2/" + env.Slot}, typesOf(shownEvents(t, "--after", "0/0/0", "--source", "2/"+env.Slot)))
	assert.Equal(t, []string{"2/another"}, typesOf(shownEvents(t, "--follow", "--limit", "1", "--after", "0/0/0", "--source", "2/another")))

	require.NoError(t, env.ClickHouse.Exec(t.Context(), "DELETE FROM event_log WHERE source = '1/"+env.Slot+"'"))
	assert.Equal(t, []string{"2/" + env.Slot}, typesOf(shownEvents(t, "--after", "0/0/0")))
	_, err = command(t, "events", "--follow", "--source", "2/another", "--after", "0/0/0", "--where", "(")
	assert.ErrorContains(t, err, "read", "a mistake ends it")
}
