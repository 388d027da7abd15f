// Command witness is a C2SP tlog-witness for tests: the one of
// github.com/transparency-dev/witness, for one log, with its memory in the
// process. It is a module of its own, so that it weighs on nothing else.
//
// It is told the log's verifier key and its own signer key, listens on a port of
// its own choice on 127.0.0.1, and prints that address.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	formats "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/witness/persistence/inmemory"
	"github.com/transparency-dev/witness/witness"
	"golang.org/x/mod/sumdb/note"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		slog.Error("witness", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%d arguments, want the log's verifier key and the witness's signer key", len(args))
	}
	log, err := note.NewVerifier(args[0])
	if err != nil {
		return fmt.Errorf("the log's key: %w", err)
	}
	signer, err := formats.NewSignerForCosignatureV1(args[1])
	if err != nil {
		return fmt.Errorf("the witness's key: %w", err)
	}
	w, err := witness.New(ctx, witness.Opts{
		Persistence: inmemory.New(),
		Signers:     []note.Signer{signer},
		VerifierForLog: func(_ context.Context, origin string) (note.Verifier, bool, error) {
			return log, origin == log.Name(), nil
		},
	})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", witness.NewHTTPHandler(w).AddCheckpoint)
	fmt.Println(ln.Addr())
	return (&http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}).Serve(ln)
}
