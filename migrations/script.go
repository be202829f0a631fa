package migrations

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"text/tabwriter"

	"github.com/pressly/goose/v3"

	"diehard/shared/postgres"
)

// searchPath is that of every session of ours, see package postgres.
const searchPath = "pg_catalog, pg_temp"

// The script sets the search_path for itself, and back at its end: it may run in
// the middle of others. Nothing in it needs a transaction, and it may be run in one.
const (
	scriptBegin = `SELECT pg_catalog.set_config('diehard.search_path', pg_catalog.current_setting('search_path'), false),
       pg_catalog.set_config('search_path', '` + searchPath + `', false);
`
	scriptEnd = `
SELECT pg_catalog.set_config('search_path', pg_catalog.current_setting('diehard.search_path'), false);
`
)

// WriteAll writes every migration as one SQL script for an empty database, the rows of
// the version table included: [Set.Up] then finds nothing to do.
func (s Set) WriteAll(w io.Writer) error {
	return s.script(w, func(int64) bool { return false }, false)
}

// WritePending is WriteAll without what has been run. It changes nothing.
func (s Set) WritePending(ctx context.Context, cfg postgres.Config, w io.Writer) error {
	list, err := s.Status(ctx, cfg)
	if err != nil {
		return err
	}
	applied, versioned := map[int64]bool{}, false
	for _, m := range list {
		applied[m.Version] = m.Applied()
		versioned = versioned || m.Applied()
	}
	return s.script(w, func(version int64) bool { return applied[version] }, versioned)
}

// script writes what is not applied. versioned means that the version table exists.
func (s Set) script(w io.Writer, applied func(version int64) bool, versioned bool) error {
	files, err := s.files()
	if err != nil {
		return err
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return fmt.Errorf("embedded migrations: %w", err)
	}
	var pending strings.Builder
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return fmt.Errorf("embedded migrations: %w", err)
		}
		if applied(version) {
			continue
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return fmt.Errorf("embedded migrations: %w", err)
		}
		fmt.Fprintf(&pending, "\n-- %s\n%s\n%s;\n", path.Join(s.name, name), statements(string(text)), s.store().insert(version))
	}
	if pending.Len() == 0 {
		_, err := fmt.Fprintf(w, "-- nothing is pending (%s)\n", s.name)
		return err
	}
	begin := fmt.Sprintf("-- Die Hard: %s, schema %s. In psql: psql --single-transaction -v ON_ERROR_STOP=1 -f FILE\n%s",
		s.name, s.schema.Quoted(), scriptBegin)
	if !versioned {
		begin += s.firstTime()
	}
	_, err = io.WriteString(w, begin+pending.String()+scriptEnd)
	return err
}

// firstTime creates the schema and the version table, as goose does.
func (s Set) firstTime() string {
	begin := "\n"
	if s.schema.Name() != "public" { // which is there, and not for everyone to create
		begin += "CREATE SCHEMA IF NOT EXISTS " + s.schema.Quoted() + ";\n"
	}
	return begin + s.store().create() + ";\n" + s.store().insert(0) + ";\n"
}

// statements returns the text of a migration without goose's annotations.
func statements(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "-- +goose ") {
			out.WriteString(line)
		}
	}
	return strings.TrimSpace(out.String())
}

// WriteStatus writes a list of migrations as a table.
func WriteStatus(w io.Writer, list []Status) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "DATABASE\tMIGRATION\tAPPLIED")
	for _, m := range list {
		applied := "pending"
		if m.Applied() {
			applied = m.AppliedAt.Format("2006-01-02 15:04:05")
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", m.Database, m.Name, applied)
	}
	return table.Flush()
}
