package sim_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// mutant is a fault planted into the streamer: one piece of its code replaced.
type mutant struct {
	name    string
	file    string // below streamer
	old, by string
	profile string // of the world that must notice it, or a test
}

// mutants are faults of comparable systems, and those that the intent must not have.
var mutants = []mutant{
	{
		"confirms the end of a commit and one record more", "pipeline/receive.go",
		"r.open.Commit(r.decoder.CommitEnd())", "r.open.Commit(r.decoder.CommitEnd() + 48)", "one node",
	},
	{
		"confirms by the bytes received", "pipeline/receive.go",
		"r.open.Commit(r.decoder.CommitEnd())", "r.open.Commit(r.decoder.CommitEnd() + pglogrepl.LSN(r.open.Received))", "one node",
	},
	{
		"confirms keepalives past what is not written", "pipeline/receive.go",
		"r.open.Keepalive(msg.WALEnd)", "r.confirmed.raise(uint64(msg.WALEnd))", "one node",
	},
	{
		"confirms before the answer", "pipeline/write.go",
		"if err := w.write(ctx, b); err != nil {", "w.confirmed.raise(uint64(b.Confirm))\n\t\tif err := w.write(ctx, b); err != nil {", "one node",
	},
	{
		"drops a batch whose insert failed", "pipeline/insert.go",
		"case errors.Is(last, errOwner):", "case last != nil && attempt == 1:\n\t\t\treturn false, nil\n\t\tcase errors.Is(last, errOwner):", "one node",
	},
	{
		"starts behind the intent as if it were written", "pipeline/resume.go",
		"after: decode.Position(in.After), repeat: in,", "after: decode.Position(in.Through),", "one node",
	},
	{
		"sends a repeated insert under a new token", "pipeline/insert.go",
		"Token: in.token,", "Token: in.token + fmt.Sprint(n),", "cloud",
	},
	{
		"tokens without timeline and epoch", "pipeline/write.go",
		"w.s.record.Timeline, w.s.record.Epoch, w.s.nonce, w.blocks", `0, 0, "", w.blocks`, "one node",
	},
	{
		"does not prove that the slot is its own", "replication/intent.go",
		"rec IntentRecord) (walEnd pglogrepl.LSN, err error) {",
		"rec IntentRecord) (walEnd pglogrepl.LSN, err error) {\n\tdefer func() {\n\t\tif errors.Is(err, ErrFenced) {\n\t\t\terr = nil\n\t\t}\n\t}()", "cloud",
	},
	{
		"does not look before it repeats", "pipeline/insert.go",
		"if p.repeated || in.refusal != nil || attempt > 1 {", "if last != nil && final(last) {", "small window",
	},
	{
		"a repeated insert has the time of its repetition", "pipeline/insert.go",
		"IngestedAt: time.UnixMilli(p.intent.IngestedAt).UTC()", "IngestedAt: time.Now()", "cloud",
	},
	{
		"no deduplication", "sink/sink.go",
		`"insert_deduplicate": 1,`, `"insert_deduplicate": 0,`, "cloud",
	},
	{
		"the deduplication window is outlived", "pipeline/window.go",
		"if len(w.blocks) < w.limit || ", "if true || ", "TestABacklogOfSmallBlocksAfterATakeover",
	},
	{
		"the deduplication window is outlived by a commit that hangs", "pipeline/window.go",
		"if !w.window.outlived(time.Now()) {", "if true {", "TestAHungInsertAndABacklogOfSmallBlocks",
	},
	{
		"a replica that lags decides", "sink/quorum.go",
		"if s.mayLag && !s.quorum {", "if false {", "lagging replicas",
	},
	{
		"an intent confirms rows that are not written", "pipeline/insert.go",
		"rec.Intent = &intent", "rec.Intent, rec.Confirm = &intent, max(rec.Confirm, p.b.Confirm)", "foreign reader",
	},
	{
		"a change of timeline is not noticed", "pipeline/session_start.go",
		"return rec.SystemID == s.source.SystemID && rec.Timeline == s.history.Timeline", "return rec.SystemID == s.source.SystemID", "failover",
	},
	{
		"a foreign reader is not noticed", "pipeline/resume.go",
		"if s.slot.ConfirmedFlush > s.record.Confirm && s.sameHistory(s.record) {", "if false {", "foreign reader",
	},
	{
		"a slot beyond the record is refused after a failover too", "pipeline/resume.go",
		"if s.slot.ConfirmedFlush > s.record.Confirm && s.sameHistory(s.record) {", "if s.slot.ConfirmedFlush > s.record.Confirm {", "failover",
	},
	{
		"after a failover no event is looked for", "pipeline/resume.go",
		"next.UnprovedSince = &since", "_ = since", "foreign reader and failover",
	},
	{
		"a record is taken for as old as what is not delivered", "pipeline/resume.go",
		"last.Add(-backlogMargin).Before(since) {", "false {", "TestABacklogIsComparedFromItsBeginning",
	},
	{
		"what a slot delivers again is not looked for", "pipeline/resume.go",
		"next.UnprovedUntil = end.LSN", "_ = end", "TestWhatASlotDeliversAgainIsLookedFor",
	},
	{
		"a restart forgets what is to be looked for", "pipeline/start_lsn.go",
		"if rec.UnprovedUntil != 0 {", "if false {", "TestWhatASlotDeliversAgainIsLookedFor",
	},
	{
		"the lost end of the old timeline is not looked at", "replication/history.go",
		"w.Timeline != 0 && w.Timeline != here {", "false {", "TestAFailoverThatLostWhatIsWritten",
	},
	{
		"rows carry the timeline of the server that sent them", "replication/history.go",
		"if lsn < f.at {", "if false {", "TestTwoFailoversOfWhichTheSecondSkipsATimeline",
	},
	{
		"the repeated range is cut like any other", "pipeline/receive.go",
		"if r.repeat == nil && r.open.Full(r.s.p.size.limits(r.s.cfg.Limits)) || r.repeated() {", "if r.open.Full(r.s.p.size.limits(r.s.cfg.Limits)) {", "one node",
	},
	{
		"rows are not counted", "decode/decoder.go",
		"d.pos.Seq++\n\tif !d.pos.After(d.resume)", "if !d.pos.After(d.resume)", "one node",
	},
	{
		"batches without a bound", "pipeline/receive.go",
		"if r.repeat == nil && r.open.Full(r.s.p.size.limits(r.s.cfg.Limits)) || r.repeated() {", "if r.repeated() {", "one node",
	},
	{
		"halves while an attempt may still be written", "pipeline/refuse.go",
		"return i.w.untilAttemptsAreOver(ctx, i.part)", "return nil", "TestAnInsertIsWrittenLateAndRefusedInBetween",
	},
	{
		"the rest of a refused block goes under a new token", "pipeline/refuse.go",
		"return i.w.writeRejects(ctx, i.part, i.part.refusedToken(), refused)",
		"err := i.w.writeRejects(ctx, i.part, i.part.refusedToken(), refused)\n\ti.part.intent.Token += \"x\"\n\treturn err", "TestAFrozenStreamerHoldsABlockThatIsRefused",
	},
	{
		"the intent does not name refused rows", "pipeline/refuse.go",
		"rejected[at].Add(replication.Position(x.Position))", "", "TestATakeoverKeepsWhatWasRefused",
	},
	{
		"dead letters of refused rows come after the rows", "sink/write.go",
		"if err := w.Refuse(ctx, b, refused); err != nil {\n\t\t\treturn err\n\t\t}",
		"defer func() { _ = w.Refuse(ctx, b, refused) }()", "two listeners",
	},
	{
		"inserts of the old timeline are not waited for", "pipeline/resume.go",
		"err = s.waitForOldInserts(ctx)", "err = nil", "failover",
	},
	{
		"nothing is registered before the intent is written", "sink/sink.go",
		"i, err := s.register(ctx, table,", "if err := a.Verify(ctx); err != nil {\n\t\treturn err\n\t}\n\ta.Verify = func(context.Context) error { return nil }\n\ti, err := s.register(ctx, table,", "one node",
	},
}

