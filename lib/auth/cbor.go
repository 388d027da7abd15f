package auth

import (
	"encoding/binary"
	"errors"
	"math"
)

// A cborReader reads what authenticators write: CTAP2's canonical form of CBOR (RFC
// 8949), of which floats, tags and lengths that are not known before are no part.
type cborReader struct{ rest []byte }

// Bounds of what is read.
const (
	maxCBORDepth = 4
	maxCBORItems = 64 // of one list or map
)

var errCBOR = errors.New("malformed CBOR")

// head reads the kind of the next item, and its number.
func (r *cborReader) head() (kind byte, n uint64, err error) {
	if len(r.rest) == 0 {
		return 0, 0, errCBOR
	}
	kind, n = r.rest[0]>>5, uint64(r.rest[0]&0x1f)
	r.rest = r.rest[1:]
	if n < 24 {
		return kind, n, nil
	}
	size := 1 << (n - 24) // 1, 2, 4 or 8 bytes
	if n > 27 || len(r.rest) < size {
		return 0, 0, errCBOR
	}
	var b [8]byte
	copy(b[8-size:], r.rest)
	r.rest = r.rest[size:]
	return kind, binary.BigEndian.Uint64(b[:]), nil
}

// value reads an int64, []byte, string, bool, []any or map[any]any.
func (r *cborReader) value(depth int) (any, error) {
	kind, n, err := r.head()
	if err != nil || depth > maxCBORDepth || n > math.MaxInt64 {
		return nil, errCBOR
	}
	switch kind {
	case 0:
		return int64(n), nil
	case 1:
		return -1 - int64(n), nil
	case 2, 3:
		if n > uint64(len(r.rest)) {
			return nil, errCBOR
		}
		b := r.rest[:n:n]
		r.rest = r.rest[n:]
		if kind == 3 {
			return string(b), nil
		}
		return b, nil
	case 4:
		return r.list(n, depth)
	case 5:
		return r.items(n, depth)
	case 7:
		if n == 20 || n == 21 {
			return n == 21, nil
		}
	}
	return nil, errCBOR
}

func (r *cborReader) list(n uint64, depth int) ([]any, error) {
	if n > maxCBORItems {
		return nil, errCBOR
	}
	var out []any
	for range n {
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (r *cborReader) items(n uint64, depth int) (map[any]any, error) {
	if n > maxCBORItems {
		return nil, errCBOR
	}
	out := map[any]any{}
	for range n {
		key, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		switch key.(type) {
		case int64, string:
		default:
			return nil, errCBOR
		}
		if _, twice := out[key]; twice {
			return nil, errCBOR
		}
		if out[key], err = r.value(depth + 1); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// mapping reads a map.
func (r *cborReader) mapping() (map[any]any, error) {
	v, err := r.value(0)
	m, ok := v.(map[any]any)
	if err != nil || !ok {
		return nil, errCBOR
	}
	return m, nil
}
