// Command gopqcdc carries an outbox to ClickHouse with go-pq-cdc, as a contestant of
// `make bench BENCH=peers`. It acknowledges the last message of a batch after the batch is
// inserted, as the connectors of that project do.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	cdc "github.com/Trendyol/go-pq-cdc"
	"github.com/Trendyol/go-pq-cdc/config"
	"github.com/Trendyol/go-pq-cdc/pq/message/format"
	"github.com/Trendyol/go-pq-cdc/pq/publication"
	"github.com/Trendyol/go-pq-cdc/pq/replication"
	"github.com/Trendyol/go-pq-cdc/pq/slot"
	"github.com/google/uuid"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "gopqcdc:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	cfg, err := configuration()
	if err != nil {
		return err
	}
	w, err := newWriter()
	if err != nil {
		return err
	}
	connector, err := cdc.NewConnector(ctx, cfg, w.handle)
	if err != nil {
		return err
	}
	defer connector.Close()
	go w.flushRegularly()
	connector.Start(ctx)
	return nil
}

func configuration() (config.Config, error) {
	u, err := url.Parse(os.Getenv("DATABASE_URL"))
	if err != nil {
		return config.Config{}, err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return config.Config{}, err
	}
	protocol, err := strconv.Atoi(os.Getenv("PEER_PROTOCOL"))
	if err != nil {
		return config.Config{}, err
	}
	metrics, err := strconv.Atoi(os.Getenv("PEER_PORT"))
	if err != nil {
		return config.Config{}, err
	}
	password, _ := u.User.Password()
	return config.Config{
		Host: u.Hostname(), Port: port, Username: u.User.Username(), Password: password, Database: u.Path[1:],
		Publication: publication.Config{
			Name: "outbox_pub", Operations: publication.Operations{publication.OperationInsert},
			Tables: publication.Tables{{Name: "outbox", Schema: "public", ReplicaIdentity: publication.ReplicaIdentityDefault}},
		},
		Slot:   slot.Config{Name: os.Getenv("REPLICATION_SLOT"), SlotActivityCheckerInterval: 3000, ProtoVersion: protocol},
		Metric: config.MetricConfig{Port: metrics},
		Logger: config.LoggerConfig{LogLevel: slog.LevelWarn, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))},
	}, nil
}

const (
	batchRows     = 50_000
	flushInterval = 200 * time.Millisecond
)

// writer gathers rows until the batch is full or the interval is over.
type writer struct {
	ch    driver.Conn
	query string

	mu   sync.Mutex
	rows columns
	ack  func() error // of the last message
}

type columns struct {
	ids                          []uuid.UUID
	types, environments, context []string
	at                           []time.Time
}

func newWriter() (*writer, error) {
	ch, err := clickhouse.Open(&clickhouse.Options{
		Addr: []string{os.Getenv("CLICKHOUSE_HOST") + ":" + os.Getenv("CLICKHOUSE_PORT")},
		Auth: clickhouse.Auth{Database: os.Getenv("CLICKHOUSE_SCHEMA"), Username: os.Getenv("CLICKHOUSE_USER"), Password: os.Getenv("CLICKHOUSE_PASSWORD")},
	})
	return &writer{ch: ch, query: "INSERT INTO peer_log (id, event_type, event_date_time, environment, event_context)"}, err
}

func (w *writer) handle(m *replication.ListenerContext) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ack = m.Ack
	if insert, ok := m.Message.(*format.Insert); ok {
		w.add(insert.Decoded)
	}
	if len(w.rows.ids) >= batchRows {
		w.flush()
	}
}

func (w *writer) add(row map[string]any) {
	id, err := uuid.Parse(fmt.Sprint(row["id"]))
	if bytes, ok := row["id"].([16]byte); ok {
		id, err = bytes, nil
	}
	check(err)
	at, ok := row["event_date_time"].(time.Time)
	if !ok {
		check(fmt.Errorf("event_date_time is a %T", row["event_date_time"]))
	}
	document, err := json.Marshal(row["event_context"])
	check(err)
	w.rows.ids, w.rows.types = append(w.rows.ids, id), append(w.rows.types, fmt.Sprint(row["event_type"]))
	w.rows.at, w.rows.environments = append(w.rows.at, at), append(w.rows.environments, fmt.Sprint(row["environment"]))
	w.rows.context = append(w.rows.context, string(document))
}

func (w *writer) flushRegularly() {
	for range time.Tick(flushInterval) {
		w.mu.Lock()
		w.flush()
		w.mu.Unlock()
	}
}

func (w *writer) flush() {
	if w.ack == nil {
		return
	}
	if len(w.rows.ids) > 0 {
		check(w.insert())
		w.rows = columns{}
	}
	check(w.ack())
	w.ack = nil
}

func (w *writer) insert() error {
	batch, err := w.ch.PrepareBatch(context.Background(), w.query)
	if err != nil {
		return err
	}
	for i, column := range []any{w.rows.ids, w.rows.types, w.rows.at, w.rows.environments, w.rows.context} {
		if err := batch.Column(i).Append(column); err != nil {
			return err
		}
	}
	return batch.Send()
}

// check ends the program: its supervisor starts it again, and what was not acknowledged comes again.
func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "gopqcdc:", err)
		os.Exit(1)
	}
}
