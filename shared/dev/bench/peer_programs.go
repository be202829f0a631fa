package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"diehard/shared/dev/embedded"
)

// diehard is the streamer as a peer; its control runs the same once more.
func diehard(env *environment, title string) *program {
	return &program{
		title: title, setup: "default settings", binary: env.streamer, args: []string{"run"}, slot: true,
		from: producing{table: "outbox", id: "id", insert: `INSERT INTO outbox (event_type, environment, event_context) SELECT ` + peerType + `, 'Bench', {context}`},
		to: func(b *testbed) arrival {
			return arrival{
				count: `SELECT count() FROM event_log`,
				rows: `SELECT commit_lsn, toString(event_id), JSONExtractInt(event_context, 'w'), JSONExtractInt(event_context, 'n')
				       FROM event_log WHERE JSONHas(event_context, 'w')`,
				query: b.askClickHouse,
			}
		},
	}
}

const peerType = `(ARRAY['order_created','order_paid','order_shipped','user_logged_in','cart_updated'])[1 + n % 5]`

// peerLogArrival are the rows of peer_log; those of one insert have one arrived_at.
func peerLogArrival(b *testbed) arrival {
	return arrival{
		count: `SELECT count() FROM peer_log`,
		rows: `SELECT toUInt64(toUnixTimestamp64Micro(arrived_at)), toString(id), JSONExtractInt(event_context, 'w'), JSONExtractInt(event_context, 'n')
		       FROM peer_log WHERE JSONHas(event_context, 'w')`,
		query: b.askClickHouse,
	}
}

func gopqcdc(env *environment, protocol int, binary string) *program {
	p := diehard(env, fmt.Sprintf("go-pq-cdc, protocol %d", protocol))
	p.setup = fmt.Sprintf("v1.11.12, protoVersion %d, batches of 50,000 rows or 200 ms by clickhouse-go, the last message of a batch acknowledged after its insert", protocol)
	p.binary, p.args, p.to, p.log = binary, nil, peerLogArrival, true
	port, err := embedded.FreePort()
	if err != nil {
		port = 0
	}
	p.environ = []string{fmt.Sprintf("PEER_PROTOCOL=%d", protocol), fmt.Sprintf("PEER_PORT=%d", port)}
	return p
}

// watermillTables are those that watermill-sql's subscriber creates at its first start.
var watermillTables = []string{
	`CREATE TABLE watermill_events ("offset" bigserial, uuid varchar(36) NOT NULL, created_at timestamp NOT NULL DEFAULT current_timestamp,
		payload json, metadata json, transaction_id xid8 NOT NULL, PRIMARY KEY (transaction_id, "offset"))`,
}

func watermill(binary string, batched bool) *program {
	p := &program{
		title: "watermill-sql, a row per insert", binary: binary, to: peerLogArrival, tables: watermillTables, log: true,
		setup: "v4.1.2, DefaultPostgreSQLSchema, 1,000 messages a query, polled every 200 ms, each message acknowledged after its insert",
		from: producing{
			table: "watermill_events", id: "uuid",
			insert: `INSERT INTO watermill_events (uuid, payload, metadata, transaction_id) SELECT gen_random_uuid(), {context}, '{}', pg_current_xact_id()`,
		},
	}
	if batched {
		p.title, p.environ = "watermill-sql, batched", []string{"PEER_BATCHED=1"}
		p.setup = "the same with batches of 50,000 rows or 200 ms; a message is acknowledged when it is in the batch, because the next one comes only then"
	}
	return p
}

// buildPeer compiles a peer, a module of its own, which is fetched on demand. reason says why
// it cannot be had.
func buildPeer(ctx context.Context, env *environment, name string) (binary, reason string) {
	root, err := embedded.Root()
	if err != nil {
		return "", err.Error()
	}
	binary = filepath.Join(env.dir, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, ".")
	cmd.Dir = filepath.Join(root, "shared/dev/bench/peers", name)
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Sprintf("go build: %s %s", err, lastLine(out))
	}
	return binary, ""
}
