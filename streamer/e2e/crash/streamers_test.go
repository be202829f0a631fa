package crash_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	// senderTimeout is how long PostgreSQL bears the silence of a streamer.
	senderTimeout = 2 * time.Second
	// A frozen streamer loses the slot; it wakes at any time from then on, or soon
	// after the other one has begun to write.
	shortFreeze, longFreeze = senderTimeout + 500*time.Millisecond, senderTimeout + 3*time.Second
	longestFreeze           = 10 * time.Second
	// stopTime bounds the end after a SIGTERM; SHUTDOWN_TIMEOUT is a tenth of it.
	stopTime = 30 * time.Second
)

// place is a failpoint and how late in a streamer's life it may strike.
type place struct {
	name string
	hits int
	// drains means that it is on the way to the end, so a SIGTERM must come first.
	drains bool
	// stops means that freezing there is worth a try.
	stops bool
}

var places = []choice[place]{
	{14, place{}},
	{2, place{name: "started", hits: 1, stops: true}},
	{2, place{name: "claimed", hits: 1, stops: true}},
	{3, place{name: "before-insert", hits: 12, stops: true}},
	{2, place{name: "before-verify", hits: 12}},
	{4, place{name: "verified", hits: 12, stops: true}},
	{6, place{name: "intent-written", hits: 6, stops: true}},
	{4, place{name: "after-insert", hits: 12, stops: true}},
	{3, place{name: "before-confirm", hits: 12, stops: true}},
	{2, place{name: "confirmed", hits: 12}},
	{3, place{name: "after-dead-letter", hits: 1, stops: true}},
	{3, place{name: "refused", hits: 1}},
	{2, place{name: "draining", hits: 1, drains: true}},
	{2, place{name: "drained", hits: 1, drains: true}},
}

// streamers are the one that has the slot, and its standby.
type streamers struct {
	w        *environment
	members  []*streamer
	refusals chan refusal
	gate     sync.RWMutex // held for writing by who keeps them from starting
	quiet    bool         // no more failpoints

	mu        sync.Mutex
	active    *streamer // who has the slot, or had it last
	takeovers int
	ending    context.CancelFunc
	over      sync.WaitGroup
}

func startStreamers(t *testing.T, w *environment) *streamers {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &streamers{w: w, ending: cancel, refusals: make(chan refusal, 1000)}
	for _, name := range []string{"a", "b"} {
		log, err := os.Create(filepath.Join(w.home, "streamer-"+name+".log"))
		require.NoError(t, err)
		s := &streamer{streamers: f, name: name, log: log, rng: random(w.seed, "streamer "+name)}
		f.members = append(f.members, s)
		f.over.Go(func() { s.live(ctx) })
	}
	return f
}

// endFaults lets the streamers run undisturbed from now on.
func (f *streamers) endFaults() {
	f.mu.Lock()
	f.quiet = true
	f.mu.Unlock()
	for _, s := range f.members {
		s.signal(syscall.SIGCONT)
		s.mu.Lock()
		armed := s.armed.name != ""
		s.mu.Unlock()
		if armed { // it would strike later
			s.end("SIGTERM to disarm", syscall.SIGTERM)
		}
	}
}

// stop ends the streamers in order and waits for them.
func (f *streamers) stop() {
	f.ending()
	f.over.Wait()
}

// holder is who has the slot, or had it last; other is the standby.
func (f *streamers) holder() *streamer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active == nil {
		return f.members[0]
	}
	return f.active
}

func (f *streamers) other(s *streamer) *streamer {
	if s == f.members[0] {
		return f.members[1]
	}
	return f.members[0]
}

func (f *streamers) streams(s *streamer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active != nil && f.active != s {
		f.takeovers++
	}
	f.active = s
}

func (f *streamers) isQuiet() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.quiet
}

// streamer is one member: a program that is started again whenever it ended.
type streamer struct {
	streamers *streamers
	name      string
	log       *os.File
	rng       *rand.Rand

	mu      sync.Mutex
	process *os.Process // nil between two lives
	slot    string
	asked   string // what ended, or is about to end, this life
	armed   place
	freezes bool // at the failpoint, instead of dying
	thawing bool // it will be woken
	overdue *time.Timer
}

func (s *streamer) live(ctx context.Context) {
	defer s.log.Close()
	for ctx.Err() == nil {
		s.streamers.gate.RLock()
		s.run(ctx)
		s.streamers.gate.RUnlock()
		s.mu.Lock()
		wait := between(s.rng, 0, 500*time.Millisecond)
		s.mu.Unlock()
		pause(ctx, wait)
	}
}

// run is one life, from start to end.
func (s *streamer) run(ctx context.Context) {
	cmd, output, err := s.start()
	if err != nil {
		s.streamers.w.problem("streamer %s does not start: %v", s.name, err)
		pause(ctx, time.Second)
		return
	}
	life, lived := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	if s.freezes {
		watchers.Go(func() { s.watchFreeze(life, cmd.Process.Pid) })
	}
	watchers.Go(func() {
		<-life.Done()
		if ctx.Err() != nil { // not the life ended but the test
			s.end("the end", syscall.SIGTERM)
		}
	})
	last := s.follow(life, output)
	err = cmd.Wait()
	lived()
	watchers.Wait()
	s.ended(cmd, err, last)
}

