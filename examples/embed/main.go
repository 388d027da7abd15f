// Command embed runs a whole cluster inside itself: authority, proxy and a node
// that dials home, in the directory given as its argument.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"connectrpc.com/connect"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/config"
	"github.com/accessd/accessd/lib/daemon"
	"github.com/accessd/accessd/lib/rpc"
	"github.com/accessd/accessd/lib/srv/child"
)

func main() {
	if code, ok := child.Run(os.Args); ok { // the node in here has started it
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) != 2 {
		log.Fatal("usage: embed DIRECTORY")
	}
	if err := run(ctx, os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dir string) error {
	cfg := &config.Config{DataDir: dir, Listen: "127.0.0.1:0", Node: config.Node{Name: "here"}}
	d, err := daemon.New(cfg, daemon.Options{Stderr: os.Stderr})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-d.Ready():
	}
	users := rpc.Service(d.Admin(), accessdv1connect.NewUserServiceClient)
	res, err := users.AddUser(ctx, connect.NewRequest(&accessdv1.AddUserRequest{Name: "alice", Roles: []string{"access"}, Logins: []string{"root"}}))
	if err != nil {
		return err
	}
	fmt.Println("cluster on", d.Addr(), "with node", d.NodeName())
	fmt.Println("invite of alice:", res.Msg.GetInvite())
	return <-ended
}
