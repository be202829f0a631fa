package crash_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

const (
	// repairTime bounds a step of a repair, whatever dies meanwhile.
	repairTime = 20 * time.Minute
	// replaySpan is how much older than the upheaval an event may be that was not delivered.
	replaySpan = 5 * time.Minute
	// A refusal may have been decided before the repair and be logged behind it.
	refusalDelay = 3 * time.Second
)

// operator reads what a streamer says that cannot run, and does it.
type operator struct {
	w         *environment
	streamers *streamers
	rng       *rand.Rand
	log       *os.File
	repaired  time.Time
	stopping  context.CancelFunc
	over      sync.WaitGroup
}

// refusal is a message of a streamer's.
type refusal struct {
	at         time.Time
	slot, text string
}

func startOperator(t *testing.T, w *environment, f *streamers) *operator {
	t.Helper()
	log, err := os.Create(filepath.Join(w.home, "operator.log"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	o := &operator{w: w, streamers: f, rng: random(w.seed, "operator"), log: log, stopping: cancel}
	o.over.Go(func() { o.run(ctx) })
	return o
}

// finish ends the operator's watch, when what is to be repaired is repaired.
func (o *operator) finish() {
	for deadline := time.Now().Add(settleTime); o.w.isMoved(); pause(context.Background(), samplePause) {
		if time.Now().After(deadline) {
			o.w.problem("a foreign reader has moved the slot, and no streamer refused to run")
			break
		}
	}
	o.stopping()
	o.over.Wait()
	_ = o.log.Close()
}

func (o *operator) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-o.streamers.refusals:
			if r.slot == o.w.slot() && r.at.After(o.repaired.Add(refusalDelay)) {
				o.answer(context.WithoutCancel(ctx), r)
				o.repaired = time.Now()
			}
		}
	}
}

// answer does what a refusal asks for, if there is a reason for it.
func (o *operator) answer(ctx context.Context, r refusal) {
	u := o.w.upheavals
	u.with(func() { u.tally.refusals++; u.repairing = true })
	defer u.with(func() { u.repairing = false })
	fmt.Fprintf(o.log, "--- %s %s refuses: %s\n", r.at.UTC().Format("15:04:05.000"), r.slot, r.text)
	var err error
	switch {
	case strings.Contains(r.text, "set REPLICATION_SLOT to a new name") && o.isBeyondFork(ctx):
		o.w.did("refusal: events that the primary lacks", false)
		err = o.renameSlot(ctx)
	case strings.Contains(r.text, "streamer slot accept") && o.w.isMoved():
		o.w.did("refusal: foreign reader", false)
		err = o.acceptSlot(ctx)
	default:
		o.w.problem("a streamer refuses to run without need: %s", r.text)
		return
	}
	if err == nil {
		err = o.replay(ctx, r.at)
	}
	if err != nil {
		o.w.problem("the repair fails: %v", err)
		return
	}
	u.with(func() { u.tally.repairs++ })
	o.w.did("repaired", false)
}

// isBeyondFork reports whether ClickHouse has events of this slot that a failover has lost.
func (o *operator) isBeyondFork(ctx context.Context) bool {
	var forks []fork
	o.w.upheavals.with(func() { forks = o.w.upheavals.forks })
	for _, f := range forks {
		var n uint64
		err := o.until(ctx, "look for events of the old timeline", func(ctx context.Context) error {
			return o.w.ch.QueryRow(ctx, fmt.Sprintf(`SELECT count() FROM (SELECT source, timeline, commit_lsn FROM %s UNION ALL SELECT source, timeline, commit_lsn FROM %s)
				WHERE source LIKE '%%/%s' AND timeline <= %d AND commit_lsn >= %d`, eventLog, deadLetters, o.w.slot(), f.timeline, uint64(f.at))).Scan(&n)
		})
		if err == nil && n > 0 {
			return true
		}
	}
	return false
}

func (o *operator) acceptSlot(ctx context.Context) error {
	err := o.until(ctx, "accept the slot", func(ctx context.Context) error { _, err := o.command(ctx, "slot", "accept"); return err })
	o.w.upheavals.with(func() { o.w.upheavals.moved = err != nil })
	return err
}

