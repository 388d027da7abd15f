package sftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"sync"
)

// serverPump carries answers.
type serverPump struct {
	*Filter
	*stream
	reports sync.WaitGroup
}

// FromServer passes the answers that come from r on to the client until r ends.
// It returns when every report is made and what can go to the client has gone.
// An error ends the session: an answer that the protocol does not allow, a
// report that could not be made, or what r or the client's side say. A Read that
// waits is ended only by who has r.
func (f *Filter) FromServer(ctx context.Context, r io.Reader) error {
	p := &serverPump{Filter: f}
	p.stream = newStream("server", r, f.answers.pass)
	err := p.run(ctx)
	if err = f.end(ctx, &p.reports, err); err != nil {
		return err
	}
	f.fail(errGone) // no request can be answered any more
	return nil
}

func (p *serverPump) run(ctx context.Context) error {
	if err := p.greet(); err != nil {
		return ignoreEOF(err)
	}
	for {
		head, err := p.next()
		if err != nil {
			return ignoreEOF(err)
		}
		if len(head) < 4+1+4 {
			return p.broken("%d bytes, want a type and a request id", len(head)-4)
		}
		if err := p.reply(ctx, head); err != nil {
			return err
		}
	}
}

// greet passes on the server's VERSION (section 4) without the extensions that
// are not known here: a client must not find out that it may use them.
func (p *serverPump) greet() error {
	head, err := p.next()
	if err != nil {
		return err
	}
	if head[4] != typeVersion || len(head) != p.rest {
		return p.broken("type %d with %d bytes, want VERSION with at most %d", head[4], p.rest-4, headSize-4)
	}
	f := fields{b: head[5:]}
	if v := f.u32(); f.bad || v != version {
		return p.broken("version %d of the protocol, want %d", v, version)
	}
	out := append([]byte(nil), head[:4+1+4]...)
	for len(f.b) > 0 {
		name, data := f.text(headSize), f.text(headSize)
		if f.bad {
			return p.broken("an extension that is cut short")
		}
		if data != "" && revision(name) == data {
			out = appendString(appendString(out, name), data)
		}
	}
	if len(out) == len(head) {
		return p.pass(0, nil)
	}
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return p.drop(out)
}

// reply deals with the answer that begins with head.
func (p *serverPump) reply(ctx context.Context, head []byte) error {
	kind, id := head[4], binary.BigEndian.Uint32(head[5:])
	p.mu.Lock()
	r, ok := p.outstanding[id]
	p.mu.Unlock()
	if !ok {
		return p.broken("request id %d is of no request", id)
	}
	if kind != typeStatus && kind != r.good {
		return p.broken("type %d answers %s, want %d or STATUS", kind, r.action, r.good)
	}
	f := fields{b: head[4+1+4:]}
	switch kind {
	case typeStatus:
		return p.status(ctx, head, r, &f)
	case typeHandle:
		return p.handle(ctx, head, r, &f)
	case typeData:
		return p.data(id, r, &f)
	}
	if r.action == actLimits {
		clampLimits(&f)
	}
	p.settle(id, r)
	return p.pass(0, nil)
}

// settle removes the request id, r, from those that are outstanding. What is not
// settled is reported at the end.
func (p *serverPump) settle(id uint32, r request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.outstanding, id)
	if r.action == actOpen || r.action == actOpendir {
		p.opening--
	}
	p.room.Signal()
}

// status deals with a STATUS (section 7).
func (p *serverPump) status(ctx context.Context, head []byte, r request, f *fields) error {
	code := f.u32()
	if f.bad || len(head) != p.rest {
		return p.broken("a STATUS of %d bytes, want 8 to %d", p.rest-4, headSize-4)
	}
	message := f.text(headSize) // version 2 and some servers have none
	if r.good == typeHandle && code == statusOK {
		return p.broken("STATUS 0 answers %s, want a handle", r.action)
	}
	p.settle(binary.BigEndian.Uint32(head[5:]), r)
	op := r.op
	switch {
	case r.action == actClose:
		closed := r.file.closed()
		op = &closed
	case r.action == actWrite && code == statusOK:
		r.file.bytesWritten += int64(r.length)
	case r.action == actRead && code == statusEOF:
		r.file.empty = r.file.empty || r.offset == 0 && r.length > 0
	case r.file != nil && code == statusOK && (r.resize || r.action == actCopy):
		r.file.spoilt = true
	}
	if op == nil {
		return p.pass(0, nil)
	}
	if op.Status = code; code != statusOK {
		op.Error = bounded(message)
	}
	return p.hold(ctx, op, head)
}

// hold sends the current packet, which is head, after op has been reported.
func (p *serverPump) hold(ctx context.Context, op *Operation, head []byte) error {
	b := bytes.Clone(head)
	err := p.drop(nil)
	if failed := p.answer(ctx, &p.reports, outcome{op: op, packet: b}); failed != nil {
		err = failed
	}
	return err
}

// handle deals with a HANDLE (section 7).
func (p *serverPump) handle(ctx context.Context, head []byte, r request, f *fields) error {
	name := f.text(maxHandle)
	if f.bad || len(head) != p.rest {
		return p.broken("a HANDLE of %d bytes, want at most %d", p.rest-4, maxHandle)
	}
	p.mu.Lock()
	_, twice := p.handles[name]
	if !twice {
		p.handles[name] = newFile(&r, &p.held)
	}
	p.mu.Unlock()
	if twice {
		return p.broken("a handle that is open")
	}
	p.settle(binary.BigEndian.Uint32(head[5:]), r)
	if r.action == actOpendir {
		return p.pass(0, nil) // reported when it is closed
	}
	return p.hold(ctx, r.op, head)
}

// data deals with a DATA (section 7).
func (p *serverPump) data(id uint32, r request, f *fields) error {
	const skip = 4 + 1 + 4 + 4
	n := f.u32()
	if f.bad || n > r.length || int64(n) > int64(p.rest-skip) {
		return p.broken("%d bytes of data in %d, want at most the %d asked for", n, p.rest-4, r.length)
	}
	p.settle(id, r)
	r.file.bytesRead += int64(n)
	return p.pass(skip, func(b []byte) {
		k := min(uint64(len(b)), uint64(n))
		r.file.read.add(r.offset, b[:k])
		r.offset += k
		n -= uint32(k)
	})
}

// clampLimits lowers what a server says it takes (OpenSSH PROTOCOL, section
// 4.8) to what the filter does.
func clampLimits(f *fields) {
	for _, most := range []uint64{maxPacket, maxPacket - 1024, maxPacket - 1024} {
		p := f.take(8)
		if p == nil {
			return
		}
		if v := binary.BigEndian.Uint64(p); v == 0 || v > most {
			binary.BigEndian.PutUint64(p, most)
		}
	}
}
