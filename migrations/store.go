package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pressly/goose/v3/database"

	"diehard/shared/event"
)

// store is goose's memory of one [Set]: a table of its own in the schema of the
// set, so that an application that uses goose, too, is not touched.
type store struct {
	schema event.Schema
	table  string
}

var _ database.StoreExtender = store{}

// Tablename implements [database.Store].
func (s store) Tablename() string { return s.schema.Quoted() + "." + s.table }

func (s store) create() string {
	return "CREATE TABLE " + s.Tablename() + ` (
    version_id bigint      PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.now()
)`
}

func (s store) insert(version int64) string {
	return fmt.Sprintf("INSERT INTO %s (version_id) VALUES (%d)", s.Tablename(), version)
}

// TableExists implements [database.StoreExtender]. A view is an error: to read it is to
// call what its owner wants.
func (s store) TableExists(ctx context.Context, db database.DBTxConn) (exists bool, err error) {
	var kind string
	err = db.QueryRowContext(ctx, "SELECT relkind::text FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1)", s.Tablename()).Scan(&kind)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, nil
	case err == nil && kind != "r":
		return false, fmt.Errorf("%s is not a table, and was not made by the migrations: drop it", s.Tablename())
	}
	return err == nil, err
}

// CreateVersionTable implements [database.Store].
func (s store) CreateVersionTable(ctx context.Context, db database.DBTxConn) error {
	_, err := db.ExecContext(ctx, s.create())
	return err
}

// Insert implements [database.Store].
func (s store) Insert(ctx context.Context, db database.DBTxConn, req database.InsertRequest) error {
	_, err := db.ExecContext(ctx, s.insert(req.Version))
	return err
}

// Delete implements [database.Store].
func (s store) Delete(ctx context.Context, db database.DBTxConn, version int64) error {
	_, err := db.ExecContext(ctx, "DELETE FROM "+s.Tablename()+" WHERE version_id = $1", version)
	return err
}

// GetMigration implements [database.Store].
func (s store) GetMigration(ctx context.Context, db database.DBTxConn, version int64) (*database.GetMigrationResult, error) {
	var at time.Time
	err := db.QueryRowContext(ctx, "SELECT applied_at FROM "+s.Tablename()+" WHERE version_id = $1", version).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, database.ErrVersionNotFound
	}
	if err != nil {
		return nil, err
	}
	return &database.GetMigrationResult{Timestamp: at, IsApplied: true}, nil
}

// GetLatestVersion implements [database.Store].
func (s store) GetLatestVersion(ctx context.Context, db database.DBTxConn) (int64, error) {
	var version sql.NullInt64
	err := db.QueryRowContext(ctx, "SELECT max(version_id) FROM "+s.Tablename()).Scan(&version)
	if err == nil && !version.Valid {
		err = database.ErrVersionNotFound
	}
	return version.Int64, err
}

// ListMigrations implements [database.Store].
func (s store) ListMigrations(ctx context.Context, db database.DBTxConn) ([]*database.ListMigrationsResult, error) {
	rows, err := db.QueryContext(ctx, "SELECT version_id FROM "+s.Tablename()+" ORDER BY version_id DESC")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []*database.ListMigrationsResult
	for rows.Next() {
		m := &database.ListMigrationsResult{IsApplied: true}
		if err := rows.Scan(&m.Version); err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, rows.Err()
}
