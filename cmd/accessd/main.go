// Command accessd gives a team certificate-based, role-checked, provably
// audited SSH access to every machine it owns.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/accessd/accessd/lib/cli"
	"github.com/accessd/accessd/lib/srv/child"
)

func main() {
	if code, ok := child.Run(os.Args); ok {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}
