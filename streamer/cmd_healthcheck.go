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
		Short: "Check the streamer at STREAMER_ADDR: liveness, or readiness; for containers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The address alone: a health check is no place to judge the other settings.
			cfg, err := settings.Parse[struct {
				Addr string `env:"STREAMER_ADDR" envDefault:"127.0.0.1:8081" form:"address"`
			}]("streamer healthcheck")
			if err != nil {
				return err
			}
			return healthcheck.Check(cmd.Context(), cfg.Addr, ready)
		},
	}
	cmd.Flags().BoolVar(&ready, "ready", false, "check readiness: /readyz instead of /healthz")
	return cmd
}
