package main

import (
	"github.com/spf13/cobra"

	"diehard/shared/health"
	"diehard/shared/settings"
	"diehard/streamer/config"
)

func healthcheckCommand() *cobra.Command {
	var ready bool
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask the streamer at STREAMER_ADDR whether it lives, for containers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := settings.Parse[config.Config]("streamer healthcheck")
			if err != nil {
				return err
			}
			return health.Check(cmd.Context(), cfg.Addr, ready)
		},
	}
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether it can work: /readyz instead of /healthz")
	return cmd
}
