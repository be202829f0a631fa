package main

import (
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"diehard/shared/embedded"
	"diehard/shared/embedded/chserver"
)

// clickhouseServerCommand is how embedded.StartClickHouse runs ClickHouse as a
// process of its own. It ends on SIGTERM.
func clickhouseServerCommand() *cobra.Command {
	var library, data, build string
	var port int
	cmd := &cobra.Command{
		Use:    "clickhouse-server",
		Short:  "Serve ClickHouse's native protocol (started by up and run)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lock, err := embedded.HoldClickHouse(data, port, build)
			if err != nil {
				return err
			}
			defer lock.Unlock()
			return chserver.Serve(cmd.Context(), chserver.Options{
				LibPath: library, DataDir: data, Addr: net.JoinHostPort(embedded.Host, strconv.Itoa(port)),
			})
		},
	}
	cmd.Flags().StringVar(&library, "library", "", "path of libchdb")
	cmd.Flags().StringVar(&data, "data", "", "data directory")
	cmd.Flags().IntVar(&port, "port", 0, "port on the loopback interface")
	cmd.Flags().StringVar(&build, "build", "", "hash of this program")
	return cmd
}
