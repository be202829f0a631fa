package main_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"diehard/api/keys"
	"diehard/shared/dev/await"
	"diehard/shared/dev/testenv"
)

const (
	goodRequests = 60 // at least
	measureFor   = 3 * time.Second
	largeBody    = 1_950_000
)

// hostileConnections are as many as the machine can make besides what it measures.
func hostileConnections() int {
	if testenv.RaceDetector {
		return 50
	}
	return 500
}

// caller sends from an address, with a key if there is one.
type caller struct {
	address, secret string
}

func (c caller) dial(ctx context.Context, p *program) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(c.address)}}
	return dialer.DialContext(ctx, "tcp", strings.TrimPrefix(p.address, "http://"))
}

func (c caller) head(kind string, length int) string {
	head := fmt.Sprintf("POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n", kind, length)
	if c.secret != "" {
		head += "X-Api-Key: " + c.secret + "\r\n"
	}
	return head + "\r\n"
}

// hostileKinds are what a connection sends at once, and then every 100 ms.
func (c caller) hostileKinds() [][2]string {
	large := `{"event_type":"t","event_context":"` + strings.Repeat("x", largeBody)
	return [][2]string{
		{c.head("application/x-ndjson", 200<<20), "\n"},
		{c.head("application/json", largeBody) + `{"event_type":`, ""},
		{c.head("application/json", largeBody+100) + large, ""},
		{c.head("application/json", largeBody+100) + large[:1000], " "},
		{"POST /events HTTP/1.1\r\nX-A: ", "a"},
	}
}

// attack keeps a connection of a kind open, again and again, until ctx ends.
func (c caller) attack(ctx context.Context, p *program, kind [2]string) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		if conn, err := c.dial(ctx, p); err == nil {
			hungUp := make(chan struct{})
			go func() {
				defer close(hungUp)
				_, _ = io.Copy(io.Discard, conn)
			}()
			_, err := io.WriteString(conn, kind[0])
			for more := true; more && err == nil; {
				select {
				case <-tick.C:
					_, err = io.WriteString(conn, kind[1])
				case <-hungUp:
					more = false
				case <-ctx.Done():
					more = false
				}
			}
			_ = conn.Close()
			<-hungUp
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// worker is a well-behaved caller of one program.
type worker struct {
	program *program
	caller  caller
	client  *http.Client
	stored  int
	took    []time.Duration // each request
}

func (c caller) worker(t *testing.T, p *program) *worker {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx, p) }}
	t.Cleanup(transport.CloseIdleConnections)
	return &worker{program: p, caller: c, client: &http.Client{Transport: transport}}
}

// send sends a small request and adds to what was stored and how long that took.
func (w *worker) send(t *testing.T) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.program.address+"/events", strings.NewReader(`{"event_type":"good","event_context":1}`))
	require.NoError(t, err)
	request.Header.Set("Content-Type", "application/json")
	if w.caller.secret != "" {
		request.Header.Set("X-Api-Key", w.caller.secret)
	}
	start := time.Now()
	defer func() { w.took = append(w.took, time.Since(start)) }()
	response, err := w.client.Do(request)
	if !assert.NoError(t, err) {
		return
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	if response.StatusCode == http.StatusAccepted {
		w.stored++
	}
}

// median is how long half of the requests took at most: that of a loaded machine says more than the mean.
func (w *worker) median() time.Duration {
	return slices.Sorted(slices.Values(w.took))[len(w.took)/2]
}

// of is w's throughput in percent of another's, which has sent as much in the same time.
func (w *worker) of(other *worker) float64 {
	return 100 * float64(w.stored) / float64(other.stored) * float64(other.median()) / float64(w.median())
}

// workInTurn has each worker send one request after the other's, again and again: what the machine
// does meanwhile meets all of them. It goes on for long enough to measure something.
func workInTurn(t *testing.T, workers ...*worker) {
	t.Helper()
	for began := time.Now(); len(workers[0].took) < goodRequests || time.Since(began) < measureFor; {
		for _, i := range rand.Perm(len(workers)) { // the one before leaves its mark
			workers[i].send(t)
		}
	}
}

// What one caller sends, or does not send, is not at the cost of another one. Callers
// differ by their keys, or by their addresses where there are none.
func TestHostileConnectionsDoNotStarveOthers(t *testing.T) { // alone: it loads the machine
	secrets, entries := make([]string, 2), make([]string, 2)
	for i, name := range []string{"good", "hostile"} {
		var err error
		secrets[i], entries[i], err = keys.New(name)
		require.NoError(t, err)
	}
	for _, c := range []struct {
		name          string
		good, hostile caller
		environ       string
	}{
		{"keys", caller{"127.0.0.1", secrets[0]}, caller{"127.0.0.1", secrets[1]}, "API_KEYS=" + strings.Join(entries, ",")},
		{"addresses", caller{"127.0.0.1", ""}, caller{"127.0.0.2", ""}, "API_KEYS="},
		{"one address", caller{"127.0.0.1", ""}, caller{"127.0.0.1", ""}, "API_KEYS="},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := testenv.New(t)
			p := start(t, env, c.environ)
			// Nothing attacks the twins, on the same machine at the same time. How far they
			// are apart is what the measurement cannot see.
			attacked, twin, second := c.good.worker(t, p), c.good.worker(t, start(t, env, c.environ)), c.good.worker(t, start(t, env, c.environ))
			ctx, cancel := context.WithCancel(t.Context())
			var attacks sync.WaitGroup
			defer attacks.Wait()
			defer cancel()
			kinds := c.hostile.hostileKinds()
			for i := range hostileConnections() {
				attacks.Go(func() { c.hostile.attack(ctx, p, kinds[i%len(kinds)]) })
			}
			p.awaitMetric(t, "diehard_api_streams_in_progress", 4)
			p.awaitMetric(t, "diehard_api_body_bytes", 10_000_000)
			began, used := time.Now(), p.cpuTime(t)
			workInTurn(t, attacked, twin, second)
			used = p.cpuTime(t) - used
			peak := p.peakMemory(t)
			t.Logf("%d of %d requests stored beside %d hostile connections, %s each, %.0f %% of the throughput of a twin without them; a second twin has %.0f %% of the first; "+
				"at most %d MiB of memory and %.0f %% of a CPU", attacked.stored, len(attacked.took), hostileConnections(), attacked.median().Round(100*time.Microsecond),
				attacked.of(twin), second.of(twin), peak>>20, 100*used.Seconds()/time.Since(began).Seconds())
			assert.GreaterOrEqual(t, attacked.stored, len(attacked.took)*95/100)
			if !strings.HasSuffix(p.Path, "-race") { // which takes several times as much
				assert.Less(t, peak, 256<<20)
			}
			var count int
			require.NoError(t, env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM public.outbox WHERE event_type = 'good'").Scan(&count))
			assert.Equal(t, twin.stored+second.stored+attacked.stored, count)
		})
	}
}

// awaitMetric waits until a gauge is at least so high.
func (p *program) awaitMetric(t *testing.T, name string, least float64) {
	t.Helper()
	await.True(t, func() bool {
		_, text := p.send(t, http.MethodGet, "/metrics", nil)
		for line := range strings.Lines(text) {
			var value float64
			if metric, rest, _ := strings.Cut(line, " "); strings.HasPrefix(metric, name+"{") {
				_, err := fmt.Sscan(rest, &value)
				return err == nil && value >= least
			}
		}
		return false
	}, "%s", name)
}