func (s *streamer) start() (*exec.Cmd, io.Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed, s.freezes, s.asked, s.overdue = place{}, false, "", nil
	cmd := exec.Command(s.streamers.w.program, "run")
	s.slot = s.streamers.w.slot()
	cmd.Env = s.streamers.w.environ(s.name == "b")
	if !s.streamers.isQuiet() {
		s.armed = weighted(s.rng, places)
	}
	if s.armed.name != "" {
		spec := s.armed.name + ":" + strconv.Itoa(1+s.rng.IntN(s.armed.hits))
		if s.freezes = s.armed.stops && s.rng.IntN(2) == 0; s.freezes {
			spec += ":stop"
		}
		cmd.Env = append(cmd.Env, "DIEHARD_FAILPOINT="+spec)
	}
	output, err := cmd.StderrPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	s.process = cmd.Process
	fmt.Fprintf(s.log, "--- process %d starts, failpoint %q freezes %v\n", cmd.Process.Pid, s.armed.name, s.freezes)
	return cmd, output, nil
}

// follow copies the log and learns from it who has the slot. It returns the last line.
func (s *streamer) follow(ctx context.Context, output io.Reader) string {
	var last string
	lines := bufio.NewScanner(output)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		last = lines.Text()
		fmt.Fprintln(s.log, last)
		var entry struct{ Msg, Error string }
		if json.Unmarshal(lines.Bytes(), &entry) != nil {
			continue
		}
		if strings.HasPrefix(entry.Msg, "the streamer cannot run") {
			s.streamers.refusals <- refusal{time.Now(), s.slot, entry.Error}
		}
		if entry.Msg != "streaming" {
			continue
		}
		s.streamers.streams(s)
		s.mu.Lock()
		drains, wait := s.armed.drains, between(s.rng, 0, time.Second)
		s.mu.Unlock()
		if drains {
			s.streamers.over.Go(func() {
				if pause(ctx, wait) {
					s.end("SIGTERM to drain", syscall.SIGTERM)
				}
			})
		}
	}
	return last
}

// ended decides whether this was an end that we brought about.
func (s *streamer) ended(cmd *exec.Cmd, err error, last string) {
	s.mu.Lock()
	s.process = nil
	asked, armed, freezes := s.asked, s.armed, s.freezes
	if s.overdue != nil {
		s.overdue.Stop()
	}
	s.mu.Unlock()
	w := s.streamers.w
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	fmt.Fprintf(s.log, "--- process %d ended: %v, asked %q\n", cmd.Process.Pid, err, asked)
	const raceFound = 66
	switch {
	case status.ExitStatus() == raceFound:
		w.problem("streamer %s: the race detector found something, see its log", s.name)
	case strings.HasPrefix(asked, "kill"):
	case asked != "" && last == "" && status.Signaled() && status.Signal() == syscall.SIGTERM: // before main listened for it
	case status.Signaled() && status.Signal() == syscall.SIGKILL && armed.name != "" && !freezes:
		w.did("kill streamer at "+armed.name, true)
	case asked == "":
		w.problem("streamer %s ended by itself (%v): %s", s.name, err, last)
	case status.ExitStatus() != 0 && !strings.Contains(last, "shutdown: "):
		w.problem("streamer %s failed on %s (%v): %s", s.name, asked, err, last)
	}
}

// end sends a signal that ends this life. It reports whether there was one.
func (s *streamer) end(why string, signal syscall.Signal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil || s.asked != "" {
		return false
	}
	s.asked = why
	process := s.process
	_ = process.Signal(signal)
	_ = process.Signal(syscall.SIGCONT)
	if signal == syscall.SIGTERM {
		s.overdue = time.AfterFunc(stopTime, func() {
			s.streamers.w.problem("streamer %s does not end within %s of a SIGTERM", s.name, stopTime)
			_ = process.Kill()
		})
	}
	return true
}

// signal sends a signal that does not end this life by our will.
func (s *streamer) signal(signal syscall.Signal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process != nil && s.process.Signal(signal) == nil
}

// freeze stops the process for a while; it returns at once.
func (s *streamer) freeze(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil || s.asked != "" || s.thawing {
		return false
	}
	s.thawing = true
	process := s.process
	_ = process.Signal(syscall.SIGSTOP)
	s.streamers.over.Go(func() { s.thaw(ctx, process) })
	return true
}

func (s *streamer) thaw(ctx context.Context, process *os.Process) {
	s.oversleep(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.thawing = false
	_ = process.Signal(syscall.SIGCONT) // it may be dead by now
}

// oversleep waits as long as a freeze lasts.
func (s *streamer) oversleep(ctx context.Context) {
	s.mu.Lock()
	sleep, late, replaced := between(s.rng, shortFreeze, longFreeze), between(s.rng, 0, time.Second), s.rng.IntN(2) == 0
	s.mu.Unlock()
	if !replaced {
		pause(ctx, sleep)
		return
	}
	deadline := time.Now().Add(longestFreeze)
	for ctx.Err() == nil && s.streamers.holder() == s && time.Now().Before(deadline) {
		pause(ctx, 20*time.Millisecond)
	}
	pause(ctx, late)
}

// watchFreeze waits until the process has frozen itself at its failpoint, and
// wakes it some time later.
func (s *streamer) watchFreeze(ctx context.Context, pid int) {
	for !stopped(pid) {
		if !pause(ctx, 50*time.Millisecond) {
			return
		}
	}
	s.mu.Lock()
	ours, name := s.thawing, s.armed.name
	s.mu.Unlock()
	if ours { // frozen by the schedule, which wakes it
		s.watchAfterThaw(ctx, pid)
		return
	}
	s.streamers.w.did("freeze streamer at "+name, false)
	s.oversleep(ctx)
	s.signal(syscall.SIGCONT)
}

// watchAfterThaw goes on watching after a freeze that was not the failpoint's.
func (s *streamer) watchAfterThaw(ctx context.Context, pid int) {
	for stopped(pid) {
		if !pause(ctx, 50*time.Millisecond) {
			return
		}
	}
	s.watchFreeze(ctx, pid)
}

// stopped reports whether a process is stopped by a signal.
func stopped(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "T")
}
