package main

import (
	"github.com/spf13/cobra"

	"diehard/shared/healthcheck"
	"diehard/shared/settings"
)

func healthcheckCommand() *cobra.Command {
	var ready bool
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Check the api at API_ADDR: liveness, or readiness; for containers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The address alone: a health check does not validate the other settings.
			cfg, err := settings.Parse[struct {
				Addr string `env:"API_ADDR" envDefault:"127.0.0.1:8080" form:"address"`
			}]("api healthcheck")
			if err != nil {
				return usageError{err}
			}
			return healthcheck.Check(cmd.Context(), cfg.Addr, ready)
		},
	}
	cmd.Flags().BoolVar(&ready, "ready", false, "check readiness: /readyz instead of /healthz")
	return cmd
}
