//go:build !linux

package cli

import "github.com/spf13/cobra"

// serverCommands is empty where accessd is a client only.
func serverCommands(*env) []*cobra.Command { return nil }
