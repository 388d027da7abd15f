//go:build unix

package events

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// maxSinkAnswer bounds what is read of a receiver's answer, and maxSinkFile a
	// file of headers or certificates, in bytes.
	maxSinkAnswer = 64 << 10
	maxSinkFile   = 256 << 10
)

// newReceiver returns what delivers to c's URL.
func newReceiver(c SinkConfig) (receiver, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fault.New(fault.BadInput, "URL %q: not one", clip(c.URL))
	}
	if u.User != nil {
		return nil, fault.New(fault.BadInput, "a URL has no place for a name and a password; put them into headers_file")
	}
	switch c.Type {
	case "webhook":
		return newHTTPReceiver(c, u, "application/x-ndjson", func(events [][]byte) ([]byte, error) { return JSONL.Append(nil, events) })
	case "otlp":
		if u.Path == "" || u.Path == "/" {
			u = u.JoinPath("v1", "logs")
		}
		r, err := newHTTPReceiver(c, u, "application/x-protobuf", otlpBody)
		if err == nil {
			r.accepted = otlpAccepted
		}
		return r, err
	case "syslog":
		return newSyslogReceiver(u)
	case "file":
		if u.Scheme != "file" || u.Host != "" || !filepath.IsAbs(u.Path) {
			return nil, fault.New(fault.BadInput, "URL %q: want file:///PATH", clip(c.URL))
		}
		return fileReceiver{u.Path}, nil
	}
	return nil, fault.New(fault.BadInput, "type %q: want webhook, syslog, otlp or file", clip(c.Type))
}

// httpReceiver posts events. An answer of 2xx confirms them.
type httpReceiver struct {
	url, contentType string
	headers          string // file, read for each request, so that a secret can be replaced
	body             func(events [][]byte) ([]byte, error)
	accepted         func(answer []byte) error // of 2xx; nil accepts all
	client           *http.Client
}

func newHTTPReceiver(c SinkConfig, u *url.URL, contentType string, body func([][]byte) ([]byte, error)) (*httpReceiver, error) {
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fault.New(fault.BadInput, "URL %q: want https:// and a host", clip(c.URL))
	}
	if c.HeadersFile != "" && u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return nil, fault.New(fault.BadInput, "URL %q: headers_file takes https, since headers hold secrets", clip(c.URL))
	}
	return &httpReceiver{
		url: u.String(), contentType: contentType, headers: c.HeadersFile, body: body,
		client: &http.Client{
			Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute},
			// Whom the events are for is configured; nobody else gets the secrets.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (r *httpReceiver) deliver(ctx context.Context, events [][]byte) error {
	body, err := r.body(events)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if err := r.addHeaders(req.Header); err != nil {
		return err
	}
	req.Header.Set("Content-Type", r.contentType)
	req.Header.Set("User-Agent", "accessd")
	res, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxSinkAnswer))
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("the receiver answered %s", Display(res.Status))
	}
	if err == nil && r.accepted != nil {
		err = r.accepted(answer)
	}
	return err
}

// addHeaders adds the lines "Name: value" of the headers file.
func (r *httpReceiver) addHeaders(h http.Header) error {
	if r.headers == "" {
		return nil
	}
	text, err := readSinkFile(r.headers)
	if err != nil {
		return err
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return fmt.Errorf("%s: line %d is not \"Name: value\"", r.headers, n) // and not shown
		}
		h.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return nil
}

func readSinkFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSinkFile))
}

// otlpBody returns events as OTLP over HTTP has them, in protobuf.
func otlpBody(events [][]byte) ([]byte, error) {
	parsed := make([]Event, len(events))
	for i, data := range events {
		var err error
		if parsed[i], err = ParseEvent(data); err != nil {
			return nil, err
		}
	}
	return encodeOTLP(parsed)
}

// refusedError is that a receiver has taken events but for some, which it will not
// take.
type refusedError struct {
	events  int
	message string
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("the receiver refused %d of the events: %s", e.events, e.message)
}

// otlpAccepted reads an answer of 200: it may say that some were refused, which
// must not be sent again (OTLP specification 1.9, "Partial Success").
func otlpAccepted(answer []byte) error {
	var m collectorpb.ExportLogsServiceResponse
	if err := proto.Unmarshal(answer, &m); err != nil {
		return fmt.Errorf("the receiver's answer is not OTLP: %w", err)
	}
	if p := m.GetPartialSuccess(); p.GetRejectedLogRecords() > 0 {
		return &refusedError{int(p.GetRejectedLogRecords()), Display(clip(p.GetErrorMessage()))}
	}
	return nil
}

// syslogReceiver sends messages in octet-counted frames (RFC 6587, Section 3.4.1;
// RFC 5425, Section 4.3). Syslog confirms nothing, so each batch has a connection
// of its own, which is closed one way: a receiver that has read all of it closes
// the other way, and one that dies does not.
type syslogReceiver struct {
	addr, host, ca string // ca is a file; "" is the system's
	tls            bool
}

func newSyslogReceiver(u *url.URL) (receiver, error) {
	r := syslogReceiver{addr: u.Host, host: u.Hostname(), ca: u.Query().Get("ca"), tls: u.Scheme == "tls"}
	if u.Scheme != "tcp" && u.Scheme != "tls" || u.Port() == "" || r.host == "" {
		return nil, fault.New(fault.BadInput, "URL %q: want tls://HOST:PORT or tcp://HOST:PORT", clip(u.String()))
	}
	return r, nil
}

func (r syslogReceiver) deliver(ctx context.Context, events [][]byte) error {
	conn, err := r.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	w := bufio.NewWriter(conn)
	var message []byte
	for _, data := range events {
		e, err := ParseEvent(data)
		if err != nil {
			return err
		}
		message = appendSyslog(message[:0], e)
		_, _ = w.WriteString(strconv.Itoa(len(message)) + " ") // Flush returns the error
		_, _ = w.Write(message)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.New("connection cannot be closed one way")
	}
	if err := half.CloseWrite(); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(conn, maxSinkAnswer)); err != nil {
		return fmt.Errorf("the receiver did not take all of it: %w", err)
	}
	return nil
}

func (r syslogReceiver) dial(ctx context.Context) (net.Conn, error) {
	if !r.tls {
		return (&net.Dialer{}).DialContext(ctx, "tcp", r.addr)
	}
	config := &tls.Config{ServerName: r.host, MinVersion: tls.VersionTLS12}
	if r.ca != "" {
		pem, err := readSinkFile(r.ca)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", r.ca)
		}
	}
	return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", r.addr)
}

// fileReceiver appends to a file, which counts when it is synced.
type fileReceiver struct{ path string }

func (r fileReceiver) deliver(_ context.Context, events [][]byte) (err error) {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_RDWR|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	whole, err := wholeLines(f)
	if err != nil {
		return err
	}
	lines, err := JSONL.Append(nil, events)
	if err != nil {
		return err
	}
	if _, err = f.Write(lines); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Truncate(whole))
	}
	return nil
}

// wholeLines cuts off the part of a line that a crash left at the end of f, which
// comes again, and returns the size.
func wholeLines(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a file", f.Name())
	}
	end := make([]byte, min(info.Size(), MaxEvent+1))
	if _, err := f.ReadAt(end, info.Size()-int64(len(end))); err != nil {
		return 0, err
	}
	whole := info.Size() - int64(len(end)-1-bytes.LastIndexByte(end, '\n'))
	if whole == info.Size() {
		return whole, nil
	}
	return whole, f.Truncate(whole)
}
