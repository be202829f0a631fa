package migrations

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"

	"github.com/jackc/pgerrcode"

	"diehard/shared/postgres"
)

// prepare creates the schema if it is missing, and refuses one in which other
// tables have the names of ours.
func (s Set) prepare(ctx context.Context, db *sql.DB) error {
	schema := s.schema.Quoted()
	var exists bool
	if err := db.QueryRowContext(ctx, "SELECT pg_catalog.to_regnamespace($1) IS NOT NULL", schema).Scan(&exists); err != nil {
		return fmt.Errorf("look for schema %s: %w", schema, err)
	}
	if !exists {
		return s.createSchema(ctx, db)
	}
	versioned, err := s.store().TableExists(ctx, db)
	if err != nil {
		return err
	}
	if versioned {
		return nil
	}
	for _, name := range s.made {
		var taken bool
		relation := schema + "." + name
		if err := db.QueryRowContext(ctx, "SELECT pg_catalog.to_regclass($1) IS NOT NULL", relation).Scan(&taken); err != nil {
			return fmt.Errorf("look for %s: %w", relation, err)
		}
		if taken {
			return s.taken(relation)
		}
	}
	return s.prepareNames(ctx, db)
}

func (s Set) taken(what string) error {
	return fmt.Errorf("%s exists, and was not made by `%s`: %s", what, s.command, s.fix)
}

// prepareNames refuses functions and a publication of another that have the names of ours.
func (s Set) prepareNames(ctx context.Context, db *sql.DB) error {
	var function string
	var publication bool
	err := db.QueryRowContext(ctx, `SELECT coalesce((SELECT min(p.oid::regprocedure::text) FROM pg_catalog.pg_proc AS p
			WHERE p.pronamespace = pg_catalog.to_regnamespace($1) AND p.proname::text = ANY ($2)), ''),
			EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $3)`, s.schema.Quoted(), s.called, s.publication).Scan(&function, &publication)
	switch {
	case err != nil:
		return fmt.Errorf("look for names of ours: %w", err)
	case function != "":
		return s.taken("function " + function)
	case publication:
		return fmt.Errorf("publication %s exists, and was not made by `%s`: set REPLICATION_PUBLICATION to another name", s.publication, s.command)
	}
	return nil
}

func (s Set) createSchema(ctx context.Context, db *sql.DB) error {
	schema := s.schema.Quoted()
	_, err := db.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+schema)
	if postgres.IsCode(err, pgerrcode.InsufficientPrivilege) {
		var user string
		if err := db.QueryRowContext(ctx, "SELECT pg_catalog.quote_ident(current_user)").Scan(&user); err != nil {
			return err
		}
		return fmt.Errorf("schema %s does not exist, and %s may not create it; as the database's owner: CREATE SCHEMA %s AUTHORIZATION %s",
			schema, user, schema, user)
	}
	if err != nil {
		return fmt.Errorf("create schema %s: %w", schema, err)
	}
	return nil
}

// warn logs what is not as safe as it could be. A role that may create in the schema
// can put a function beside ours that calls without the schema's name find first.
func (s Set) warn(ctx context.Context, db *sql.DB, log *slog.Logger) error {
	var open bool
	var user string
	var trusted bool
	err := db.QueryRowContext(ctx, `SELECT current_user, `+postgres.GrantedOwner+`, EXISTS (
		SELECT FROM pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) AS a
		WHERE a.grantee = 0 AND a.privilege_type = 'CREATE')
		FROM pg_catalog.pg_namespace AS n, (SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user) AS o (owner)
		WHERE n.nspname = $1`, s.schema.Name()).Scan(&user, &trusted, &open)
	if err != nil {
		return fmt.Errorf("read the privileges of schema %s: %w", s.schema.Quoted(), err)
	}
	if !trusted {
		log.WarnContext(ctx, "the tables belong to a role that may create in the schema only as every login may: programs with another login do not use them",
			"schema", s.schema.Name(), "fix", fmt.Sprintf("GRANT CREATE ON SCHEMA %s TO %q", s.schema.Quoted(), user))
	}
	if open {
		log.WarnContext(ctx, "every login may create tables and functions in the schema: close it, or choose another one",
			"schema", s.schema.Name(), "fix", "REVOKE CREATE ON SCHEMA "+s.schema.Quoted()+" FROM PUBLIC")
	}
	return nil
}
