package crash_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"diehard/shared/dev/testenv"
)

// environ is the environment of the streamers and their commands, which live behind the
// network. They reach ClickHouse through any listener, the last one first if backwards.
func (w *environment) environ(backwards bool) []string {
	cfg := w.clickhouseConfig
	cfg.DeadLetterTable = deadLetters
	hosts := w.network.clickhouse.addresses()
	if backwards {
		slices.Reverse(hosts)
	}
	cfg.Host = strings.Join(hosts, ",")
	postgres := w.network.postgres.addresses()[0]
	return append(testenv.ClickHouseEnviron(cfg),
		"DATABASE_URL="+strings.Replace(w.url, fmt.Sprintf("127.0.0.1:%d", w.postgres.Port()), postgres, 1),
		"REPLICATION_SLOT="+w.slot(), "REPLICATION_MESSAGES=true",
		"REPLICATION_SENDER_TIMEOUT="+senderTimeout.String(),
		"CLICKHOUSE_COMPRESSION=lz4", // as over a network
		"CLICKHOUSE_BATCH_SIZE=8000",
		"CLICKHOUSE_FLUSH_INTERVAL=100ms",
		"CLICKHOUSE_INSERT_TIMEOUT=5s",
		"SHUTDOWN_TIMEOUT=3s",
		"STREAMER_ADDR=127.0.0.1:0",
		"LOG_FORMATTER=json",
		"GORACE=halt_on_error=1",
		"PATH="+os.Getenv("PATH"),
	)
}

// hold ends the streamers in order and keeps them from starting.
func (f *streamers) hold() {
	held := make(chan struct{})
	go func() {
		f.gate.Lock()
		close(held)
	}()
	for {
		for _, s := range f.members {
			s.end("SIGTERM by the operator", syscall.SIGTERM)
		}
		select {
		case <-held:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// release lets them start again, with another slot perhaps.
func (f *streamers) release() { f.gate.Unlock() }
