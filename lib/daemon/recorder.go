package daemon

import (
	"context"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/api/accessd/v1/accessdv1connect"
	"github.com/accessd/accessd/lib/events/recording"
	"github.com/accessd/accessd/lib/rpc"
)

// openRecorder opens the recorder of one server of sessions, which keeps what is
// not uploaded yet in a directory of that name. It uploads through the seat that
// this process has when the recorder runs.
func (d *Daemon) openRecorder(ctx context.Context, name string, at func() *seat) (*recording.Recorder, error) {
	r, err := recording.New(recording.Config{
		Dir:        d.path("recordings-spool", name),
		Cluster:    func() string { return *d.cluster.Load() },
		MaxSession: func() int64 { return d.cache.RecordingSettings().MaxSession },
		Recipients: func() []string { return d.cache.RecordingSettings().Recipients },
		Upload:     uploads{at}, Quota: d.cfg.Recordings.Quota,
		Registerer: prometheus.WrapRegistererWith(prometheus.Labels{"server": name}, d.metrics), Log: d.log.Named("recordings"),
	})
	if err != nil {
		return nil, err
	}
	d.run.atStop(ctx, rankLog, "spool of recordings", r.Close)
	return r, nil
}

// uploads takes recordings to the authority.
type uploads struct{ at func() *seat }

func (u uploads) service() accessdv1connect.RecordingServiceClient {
	return rpc.Service(u.at().calls, accessdv1connect.NewRecordingServiceClient)
}

// UploadPart implements [recording.Upload].
func (u uploads) UploadPart(ctx context.Context, req *accessdv1.UploadPartRequest) error {
	_, err := u.service().UploadPart(ctx, connect.NewRequest(req))
	return err
}

// Complete implements [recording.Upload].
func (u uploads) Complete(ctx context.Context, req *accessdv1.CompleteRecordingRequest) error {
	_, err := u.service().CompleteRecording(ctx, connect.NewRequest(req))
	return err
}
