package recording

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// DefaultQuota is how much a spool holds while the store is away, in bytes.
const DefaultQuota = 4 << 30

// DefaultPatience is how long a disk may take. One that is slow answers in time.
const DefaultPatience = 30 * time.Second

// ErrStalled is that the disk of the spool does not answer.
var ErrStalled = fault.New(fault.Unavailable, "the recording cannot be written: the disk does not answer")

// Header says what a recording is of.
type Header struct {
	Session  names.SessionID // required
	Started  time.Time       // zero means now
	Cluster  string
	User     names.UserName
	Login    names.Login
	NodeID   names.NodeID
	NodeName string
	Kind     string // "shell" or "exec"
	Command  string // cut to 32 KiB
	Terminal bool
	Term     string
	Columns  uint32
	Rows     uint32

	// OnFail, when set, is called when a part cannot be closed behind the back of
	// whoever prints, so that a quiet session may end, too. It is called from any
	// goroutine, and once until parts can be closed again. With [ErrStalled] a Print,
	// and whatever else is called, may not return before the disk answers.
	OnFail func(error)
}

// Config configures a [Recorder].
type Config struct {
	// Dir is the spool, made when absent; required. It belongs to one Recorder.
	Dir string
	// Recipients returns for whom the next part is sealed: X25519 ("age1…"),
	// ssh-ed25519 and ssh-rsa public keys. Nil, or nobody, means not sealed.
	Recipients func() []string
	// Cluster names the cluster in a header that does not; nil leaves it out.
	Cluster func() string
	// MaxSession returns how much of a session is recorded, in bytes of frames; nil,
	// or zero, means all of it. Beyond it prints fail.
	MaxSession func() int64
	// Upload is where parts go; nil keeps them in the spool.
	Upload Upload
	// Quota bounds the spool, in bytes; zero means [DefaultQuota].
	Quota int64
	// Patience is how long the disk may keep a session waiting before that is told to
	// OnFail, and Begin and Close return [ErrStalled]; zero means [DefaultPatience].
	Patience time.Duration

	Now        func() time.Time      // zero means [time.Now]
	Registerer prometheus.Registerer // nil keeps the counters private
	Log        *zap.Logger           // nil discards
}

// Upload keeps parts durably. Its methods return nil once the store has confirmed.
// The same call again changes nothing. An error of kind Conflict or BadInput says
// that the same call will never do; any other is tried again.
type Upload interface {
	UploadPart(ctx context.Context, req *accessdv1.UploadPartRequest) error
	Complete(ctx context.Context, req *accessdv1.CompleteRecordingRequest) error
}

// Summary is what session.end says of a recording.
type Summary struct {
	Parts  uint32
	Root   string // of the digest chain, hex
	Bytes  int64  // of the parts as stored
	Sealed bool   // at least one part is
}

// Bounds of a header's text, in bytes. A client chooses the command and TERM.
const (
	maxCommand = 32 << 10
	maxText    = 1 << 10
)

// start returns h as the first frame of a recording.
func (h Header) start() *accessdv1.FrameStart {
	return &accessdv1.FrameStart{
		Version: version, Session: string(h.Session), Started: timestamppb.New(h.Started),
		Cluster: cut(h.Cluster, maxText), User: cut(string(h.User), maxText), Login: cut(string(h.Login), maxText),
		NodeId: cut(string(h.NodeID), maxText), NodeName: cut(h.NodeName, maxText),
		Kind: cut(h.Kind, maxText), Command: cut(h.Command, maxCommand), Terminal: h.Terminal,
		Term: cut(h.Term, maxText), Columns: h.Columns, Rows: h.Rows,
	}
}

// cut returns s as UTF-8 of at most n bytes; protobuf takes nothing else.
func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	s = strings.ToValidUTF8(s, "\ufffd")
	for len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// recordingOf returns what lists say of a recording that began with start.
func recordingOf(start *accessdv1.FrameStart, sealed bool) *accessdv1.RecordingOf {
	return &accessdv1.RecordingOf{
		User: start.GetUser(), Login: start.GetLogin(), NodeId: start.GetNodeId(), NodeName: start.GetNodeName(),
		Kind: start.GetKind(), Command: start.GetCommand(), Terminal: start.GetTerminal(),
		Started: start.GetStarted(), Sealed: sealed,
	}
}
