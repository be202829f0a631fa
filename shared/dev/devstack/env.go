package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"diehard/shared/dev/embedded"
)

func envCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "env",
		Short: "Print what programs and psql need to reach everything local, as shell commands",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			stack, err := runningStack()
			if err != nil {
				return err
			}
			variables, err := localEnviron(stack)
			if err != nil {
				return err
			}
			for _, variable := range variables {
				name, value, _ := strings.Cut(variable, "=")
				fmt.Fprintf(cmd.OutOrStdout(), "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
			}
			return nil
		},
	}
}

// localEnviron returns the variables of make env: those of the programs, of libpq
// for the same database, and where the programs listen.
func localEnviron(stack *embedded.Stack) ([]string, error) {
	var variables []string
	var address string
	for _, variable := range environFor(stack) {
		name, value, _ := strings.Cut(variable, "=")
		if name == "DATABASE_URL" || strings.HasPrefix(name, "CLICKHOUSE_") {
			variables = append(variables, variable)
		}
		if name == "DATABASE_URL" {
			address = value
		}
	}
	libpq, err := libpqEnviron(address)
	if err != nil {
		return nil, err
	}
	return append(append(variables, libpq...), "API_URL=http://"+apiAddress(), "STREAMER_URL=http://"+streamerAddress()), nil
}

func libpqEnviron(address string) ([]string, error) {
	config, err := pgconn.ParseConfig(address)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	return []string{
		"PGHOST=" + config.Host, "PGPORT=" + strconv.Itoa(int(config.Port)), "PGUSER=" + config.User,
		"PGPASSWORD=" + config.Password, "PGDATABASE=" + config.Database,
	}, nil
}

func psqlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "psql [ARGUMENT …]",
		Short:              "Open psql on the embedded PostgreSQL",
		DisableFlagParsing: true, // all flags belong to psql
		RunE:               func(_ *cobra.Command, args []string) error { return execPsql(args) },
	}
}

// execPsql replaces this process by psql. The password is in its environment, which
// other users cannot read, and not among its arguments.
func execPsql(args []string) error {
	psql, err := exec.LookPath("psql")
	if err != nil {
		return errors.New("psql is not installed: install PostgreSQL's client (on Debian: apt-get install postgresql-client)")
	}
	postgres, err := runningPostgres()
	if err != nil {
		return err
	}
	variables, err := libpqEnviron(postgres.URL(embedded.DevDatabase))
	if err != nil {
		return err
	}
	return syscall.Exec(psql, append([]string{psql}, args...), with(os.Environ(), variables...))
}