// SIM_MUTANTS is how many seeds each mutant may survive; SIM_MUTANT names one of them.
func TestMutants(t *testing.T) {
	seeds := os.Getenv("SIM_MUTANTS")
	if seeds == "" {
		t.Skip("builds the streamer once for each mutant: make sim MUTANTS=200")
	}
	only := os.Getenv("SIM_MUTANT")
	for _, m := range mutants {
		if only != "" && m.name != only {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), m.build(t), "-test.run", "^"+m.test()+"$", "-test.v", "-test.failfast").CombinedOutput()
			assert.Errorf(t, err, "it survived %s seeds of %q", seeds, m.profile)
			lines := strings.Split(string(out), "\n")
			t.Log(strings.Join(lines[:min(4, len(lines))], "\n"))
		})
	}
}

// What a mutant replaces stands in the code once, and its world or test exists: otherwise it
// would count as caught.
func TestMutantsCanBePlanted(t *testing.T) {
	t.Parallel()
	var tests strings.Builder
	files, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	for _, name := range files {
		code, err := os.ReadFile(name)
		require.NoError(t, err)
		tests.Write(code)
	}
	for _, m := range mutants {
		code, err := os.ReadFile(filepath.Join("..", m.file))
		require.NoError(t, err, m.name)
		assert.Equal(t, 1, strings.Count(string(code), m.old), "%s: %s", m.name, m.file)
		world := slices.ContainsFunc(profiles, func(p profile) bool { return p.name == m.profile })
		assert.True(t, world || strings.Contains(tests.String(), "func "+m.profile+"("), "%s: %s", m.name, m.profile)
	}
}

func (m mutant) test() string {
	if strings.HasPrefix(m.profile, "Test") {
		return m.profile
	}
	return "TestSim"
}

// build compiles this package with the mutant in it, and returns a script that runs it.
func (m mutant) build(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", m.file))
	require.NoError(t, err)
	code, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(code), m.old), "what the mutant replaces stands in %s once", m.file)
	dir := t.TempDir()
	changed := filepath.Join(dir, "changed.go")
	require.NoError(t, os.WriteFile(changed, []byte(strings.Replace(string(code), m.old, m.by, 1)), 0o600))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600))
	binary := filepath.Join(dir, "sim.test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-ldflags=-s -w", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	t.Setenv("SIM_RUNS", os.Getenv("SIM_MUTANTS"))
	t.Setenv("SIM_PROFILE", m.profile)
	t.Setenv("SIM_SEED", "1")
	return binary
}
