//go:build unix

package events

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/tessera/client"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// witnessInterval is the shortest time between two checkpoints that witnesses
	// are asked to cosign.
	witnessInterval = 5 * time.Second
	// witnessTimeout bounds one request to a witness.
	witnessTimeout = 10 * time.Second
	// maxWitnessAnswer bounds a witness's answer, in bytes; a cosignature has 200.
	maxWitnessAnswer = 16 << 10
)

// Witness is somebody who cosigns checkpoints (https://c2sp.org/tlog-witness).
type Witness struct {
	URL string // its submission prefix
	Key string // its verifier key
}

// WitnessesConfig configures [Witnesses].
type WitnessesConfig struct {
	Log        *Log // required
	Witnesses  []Witness
	Interval   time.Duration         // between two rounds at least; 0 means 5 s
	Registerer prometheus.Registerer // nil means no metrics
}

// Witnesses asks witnesses to cosign what a log signed. It works beside the log,
// which waits for none of them; what they cosigned last is kept in the log's
// directory, below cosigned/.
type Witnesses struct {
	cfg    WitnessesConfig
	log    *zap.Logger
	client *http.Client
	all    []witness             // as configured
	trees  map[string][]*witness // for each tree, by its name

	rounds  *prometheus.CounterVec
	covered *prometheus.GaugeVec
}

// witness is what is known of one and a tree; only its turn of a round touches it.
type witness struct {
	note.Verifier

	url     string
	size    uint64 // of the checkpoint that it cosigned last, as far as is known
	done    uint64 // size that it cosigned for this process or an earlier one
	failing bool
}

