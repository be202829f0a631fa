package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"diehard/migrations"
	"diehard/shared/postgres"
)

const (
	apiClients = 32
	apiTime    = 10 * time.Second
)

// pgbenchScript does what POST /users does: two inserts in one transaction. A colon
// before a letter or digit would be a variable to pgbench.
const pgbenchScript = `BEGIN;
INSERT INTO users (id, email, first_name, last_name) VALUES (gen_random_uuid(), 'u' || :client_id || '-' || random() || '@example.com', 'Test', 'User');
INSERT INTO outbox (event_type, environment, event_context) VALUES ('user_created', 'Bench',
 '{"id": "01a208ec-6f26-7d1d-aaa1-df0ad3300db9", "email": "test@example.com", "first_name": "Test", "last_name": "User", "is_active": true, "created_at": "20261123T150042.406859Z"}');
COMMIT;
`

// api compares POST /users with pgbench doing the same to the same tables. The
// load generator takes its share of the same cores.
func api(ctx context.Context, env *environment) (*report, error) {
	r := newReport("api", fmt.Sprintf("POST /users: %d connections for %s", apiClients, apiTime), "requests/s")
	for range env.Rounds {
		b, err := env.newTestbed(ctx, "api")
		if err != nil {
			return nil, err
		}
		if err := errors.Join(apiRound(ctx, b, r), b.close(context.WithoutCancel(ctx))); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func apiRound(ctx context.Context, b *testbed, r *report) error {
	if err := migrations.API("").Up(ctx, postgres.Config{URL: b.url}, b.env.log); err != nil {
		return err
	}
	rate, err := b.measureAPI(ctx)
	if err != nil {
		return err
	}
	r.add("POST /users", rate)
	b.env.progress("POST /users: %.0f/s", rate)
	if _, err := exec.LookPath("pgbench"); err != nil {
		return nil //nolint:nilerr // a machine without pgbench measures the api alone
	}
	for _, mode := range []string{"simple", "prepared"} {
		if rate, err = b.pgbench(ctx, mode); err != nil {
			return err
		}
		r.add("pgbench -M "+mode, rate)
		b.env.progress("pgbench -M %s: %.0f/s", mode, rate)
	}
	return nil
}

var tps = regexp.MustCompile(`tps = ([0-9.]+)`)

func (b *testbed) pgbench(ctx context.Context, mode string) (float64, error) {
	script := filepath.Join(b.env.dir, "users.pgbench")
	if err := os.WriteFile(script, []byte(pgbenchScript), 0o600); err != nil {
		return 0, err
	}
	clients := strconv.Itoa(apiClients)
	cmd := exec.CommandContext(ctx, "pgbench", "-n", "-M", mode, "-c", clients, "-j", "2",
		"-T", strconv.Itoa(int(apiTime.Seconds())), "-f", script, b.url)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	m := tps.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench printed no tps: %s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// measureAPI runs the api and loads it.
func (b *testbed) measureAPI(ctx context.Context) (float64, error) {
	addr, err := freeAddr(ctx)
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, b.env.api)
	cmd.Env, cmd.Stderr = b.environ("none", "API_ADDR="+addr, "DATABASE_MAX_CONNS="+strconv.Itoa(apiClients)), os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // the measurement is over
	}()
	if err := waitUntilReady(ctx, "http://"+addr+"/readyz"); err != nil {
		return 0, err
	}
	began := time.Now()
	n, err := load(ctx, addr)
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	var users int
	if err := b.pool.QueryRow(ctx, `SELECT count(*) FROM users JOIN outbox ON event_context->>'id' = users.id::text`).Scan(&users); err != nil {
		return 0, err
	}
	if users != n {
		return 0, fmt.Errorf("%d requests were answered with 201, %d users have an event", n, users)
	}
	return float64(n) / took.Seconds(), nil
}

func waitUntilReady(ctx context.Context, url string) error {
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	for began := time.Now(); time.Since(began) < 30*time.Second; sleepFor(ctx, 50*time.Millisecond) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err != nil {
			continue
		}
		_ = res.Body.Close()
		if res.StatusCode == http.StatusOK {
			return nil
		}
	}
	return fmt.Errorf("%s was not ready within 30 s", url)
}

func freeAddr(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}
