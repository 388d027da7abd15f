package cli

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/services"
	"github.com/accessd/accessd/lib/srv/proxy"
	"github.com/accessd/accessd/lib/sshca"
	"github.com/accessd/accessd/lib/sshsig"
)

// maxSignature bounds a signature that is read, in bytes; see package sshsig.
const maxSignature = 16 << 10

type requestsReviewOptions struct {
	verdict   string
	reason    string
	signature string
	text      bool
}

func requestsReview(e *env, verdict, short string) *cobra.Command {
	o := requestsReviewOptions{verdict: verdict}
	c := &cobra.Command{
		Use:   verdict + " ID [--reason TEXT] [--text | --signature -]",
		Short: short,
		Long: short + ", if the section \"review\" of one of your roles says\n" +
			"that you may. With a forwarded agent (ssh -A) your key signs exactly what is\n" +
			"asked for and what you say. Without one, sign it yourself:\n\n" +
			"  ssh YOU@PROXY requests " + verdict + " ID --text |\n" +
			"  ssh-keygen -Y sign -f KEY -n accessd-request@CLUSTER |\n" +
			"  ssh YOU@PROXY requests " + verdict + " ID --signature -\n\n" +
			"Else it stands on the certificate of your connection, unless the rules demand a\n" +
			"signature.",
		Args: want("ID"),
		RunE: verb(func(ctx context.Context, args []string) error { return e.reviewRequest(ctx, args[0], o) }),
	}
	c.Flags().StringVar(&o.reason, "reason", "", "what you say to it; it is signed, too")
	c.Flags().StringVar(&o.signature, "signature", "", "FILE of your signature, or - for stdin")
	c.Flags().BoolVar(&o.text, "text", false, "print the text to sign, and do nothing")
	c.MarkFlagsMutuallyExclusive("text", "signature")
	return c
}

func (e *env) reviewRequest(ctx context.Context, id string, o requestsReviewOptions) error {
	if err := e.asPerson("requests " + o.verdict); err != nil {
		return err
	}
	prepared, err := e.requests().PrepareReview(ctx, connect.NewRequest(&accessdv1.PrepareReviewRequest{Id: id, Verdict: o.verdict, Note: o.reason}))
	if err != nil {
		return err
	}
	p := prepared.Msg
	if o.text {
		e.say("accessd: sign this with: ssh-keygen -Y sign -f KEY -n %s", p.GetNamespace())
		_, err := fmt.Fprint(e.stdout, p.GetStatement())
		return err
	}
	signature, err := e.signature(o, p)
	if err != nil {
		return err
	}
	if signature == "" && p.GetSignatureRequired() {
		e.say("accessd: this is what there is to sign:")
		e.say("%s", p.GetStatement())
		return fault.New(fault.Denied, "an approval of this request must be signed by your key").
			WithHint("with your agent: ssh -A …; else: ssh … --text | ssh-keygen -Y sign -f KEY -n %s | ssh … --signature -", p.GetNamespace())
	}
	res, err := e.requests().ReviewRequest(ctx, connect.NewRequest(&accessdv1.ReviewRequestRequest{
		Id: id, Verdict: o.verdict, Note: o.reason, Signature: signature, Certificate: e.call.Certificate,
	}))
	if err != nil {
		return err
	}
	return e.sayReviewed(res.Msg.GetRequest())
}

// sayReviewed says what became of r by its last review.
func (e *env) sayReviewed(r *accessdv1.AccessRequest) error {
	last := r.GetReviews()[len(r.GetReviews())-1]
	if last.GetProof() == services.ProofSignature {
		e.say("accessd: signed by key %s", last.GetFingerprint())
	} else {
		e.say("accessd: not signed; recorded with the certificate of this connection (ssh -A signs with your agent)")
	}
	if services.RequestState(r.GetState()) == services.RequestApproved {
		e.sayApproved(r)
	}
	return requestList(r).print(e.stdout, formatTable)
}

// signature returns the armored signature of p's statement: the one that is
// given, or the agent's; "" when there is none to have.
func (e *env) signature(o requestsReviewOptions, p *accessdv1.PrepareReviewResponse) (string, error) {
	if o.signature != "" {
		b, err := readAll("stdin", e.stdin, maxSignature) // where there are people there are no files
		return string(b), err
	}
	if e.call.Agent == nil {
		return "", nil
	}
	cert, err := e.certificate()
	if err != nil {
		return "", err
	}
	var out []byte
	err = e.call.Agent(func(a agent.ExtendedAgent) error {
		out, err = signWith(a, cert.Key, p)
		return err
	})
	if err == nil && out == nil {
		e.say("accessd: your agent does not have key %s of your certificate", ssh.FingerprintSHA256(cert.Key))
	}
	return string(out), err
}

