package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log" //nolint:depguard // what httputil takes
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/store/storetest"
)

// server is an S3 API server behind a proxy that can do wrong. Its buckets are
// directories of dir.
type server struct {
	dir string
	url string // of the proxy
	api *s3.Client
	bad atomic.Pointer[wrong]
}

// wrong handles a request in place of the server, which next is, or returns false.
type wrong func(w http.ResponseWriter, r *http.Request, next http.Handler) bool

func startServer(t *testing.T) *server {
	t.Helper()
	backend := storetest.Start(t)
	s := &server{dir: backend.Dir}
	at, err := url.Parse("http://" + backend.Address)
	if err != nil {
		t.Fatal(err)
	}
	behind := &httputil.ReverseProxy{ErrorLog: log.New(io.Discard, "", 0), Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(at)
		r.Out.Host = r.In.Host // which is signed
	}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.bad.Load(); f == nil || !(*f)(w, r, behind) {
			behind.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(front.Close)
	s.url = front.URL
	s.api = s3.New(s3.Options{
		BaseEndpoint: aws.String(front.URL), Region: "us-east-1", UsePathStyle: true, RetryMaxAttempts: 10,
		Credentials: credentials.NewStaticCredentialsProvider(storetest.Key, storetest.Secret, ""),
	})
	if _, err := s.api.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("bucket")}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *server) open(t *testing.T) *Store {
	t.Helper()
	return open(t, "s3://bucket?region=us-east-1&use_path_style=true&endpoint="+s.url)
}

// key returns the key of the object that a request is about.
func (s *server) key(r *http.Request) *string {
	return aws.String(strings.TrimPrefix(r.URL.Path, "/bucket/"))
}

// be makes the proxy do wrong; nil makes it right again.
func (s *server) be(f wrong) {
	if f == nil {
		s.bad.Store(nil)
	} else {
		s.bad.Store(&f)
	}
}

// onPut is f for writes only.
func onPut(f wrong) wrong {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		return r.Method == http.MethodPut && f(w, r, next)
	}
}

func refuse(w http.ResponseWriter, status int, code string) bool {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
	return true
}

func TestS3KeepsTheContract(t *testing.T) {
	s := startServer(t)
	t.Run("as it is", func(t *testing.T) { contract(t, s.open(t)) })
}

// Whatever a bucket does, a write is confirmed only when the object is there, and
// goes through when the bucket is well again.
func TestBucketsThatFail(t *testing.T) {
	s := startServer(t)
	content := strings.Repeat("recorded ", 10_000)
	onDisk := func(r *http.Request) string { return filepath.Join(s.dir, filepath.FromSlash(r.URL.Path)) }
	pass := func(r *http.Request, next http.Handler) *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		return rec
	}
	for name, f := range map[string]wrong{
		"times out": func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			return true
		},
		"times out on writes": onPut(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			return true
		}),
		"times out on what it has written": func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			if r.Method == http.MethodPut {
				next.ServeHTTP(w, r)
				s.be(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
					<-r.Context().Done()
					return true
				})
				return true
			}
			return false
		},
		"says that it has written": onPut(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("ETag", `"d41d8cd98f00b204e9800998ecf8427e"`)
			return true
		}),
		"writes half": onPut(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			rec := pass(r, next)
			if err := os.Truncate(onDisk(r), int64(len(content)/2)); err != nil {
				t.Errorf("truncate: %v", err)
			}
			w.WriteHeader(rec.Code)
			return true
		}),
		"keeps other bytes and tells of ours": onPut(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			rec := pass(r, next)
			f, err := os.OpenFile(onDisk(r), os.O_WRONLY, 0)
			if err == nil { // in place, as a disk does: the server goes on telling the digest
				_, err = f.WriteString("R")
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Errorf("change: %v", err)
			}
			maps.Copy(w.Header(), rec.Header())
			w.WriteHeader(rec.Code)
			return true
		}),
		"loses what it has written": onPut(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			rec := pass(r, next)
			s.be(nil)
			if _, err := s.api.DeleteObject(r.Context(), &s3.DeleteObjectInput{Bucket: aws.String("bucket"), Key: s.key(r)}); err != nil {
				t.Errorf("remove: %v", err)
			}
			w.WriteHeader(rec.Code)
			return true
		}),
		"is full": onPut(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			return refuse(w, http.StatusInternalServerError, "InternalError")
		}),
		"takes no more": onPut(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			return refuse(w, http.StatusForbidden, "AccessDenied")
		}),
		"is of another": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			return refuse(w, http.StatusForbidden, "AccessDenied")
		},
		"speaks no S3": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
			w.WriteHeader(http.StatusTeapot)
			return true
		},
		"hangs up at us": func(http.ResponseWriter, *http.Request, http.Handler) bool { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			st := s.open(t)
			st.timeout = 1500 * time.Millisecond
			key := "r/" + strings.ReplaceAll(name, " ", "-")
			s.be(f)
			err := st.Put(t.Context(), key, []byte(content))
			s.be(nil)
			wantKind(t, "put", err, fault.Unavailable)
			st.timeout = defaultTimeout
			put(t, st, key, content)
			wantContent(t, st, key, content)
		})
	}
}

// Buckets that do not know conditional writes replace nothing, and those whose
// answer is lost are asked again.
func TestBucketsOfAnotherKind(t *testing.T) {
	s := startServer(t)
	for name, f := range map[string]wrong{
		"ignores conditions": onPut(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if r.Header.Get("If-None-Match") == "" { // ours, below
				return false
			}
			body, err := io.ReadAll(r.Body)
			if err == nil {
				_, err = s.api.PutObject(r.Context(), &s3.PutObjectInput{Bucket: aws.String("bucket"), Key: s.key(r), Body: bytes.NewReader(body)})
			}
			if err != nil {
				t.Errorf("write: %v", err)
			}
			return true
		}),
		"refuses conditions": onPut(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			return r.Header.Get("If-None-Match") != "" && refuse(w, http.StatusNotImplemented, "NotImplemented")
		}),
		"tells no digest": func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			if r.Method != http.MethodHead {
				return false
			}
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			rec.Header().Set("ETag", `"opaque"`)
			maps.Copy(w.Header(), rec.Header())
			w.WriteHeader(rec.Code)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			st := s.open(t)
			key := "k/" + strings.ReplaceAll(name, " ", "-")
			s.be(f)
			defer s.be(nil)
			put(t, st, key, "first")
			put(t, st, key, "first")
			wantKind(t, "other bytes", st.Put(t.Context(), key, []byte("other")), fault.Conflict)
			wantContent(t, st, key, "first")
		})
	}
	t.Run("loses an answer", func(t *testing.T) {
		st := s.open(t)
		var lost atomic.Int32
		s.be(onPut(func(_ http.ResponseWriter, r *http.Request, next http.Handler) bool {
			if lost.Add(1) > 1 {
				return false
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Errorf("read: %v", err)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			next.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}))
		defer s.be(nil)
		put(t, st, "k/lost", "content")
		if lost.Load() < 2 {
			t.Errorf("%d writes, want another after the answer was lost", lost.Load())
		}
	})
}
