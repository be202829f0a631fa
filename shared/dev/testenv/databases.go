package testenv

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"diehard/migrations"
	"diehard/shared/clickhouse"
	"diehard/shared/dev/embedded"
	"diehard/shared/postgres"
)

// templateLock is the advisory lock for creating the template database.
const templateLock = 0x74656d706c617465 // "template"

var template struct {
	once sync.Once
	name string
	err  error
}

// createPostgres clones the migrated template and returns the clone's address.
func (b *backend) createPostgres(t testing.TB, name string) string {
	t.Helper()
	template.once.Do(func() { template.name, template.err = b.makeTemplate(context.Background()) })
	require.NoError(t, template.err, "template database")
	admin := b.admin(t.Context(), t)
	defer admin.Close(t.Context())
	_, err := admin.Exec(t.Context(), fmt.Sprintf("CREATE DATABASE %s TEMPLATE %s", name, template.name))
	require.NoError(t, err)
	t.Cleanup(func() { b.dropPostgres(t, name) })
	return b.postgresURL(name)
}

func (b *backend) admin(ctx context.Context, t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(ctx, b.postgres.String())
	require.NoError(t, err)
	return conn
}

// makeTemplate migrates a database once for all tests with these migrations. It
// gets its name when complete, so that a killed maker leaves no half template.
func (b *backend) makeTemplate(ctx context.Context) (string, error) {
	hash, err := hashMigrations()
	if err != nil {
		return "", err
	}
	name := "template_" + hash
	admin, err := pgx.Connect(ctx, b.postgres.String())
	if err != nil {
		return "", err
	}
	defer admin.Close(ctx)
	if _, err := admin.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(templateLock)); err != nil {
		return "", err
	}
	var exists bool
	err = admin.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists)
	if err != nil || exists {
		return name, err
	}
	half := name + "_half"
	for _, statement := range []string{"DROP DATABASE IF EXISTS " + half, "CREATE DATABASE " + half} {
		if _, err := admin.Exec(ctx, statement); err != nil {
			return "", err
		}
	}
	for _, set := range []migrations.Set{migrations.Outbox("", ""), migrations.API("")} {
		if err := set.Up(ctx, postgres.Config{URL: b.postgresURL(half)}, slog.New(slog.DiscardHandler)); err != nil {
			return "", err
		}
	}
	_, err = admin.Exec(ctx, fmt.Sprintf("ALTER DATABASE %s RENAME TO %s", half, name))
	return name, err
}

// hashMigrations names the content of PostgreSQL's migrations.
func hashMigrations() (string, error) {
	root, err := embedded.Root()
	if err != nil {
		return "", err
	}
	outbox, err := filepath.Glob(filepath.Join(root, "migrations", "outbox", "*.sql"))
	if err != nil {
		return "", err
	}
	api, err := filepath.Glob(filepath.Join(root, "migrations", "api", "*.sql"))
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, file := range append(outbox, api...) {
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", filepath.Base(file), len(content), content)
	}
	return hex.EncodeToString(sum.Sum(nil)[:6]), nil
}

// dropPostgres drops the slots of a database, then the database.
func (b *backend) dropPostgres(t testing.TB, name string) {
	t.Helper()
	ctx, cancel := cleanupContext()
	defer cancel()
	admin := b.admin(ctx, t)
	defer admin.Close(ctx)
	require.NoError(t, dropSlots(ctx, admin, name))
	_, err := admin.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
	require.NoError(t, err)
}

// dropSlots tries again while a walsender is on its way out.
func dropSlots(ctx context.Context, admin *pgx.Conn, database string) error {
	for {
		_, err := admin.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
			WHERE database = $1 AND active`, database)
		if err != nil {
			return err
		}
		_, err = admin.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
			WHERE database = $1 AND NOT active`, database)
		if err != nil && ctx.Err() != nil {
			return err
		}
		var left int
		err = admin.QueryRow(ctx, "SELECT count(*) FROM pg_replication_slots WHERE database = $1", database).Scan(&left)
		if err != nil || left == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d slots of %s are still in use: %w", left, database, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// createClickHouse makes and migrates a database.
func (b *backend) createClickHouse(t testing.TB, name string) clickhouse.Config {
	t.Helper()
	cfg := b.clickhouse
	cfg.Database = name
	require.NoError(t, migrations.UpClickHouse(t.Context(), cfg, slog.New(slog.DiscardHandler)))
	t.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		conn, err := clickhouse.Open(ctx, b.clickhouse)
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, conn.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" SYNC"))
	})
	return cfg
}
