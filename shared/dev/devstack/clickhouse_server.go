package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/embedded/chserver"
)

// clickhouseServerCommand is how embedded.StartClickHouse runs ClickHouse as a
// process of its own. It ends on SIGTERM.
func clickhouseServerCommand() *cobra.Command {
	var host, build string
	var options chserver.Options
	var port int
	var replicas []int
	cmd := &cobra.Command{
		Use:    "clickhouse-server",
		Short:  "Serve ClickHouse's native protocol (started by up and run)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lock, err := embedded.HoldClickHouse(options.DataDir, port, replicas, build)
			if err != nil {
				return err
			}
			defer lock.Unlock()
			options.Users, err = serverUsers(options.DataDir)
			if err != nil {
				return err
			}
			options.Addr = net.JoinHostPort(host, strconv.Itoa(port))
			for _, port := range replicas {
				options.Replicas = append(options.Replicas, net.JoinHostPort(host, strconv.Itoa(port)))
			}
			return chserver.Serve(cmd.Context(), options)
		},
	}
	cmd.Flags().StringVar(&options.LibPath, "library", "", "path of libchdb")
	cmd.Flags().StringVar(&options.DataDir, "data", "", "data directory")
	cmd.Flags().StringVar(&host, "address", embedded.Host, "address to listen on")
	cmd.Flags().IntVar(&port, "port", 0, "port to listen on")
	cmd.Flags().IntSliceVar(&replicas, "replica", nil, "port of a further listener")
	cmd.Flags().DurationVar(&options.Lag, "replica-lag", 0, "time until an insert is visible through another listener")
	cmd.Flags().StringVar(&options.Profile, "profile", "", "XML in the profile of user default")
	cmd.Flags().StringVar(&options.User, "user", "", "XML in user default")
	cmd.Flags().StringVar(&options.Server, "server", "", "XML in the configuration of the server")
	cmd.Flags().StringVar(&options.Grants, "grants", "", "further privileges of the users")
	cmd.Flags().StringVar(&build, "build", "", "hash of this program")
	return cmd
}

// serverUsers returns the users of CLICKHOUSE_SERVER_USERS ("name:password …"), or
// user default with the password of the data folder.
func serverUsers(data string) (map[string]string, error) {
	users := map[string]string{}
	for _, user := range strings.Fields(os.Getenv("CLICKHOUSE_SERVER_USERS")) {
		name, password, _ := strings.Cut(user, ":")
		users[name] = password
	}
	if len(users) > 0 {
		return users, nil
	}
	password, err := embedded.Password(data)
	if err == nil && password == "" {
		err = fmt.Errorf("%s has no password", data)
	}
	return map[string]string{"default": password}, err
}
