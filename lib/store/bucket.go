package store

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // what buckets take as a checksum of what comes
	"errors"
	"io"
	"io/fs"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/s3blob" // s3://BUCKET
	"gocloud.dev/gcerrors"
)

// bucket keeps objects in a bucket of gocloud.dev/blob.
type bucket struct{ b *blob.Bucket }

func (m bucket) create(ctx context.Context, key string, data []byte) error {
	opts := options(data)
	opts.IfNotExist = true
	// Some servers pass over the condition, and would replace what is there.
	switch there, err := m.b.Exists(ctx, key); {
	case err != nil:
		return err
	case there:
		return fs.ErrExist
	}
	err := m.b.WriteAll(ctx, key, data, opts)
	if m.unknownCondition(err) {
		opts.IfNotExist = false
		err = m.b.WriteAll(ctx, key, data, opts)
	}
	if code := gcerrors.Code(err); code == gcerrors.FailedPrecondition || code == gcerrors.AlreadyExists {
		return fs.ErrExist
	}
	return err
}

func options(data []byte) *blob.WriterOptions {
	sum := md5.Sum(data) //nolint:gosec // as above
	return &blob.WriterOptions{ContentMD5: sum[:], ContentType: "application/octet-stream", DisableContentTypeDetection: true}
}

func (m bucket) replace(ctx context.Context, key string, data []byte) error {
	return m.b.WriteAll(ctx, key, data, options(data))
}

// unknownCondition reports whether a write failed since the bucket takes no
// conditions. S3's own word for it is not in gocloud.dev's list.
func (m bucket) unknownCondition(err error) bool {
	var api smithy.APIError
	return gcerrors.Code(err) == gcerrors.Unimplemented || err != nil && m.b.ErrorAs(err, &api) && api.ErrorCode() == "NotImplemented"
}

// same reads the object back: a digest that a bucket tells is of what it was given.
func (m bucket) same(ctx context.Context, key string, data []byte) (bool, error) {
	kept, err := m.read(ctx, key, &blob.ReaderOptions{BeforeRead: asItIs})
	if errors.Is(err, errTooLarge) {
		return false, nil
	}
	return err == nil && bytes.Equal(kept, data), err
}

// asItIs has S3's client return an object whose content is not what the bucket's own
// checksum is of.
func asItIs(as func(any) bool) error {
	var opts *[]func(*s3.Options)
	if as(&opts) {
		*opts = append(*opts, func(o *s3.Options) { o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired })
	}
	return nil
}

func (m bucket) get(ctx context.Context, key string) ([]byte, error) { return m.read(ctx, key, nil) }

func (m bucket) read(ctx context.Context, key string, opts *blob.ReaderOptions) (data []byte, err error) {
	r, err := m.b.NewReader(ctx, key, opts)
	if err != nil {
		return nil, missing(err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if r.Size() > MaxObject {
		return nil, errTooLarge
	}
	if data, err = io.ReadAll(io.LimitReader(r, MaxObject+1)); err == nil && len(data) > MaxObject {
		err = errTooLarge
	}
	return data, err
}

var errTooLarge = errors.New("the object is larger than any that was written")

func (m bucket) remove(ctx context.Context, key string) error {
	if err := missing(m.b.Delete(ctx, key)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (m bucket) keys(ctx context.Context, dir string) ([]string, error) {
	var out []string
	list := m.b.List(&blob.ListOptions{Prefix: dir})
	for {
		o, err := list.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, o.Key)
	}
}

func (m bucket) close() error { return m.b.Close() }

// missing says that there is no object as package fs does.
func missing(err error) error {
	if gcerrors.Code(err) == gcerrors.NotFound {
		return fs.ErrNotExist
	}
	return err
}
