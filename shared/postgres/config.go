package postgres

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"diehard/shared/event"
	"diehard/shared/failure"
)

// Config of the connections to one database.
type Config struct {
	// URL is a connection string, postgres://user:password@host:port/database?sslmode=verify-full
	// or key=value pairs.
	URL string `env:"DATABASE_URL,required" secret:"true" example:"postgres://postgres@127.0.0.1:15432/diehard" doc:"Connection string of PostgreSQL, postgres://user:password@host:port/database"`
	// PasswordFile has the password; read at each connection.
	PasswordFile string `env:"DATABASE_PASSWORD_FILE" secret:"true" doc:"File with the password, read at each connection, for passwords that change; empty: the password of DATABASE_URL"`
	// PasswordCommand prints the password; run by the shell at each connection.
	PasswordCommand string `env:"DATABASE_PASSWORD_COMMAND" secret:"true" doc:"Shell command that prints the password, run at each connection, such as aws rds generate-db-auth-token …; empty: none"`
	// Schema holds the outbox.
	Schema event.Schema `env:"OUTBOX_SCHEMA" envDefault:"public" doc:"Schema of the outbox, its functions and views: letters, digits, _ and -; created if it is missing"`
	// MaxConns bounds the pool, at least 1.
	MaxConns int32 `env:"DATABASE_MAX_CONNS" envDefault:"16" min:"1" doc:"Maximum pool size of one process"`
}

// Validate rejects a malformed connection string, and two sources of a password.
func (c Config) Validate() error {
	if _, err := pgxpool.ParseConfig(c.URL); err != nil {
		return badURL(err)
	}
	if c.PasswordFile != "" && c.PasswordCommand != "" {
		return errors.New("DATABASE_PASSWORD_FILE and DATABASE_PASSWORD_COMMAND are both set: unset one")
	}
	return nil
}

var quotedPart = regexp.MustCompile(`"[^" =]+"`)

// badURL says what is wrong with a connection string without repeating any of it:
// in a malformed one the password can be anywhere.
func badURL(err error) error {
	_, problem, _ := strings.Cut(err.Error(), "`: ") // "cannot parse `string`: problem (cause)"
	return failure.Wrap(failure.Fatal, fmt.Errorf("DATABASE_URL: %s; expected: postgres://user:password@host:port/database, "+
		"special characters of the password as %%40 for @", quotedPart.ReplaceAllString(problem, `"…"`)))
}
