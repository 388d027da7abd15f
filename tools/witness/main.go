// Command witness is a C2SP tlog-witness for tests: the one of
// github.com/transparency-dev/witness, for the periods of one log, with its memory in
// the process. It is a module of its own, so that it weighs on nothing else.
//
// It is told the log's verifier keys, one a line, and its own signer key, listens on a port of
// its own choice on 127.0.0.1, and prints that address.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
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
		return fmt.Errorf("%d arguments, want the log's verifier keys and the witness's signer key", len(args))
	}
	logs := map[string]note.Verifier{}
	for _, key := range strings.Fields(args[0]) {
		log, err := note.NewVerifier(key)
		if err != nil {
			return fmt.Errorf("the log's key: %w", err)
		}
		logs[log.Name()] = log
	}
	signer, err := formats.NewSignerForCosignatureV1(args[1])
	if err != nil {
		return fmt.Errorf("the witness's key: %w", err)
	}
	w, err := witness.New(ctx, witness.Opts{
		Persistence: inmemory.New(),
		Signers:     []note.Signer{signer},
		VerifierForLog: func(_ context.Context, origin string) (note.Verifier, bool, error) {
			log, ok := logs[origin]
			return log, ok, nil
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