// renameSlot gives the streamers a new slot. What the old one still has and the outbox
// has not is gone with it, and is read from a copy.
func (o *operator) renameSlot(ctx context.Context) error {
	u := o.w.upheavals
	u.with(func() { u.renaming = true })
	o.streamers.hold()
	err := o.until(ctx, "copy the slot", o.copySlot)
	if err == nil {
		err = o.until(ctx, "drop the slot", func(ctx context.Context) error { _, err := o.command(ctx, "slot", "drop", "--forget"); return err })
	}
	u.with(func() { u.slots++ })
	o.streamers.release()
	if err != nil {
		return err
	}
	err = o.until(ctx, "find the new slot", func(ctx context.Context) error {
		var reads bool
		err := o.w.ask(ctx, `SELECT s.messages AND i.confirm_lsn <> '0/0' FROM diehard_slot AS s JOIN diehard_intent AS i USING (slot_name) WHERE slot_name = $1`,
			&reads, o.w.slot())
		if err == nil && !reads {
			err = errors.New("it is being made")
		}
		return err
	})
	if err != nil {
		return err
	}
	u.with(func() { u.renaming, u.renamed = false, time.Now() })
	return o.until(ctx, "read the copy of the slot", o.readCopy)
}

const copyOfSlot = "crash_copy"

func (o *operator) copySlot(ctx context.Context) error {
	return o.w.onPostgres(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", copyOfSlot)
		if err == nil {
			_, err = conn.Exec(ctx, "SELECT pg_copy_logical_replication_slot($1, $2)", o.w.slot(), copyOfSlot)
		}
		return err
	})
}

// readCopy excuses what the old slot had, up to where the new one stands.
func (o *operator) readCopy(ctx context.Context) error {
	return o.w.onPostgres(ctx, func(conn *pgx.Conn) error {
		var upTo string
		err := conn.QueryRow(ctx, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", o.w.slot()).Scan(&upTo)
		if err != nil {
			return err
		}
		ids, _, err := o.w.take(ctx, conn, "pg_logical_slot_peek_binary_changes", copyOfSlot, &upTo, nil)
		if err != nil {
			return err
		}
		o.w.upheavals.excuse(ids)
		_, err = conn.Exec(ctx, "SELECT pg_drop_replication_slot($1)", copyOfSlot)
		return err
	})
}

func (w *environment) onPostgres(ctx context.Context, do func(conn *pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return do(conn)
}

var filled = regexp.MustCompile(`missing, (\d+) of them are filled`)

// replay fills what is missing. The first try may be killed.
func (o *operator) replay(ctx context.Context, since time.Time) error {
	try := func(ctx context.Context) error {
		output, err := o.command(ctx, "replay", "--from-table", "--since", (time.Since(since) + replaySpan).Round(time.Second).String())
		if found := filled.FindStringSubmatch(output); found != nil {
			n, _ := strconv.Atoi(found[1])
			o.w.upheavals.with(func() { o.w.upheavals.tally.filled += n })
		}
		if strings.Contains(output, "events were refused by ClickHouse") { // they are dead letters now, and the rest is filled
			return nil
		}
		return err
	}
	if o.rng.IntN(2) == 0 {
		killed, cancel := context.WithTimeout(ctx, between(o.rng, 200*time.Millisecond, 4*time.Second))
		if try(killed) != nil && killed.Err() != nil {
			o.w.did("kill replay", true)
		}
		cancel()
	}
	o.w.upheavals.calm.Lock()
	defer o.w.upheavals.calm.Unlock()
	return o.until(ctx, "replay", try)
}

// until repeats a step while something dies under it.
func (o *operator) until(ctx context.Context, step string, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, repairTime)
	defer cancel()
	for {
		err := do(ctx)
		if err == nil {
			return nil
		}
		fmt.Fprintf(o.log, "--- %s: %v\n", step, err)
		if !pause(ctx, 300*time.Millisecond) {
			return fmt.Errorf("%s: %w", step, err)
		}
	}
}

// command runs a command of the streamer's, and returns what it says. ctx kills it.
func (o *operator) command(ctx context.Context, args ...string) (string, error) {
	fmt.Fprintf(o.log, "--- %s streamer %s\n", time.Now().UTC().Format("15:04:05.000"), strings.Join(args, " "))
	var output strings.Builder
	cmd := exec.CommandContext(ctx, o.w.program, args...)
	both := io.MultiWriter(o.log, &output)
	cmd.Env, cmd.Stdout, cmd.Stderr = o.w.environ(false), both, both
	err := cmd.Run()
	fmt.Fprintf(o.log, "--- %s %v\n", time.Now().UTC().Format("15:04:05.000"), err)
	return output.String(), err
}