// NewWitnesses returns what asks cfg.Witnesses once it runs.
func NewWitnesses(cfg WitnessesConfig) (*Witnesses, error) {
	if cfg.Interval == 0 {
		cfg.Interval = witnessInterval
	}
	w := &Witnesses{
		cfg: cfg, log: cfg.Log.cfg.Log.Named("witness"), trees: map[string][]*witness{},
		client: &http.Client{
			Timeout: witnessTimeout, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "accessd", Subsystem: "audit", Name: "witness_requests_total", Help: "Checkpoints sent to a witness, by witness and by whether it cosigned.",
		}, []string{"witness", "result"}),
		covered: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "accessd", Subsystem: "audit", Name: "witness_entries", Help: "Entries of the audit log in the last checkpoint that a witness cosigned.",
		}, []string{"witness"}),
	}
	for _, c := range cfg.Witnesses {
		v, err := ParseWitnessKey(c.Key)
		if err != nil {
			return nil, err
		}
		u, err := url.Parse(c.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fault.New(fault.BadInput, "witness %s: URL %q: want http:// or https:// and a host", v.Name(), clip(c.URL))
		}
		w.all = append(w.all, witness{Verifier: v, url: u.JoinPath("add-checkpoint").String()})
	}
	if cfg.Registerer != nil {
		if err := errors.Join(cfg.Registerer.Register(w.rounds), cfg.Registerer.Register(w.covered)); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// Run asks the witnesses for each new checkpoint, until ctx ends. It never fails.
func (w *Witnesses) Run(ctx context.Context) error {
	defer w.client.CloseIdleConnections()
	tick := time.NewTicker(w.cfg.Interval)
	defer tick.Stop()
	for {
		w.round(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// witnessed is how many of a log's newest trees are offered to witnesses: the one
// that is written to, and the one before, whose last checkpoint a witness may have
// missed.
const witnessed = 2

// round asks for what is not cosigned yet.
func (w *Witnesses) round(ctx context.Context) {
	v := w.cfg.Log.view().present()
	for i := max(0, len(v.trees)-witnessed); i < len(v.trees); i++ {
		w.tree(ctx, v.tree(i))
	}
}

// of returns what is known of the witnesses and a tree; of one that is met for the
// first time it learns from the directory what an earlier process reached.
func (w *Witnesses) of(p period) []*witness {
	if list, ok := w.trees[p.name]; ok {
		return list
	}
	var list []*witness
	for _, one := range w.all {
		list = append(list, &one)
		raw, err := p.tiles.file(cosignedFile(one), maxCheckpoint)
		if err != nil {
			continue
		}
		c, err := openCheckpoint(raw, p.key)
		if _, missing := cosigned(raw, one); err == nil && missing == nil {
			one.size, one.done = c.Size, c.Size
			w.covered.WithLabelValues(one.Name()).Set(float64(c.Size))
		}
	}
	w.trees[p.name] = list
	return list
}

// tree sends the latest checkpoint of a tree to those who have not cosigned it.
func (w *Witnesses) tree(ctx context.Context, p period) {
	raw, err := p.signed()
	if err != nil {
		return // the log itself complains
	}
	c, err := openCheckpoint(raw, p.key)
	if err != nil {
		w.log.Error("the audit log's checkpoint does not count", zap.Error(err))
		return
	}
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		sigs []note.Signature
		by   []*witness
	)
	for _, one := range w.of(p) {
		if one.done == c.Size {
			continue
		}
		wg.Go(func() {
			sig, err := w.ask(ctx, one, p, signedCheckpoint{c, raw})
			if ctx.Err() != nil {
				return
			}
			w.tell(one, p, err)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				sigs, by = append(sigs, sig), append(by, one)
			}
		})
	}
	wg.Wait()
	seen := addSignatures(raw, sigs)
	for _, one := range by {
		if err := w.cfg.Log.dir.replace(path.Join(p.name, cosignedFile(one)), seen); err != nil {
			w.log.Error("cannot keep a cosigned checkpoint", zap.String("witness", one.Name()), zap.Error(err))
			continue // and ask again
		}
		one.done = c.Size
		w.covered.WithLabelValues(one.Name()).Set(float64(c.Size))
	}
}

// tell counts what came of asking, and logs what changed.
func (w *Witnesses) tell(one *witness, p period, err error) {
	result := "cosigned"
	if err != nil {
		result = "failed"
	}
	w.rounds.WithLabelValues(one.Name(), result).Inc()
	switch {
	case err != nil && !one.failing:
		w.log.Error("a witness does not cosign the audit log; the log goes on without it", zap.String("witness", one.Name()), zap.String("origin", p.key.Name()), zap.Error(err))
	case err == nil && one.failing:
		w.log.Info("a witness cosigns the audit log again", zap.String("witness", one.Name()), zap.String("origin", p.key.Name()))
	}
	one.failing = err != nil
}

// ask returns the cosignature of one for the checkpoint. When the witness knows
// another checkpoint than was thought, it says which, and is asked again.
func (w *Witnesses) ask(ctx context.Context, one *witness, p period, c signedCheckpoint) (note.Signature, error) {
	for again := false; ; again = true {
		status, answer, err := w.post(ctx, one, p, c)
		switch {
		case err != nil:
			return note.Signature{}, err
		case status == http.StatusOK:
			one.size = c.Size
			return cosignatureIn(c.raw, answer, one)
		case status != http.StatusConflict || again:
			return note.Signature{}, fmt.Errorf("it answers %d %s", status, http.StatusText(status))
		}
		size, err := strconv.ParseUint(strings.TrimSuffix(string(answer), "\n"), 10, 64)
		if err != nil {
			return note.Signature{}, fmt.Errorf("it answers 409 and %q, want the size it knows", clip(string(answer)))
		}
		if size > c.Size {
			return note.Signature{}, fmt.Errorf("it cosigned %d entries of this log, which has %d: the log was cut back, or another signs with its key", size, c.Size)
		}
		one.size = size
	}
}

// post sends the checkpoint, with a proof that it continues the one that the
// witness cosigned last.
func (w *Witnesses) post(ctx context.Context, one *witness, p period, c signedCheckpoint) (status int, answer []byte, err error) {
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", one.size)
	if one.size > 0 {
		builder, err := client.NewProofBuilder(ctx, c.Size, p.tiles.fetch)
		if err != nil {
			return 0, nil, err
		}
		proof, err := builder.ConsistencyProof(ctx, one.size, c.Size)
		if err != nil {
			return 0, nil, err
		}
		for _, h := range proof {
			body.WriteString(base64.StdEncoding.EncodeToString(h) + "\n")
		}
	}
	body.WriteByte('\n')
	body.Write(c.raw)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, one.url, &body)
	if err != nil {
		return 0, nil, err
	}
	res, err := w.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	if answer, err = io.ReadAll(io.LimitReader(res.Body, maxWitnessAnswer+1)); err == nil && len(answer) > maxWitnessAnswer {
		err = fmt.Errorf("it answers more than %d bytes", maxWitnessAnswer)
	}
	return res.StatusCode, answer, err
}

// cosignatureIn returns the signature of one in its answer, which it must have
// made for the checkpoint in raw.
func cosignatureIn(raw, answer []byte, one note.Verifier) (note.Signature, error) {
	n, err := note.Open(slices.Concat(raw, answer), note.VerifierList(one))
	if err != nil {
		return note.Signature{}, fmt.Errorf("what it answers is not its cosignature: %w", err)
	}
	return n.Sigs[0], nil
}

// cosignedFile is the file with the checkpoint that one cosigned last.
func cosignedFile(one note.Verifier) string {
	return path.Join(cosignedDir, fmt.Sprintf("%08x", one.KeyHash()))
}

// replace puts data at name, below a directory that is made, whole or not at all.
func (d *privateDir) replace(name string, data []byte) error {
	dir := path.Dir(name)
	if err := d.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	temp := name + ".new"
	f, err := d.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = d.Rename(temp, name)
	}
	if err != nil {
		return err
	}
	return d.Sync(dir)
}
