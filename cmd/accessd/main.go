// Command accessd gives a team certificate-based, role-checked, provably
// audited SSH access to every machine it owns.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/accessd/accessd/lib/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}