// certificate returns the one that let the person in.
func (e *env) certificate() (*ssh.Certificate, error) {
	parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(e.call.Certificate)) //nolint:dogsled // its shape
	if cert, ok := parsed.(*ssh.Certificate); ok && err == nil {
		return cert, nil
	}
	return nil, fault.New(fault.Internal, "the connection has no certificate")
}

// signWith has the agent sign p's statement with key, or returns nil when it does
// not have it. That it refuses is an error: somebody may have said no.
func signWith(a agent.ExtendedAgent, key ssh.PublicKey, p *accessdv1.PrepareReviewResponse) ([]byte, error) {
	keys, err := a.List()
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "your agent does not answer")
	}
	for _, k := range keys {
		parsed, err := ssh.ParsePublicKey(k.Blob)
		if err != nil || !bytes.Equal(sshsig.Plain(parsed).Marshal(), key.Marshal()) {
			continue
		}
		out, err := sshsig.Sign(key, p.GetNamespace(), []byte(p.GetStatement()), func(data []byte) (*ssh.Signature, error) {
			return a.SignWithFlags(k, data, agent.SignatureFlagRsaSha512) // of other keys it means nothing
		})
		if err != nil {
			return nil, fault.Wrap(fault.Denied, err, "your agent did not sign").WithHint("without -A you can sign the text yourself; see --help")
		}
		return out, nil
	}
	return nil, nil
}

func requestsAssume(e *env) *cobra.Command {
	var printed bool
	c := &cobra.Command{
		Use:   "assume ID [--print]",
		Short: "Get a certificate with what your approved request gives",
		Long: "Get a certificate with what your approved request gives beside what you have.\n" +
			"With a forwarded agent (ssh -A) a new key and its certificate go there; else the\n" +
			"certificate, for the key of this connection, is printed:\n\n" +
			"  ssh YOU@PROXY requests assume ID > ~/.ssh/elevated-cert.pub\n" +
			"  ssh -o CertificateFile=~/.ssh/elevated-cert.pub …\n\n" +
			"It ends with the request, or with the certificate of this connection. A sign-in\n" +
			"brings along all of it by itself.",
		Args: want("ID"),
		RunE: verb(func(ctx context.Context, args []string) error { return e.assumeRequest(ctx, args[0], printed) }),
	}
	c.Flags().BoolVar(&printed, "print", false, "print the certificate though there is an agent")
	return c
}

func (e *env) assumeRequest(ctx context.Context, id string, printed bool) error {
	if err := e.asPerson("requests assume"); err != nil {
		return err
	}
	if e.call.Agent != nil && !printed {
		return e.call.Agent(func(a agent.ExtendedAgent) error {
			key, signer := sshca.Generate()
			cert, err := e.assumed(ctx, id, signer.PublicKey())
			if err != nil {
				return err
			}
			if err := proxy.Lend(a, key, cert, time.Now()); err != nil {
				return err
			}
			e.say("accessd: a key and its certificate are in your agent until %s", localEnd(cert))
			return nil
		})
	}
	own, err := e.certificate()
	if err != nil {
		return err
	}
	cert, err := e.assumed(ctx, id, own.Key)
	if err != nil {
		return err
	}
	e.say("accessd: this certificate for key %s is valid until %s", ssh.FingerprintSHA256(cert.Key), localEnd(cert))
	_, err = fmt.Fprintf(e.stdout, "%s %s\n", bytes.TrimSpace(ssh.MarshalAuthorizedKey(cert)), cert.KeyId)
	return err
}

// assumed returns a certificate for key with what the request gives.
func (e *env) assumed(ctx context.Context, id string, key ssh.PublicKey) (*ssh.Certificate, error) {
	res, err := e.requests().AssumeRequest(ctx, connect.NewRequest(&accessdv1.AssumeRequestRequest{
		Id: id, PublicKey: string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key))),
	}))
	if err != nil {
		return nil, err
	}
	parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(res.Msg.GetCertificate())) //nolint:dogsled // its shape
	cert, ok := parsed.(*ssh.Certificate)
	if err != nil || !ok || !bytes.Equal(cert.Key.Marshal(), key.Marshal()) {
		return nil, fault.New(fault.Internal, "the authority sent no certificate for the key")
	}
	return cert, nil
}

func localEnd(c *ssh.Certificate) string {
	return time.Unix(int64(c.ValidBefore), 0).Local().Format("2006-01-02 15:04:05")
}
