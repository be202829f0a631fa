package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"diehard/shared/embedded"
)

func streamerCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "streamer COMMAND …",
		Short:              "Run a command of the streamer on the engines that run: status, doctor, verify, …",
		DisableFlagParsing: true, // they are the streamer's
		RunE:               func(_ *cobra.Command, args []string) error { return becomeStreamer(args) },
	}
}

// becomeStreamer replaces this process, so that terminal, signals and exit code are the streamer's.
func becomeStreamer(args []string) error {
	if _, err := readDatabases(); err != nil {
		return err
	}
	dir, err := embedded.DevDir()
	if err != nil {
		return err
	}
	stack := &embedded.Stack{}
	for _, engine := range embedded.FindEngines(dir) {
		switch e := engine.(type) {
		case *embedded.Postgres:
			stack.Postgres = e
		case *embedded.ClickHouse:
			stack.ClickHouse = e
		}
	}
	if os.Getenv("DATABASE_URL") != "" {
		stack.Postgres = nil
	} else if stack.Postgres == nil {
		return errors.New("PostgreSQL does not run: start it with make run or make up, or set DATABASE_URL")
	}
	if os.Getenv("CLICKHOUSE_HOST") != "" {
		stack.ClickHouse = nil
	} else if stack.ClickHouse == nil {
		return errors.New("ClickHouse does not run: start it with make run or make up, or set CLICKHOUSE_HOST")
	}
	bin, err := programDir()
	if err != nil {
		return err
	}
	program := filepath.Join(bin, "streamer")
	return syscall.Exec(program, append([]string{program}, args...), environFor(stack))
}
