package sftp

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/accessd/accessd/lib/fault"
)

// clientPump carries requests.
type clientPump struct {
	*Filter
	*stream
	reports sync.WaitGroup
}

// FromClient passes the requests that come from r on to the server until r
// ends, closes the server's input and returns. An error ends the session: a
// request that the protocol does not allow, a report that could not be made, or
// what r or the server's input say. A Read that waits is ended only by who has
// r.
func (f *Filter) FromClient(ctx context.Context, r io.Reader) error {
	p := &clientPump{Filter: f}
	p.stream = newStream("client", r, func(b []byte, _ bool) error {
		_, err := f.server.Write(b)
		return err
	})
	err := p.run(ctx)
	err = f.end(ctx, &p.reports, err)
	f.close()
	return err
}

func (p *clientPump) run(ctx context.Context) error {
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
		if err := p.request(ctx, head); err != nil {
			return err
		}
	}
}

// ignoreEOF turns the end of a stream between packets into none.
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// greet passes on the client's INIT (section 4). What is parsed here is version
// 3, so the server is asked for nothing newer.
func (p *clientPump) greet() error {
	head, err := p.next()
	if err != nil {
		return err
	}
	if head[4] != typeInit || len(head) < 4+1+4 {
		return p.broken("type %d, want INIT", head[4])
	}
	switch v := binary.BigEndian.Uint32(head[5:]); {
	case v < version:
		return p.broken("version %d of the protocol, want %d", v, version)
	case v > version:
		binary.BigEndian.PutUint32(head[5:], version)
	}
	return p.pass(0, nil)
}

// request decides the request that begins with head.
func (p *clientPump) request(ctx context.Context, head []byte) error {
	if head[4] == typeInit {
		return p.broken("a second INIT")
	}
	id := binary.BigEndian.Uint32(head[5:])
	if err := p.admit(id); err != nil {
		return err
	}
	c, ok := parse(head, p.rest)
	switch {
	case c.action == "":
		return p.refuse(ctx, refusal{id: id, status: statusUnsupported, message: "operation unsupported"})
	case !ok:
		return p.refuse(ctx, refusal{id: id, status: statusBadMessage, message: "bad message, or too long a path", call: &c})
	}
	open, source, ok := p.find(&c)
	if !ok {
		return p.refuse(ctx, refusal{id: id, status: statusFailure, message: "no such handle"})
	}
	if open != nil {
		c.path = open.path
	}
	if source != nil {
		c.target = source.path
	}
	if err := p.decide(&c, open, source); err != nil {
		return p.reject(ctx, p.denied(&c, open, err), statusPacket(id, statusDenied, "permission denied: "+bounded(fault.Public(err))))
	}
	if !p.register(id, &c, open) {
		return p.refuse(ctx, refusal{id: id, status: statusFailure, message: "too many open files", call: &c})
	}
	if c.action == actWrite {
		return p.pass(c.data, func(b []byte) {
			n := min(uint64(len(b)), uint64(c.length))
			open.write.add(c.offset, b[:n])
			c.offset += n
			c.length -= uint32(n)
		})
	}
	return p.pass(0, nil)
}

// admit waits until one more request may be outstanding, and refuses an id that
// is.
func (p *clientPump) admit(id uint32) error {
	p.mu.Lock()
	full := len(p.outstanding) >= maxOutstanding
	p.mu.Unlock()
	if full { // what is waited for may not even have been asked
		if err := p.flush(); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.err == nil && len(p.outstanding) >= maxOutstanding {
		p.room.Wait()
	}
	if p.err != nil {
		return p.err
	}
	if _, twice := p.outstanding[id]; twice {
		return p.broken("request id %d is of a request that is not answered yet", id)
	}
	return nil
}

// find returns what the handles of c stand for. A client cannot know a handle
// before it was answered, nor use one after it asked for its end.
func (p *clientPump) find(c *call) (open, source *file, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.handle != nil {
		if open, ok = p.handles[string(c.handle)]; !ok {
			return nil, nil, false
		}
	}
	if c.source != nil {
		if source, ok = p.handles[string(c.source)]; !ok {
			return nil, nil, false
		}
	}
	return open, source, true
}

// errHandle refuses what a handle was not opened for.
var errHandle = fault.New(fault.Denied, "the handle is not open for that")

// decide returns why c is refused, or nil.
func (p *clientPump) decide(c *call, open, source *file) error {
	if err := p.allow(c.need); err != nil {
		return err
	}
	bad := false
	switch c.action {
	case actRead:
		bad = open.dir || openNeeds(open.flags) == needWrite
	case actWrite:
		bad = open.dir || open.flags&flagWrite == 0
	case actReaddir:
		bad = !open.dir
	case actCopy:
		bad = source.dir || openNeeds(source.flags) == needWrite || open.dir || open.flags&flagWrite == 0
	}
	if bad {
		return errHandle
	}
	return nil
}

// operation returns what is reported of c.
func (c *call) operation() *Operation {
	op := &Operation{
		Action: c.action, Path: c.path, Target: c.target,
		Write: c.need == needWrite || c.need == needBoth, Attrs: c.attrs.String(),
	}
	switch c.action {
	case actOpen:
		op.Flags = flagsText(c.flags)
		if c.flags&flagCreate == 0 {
			op.Attrs = ""
		}
	case actOpendir:
		op.Action = actReaddir
	}
	return op
}

// denied returns the report of c, which is refused because of err, or nil when
// the same has been reported of the file already.
func (p *clientPump) denied(c *call, open *file, err error) *Operation {
	switch c.action {
	case actRead, actWrite, actReaddir, actFstat, actFsync:
		if open.refused {
			return nil
		}
		open.refused = true
	}
	op := c.operation()
	op.Status, op.Error = statusDenied, bounded(err.Error())
	return op
}

// refusal answers a request for a reason other than a right that is missing.
type refusal struct {
	id, status uint32
	message    string
	call       *call // reported when all of its kind are; may be nil
}

func (p *clientPump) refuse(ctx context.Context, r refusal) error {
	var op *Operation
	if r.call != nil && r.call.reported() {
		op = r.call.operation()
		op.Status, op.Error = r.status, r.message
	}
	return p.reject(ctx, op, statusPacket(r.id, r.status, r.message))
}

// reject answers the current request with the packet b instead of passing it on.
func (p *clientPump) reject(ctx context.Context, op *Operation, b []byte) error {
	err := p.flush() // the server should not wait for a report
	if failed := p.answer(ctx, &p.reports, outcome{op: op, packet: b, own: true}); failed != nil {
		err = failed
	}
	if err != nil {
		return err
	}
	return p.drop(nil)
}

// register notes that the server is asked c. It reports false when there are
// too many handles for another.
func (p *clientPump) register(id uint32, c *call, open *file) bool {
	r := request{action: c.action, good: c.good, file: open, offset: c.offset, length: c.length}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch c.action {
	case actOpen, actOpendir:
		if len(p.handles)+p.opening >= maxHandles {
			return false
		}
		p.opening++
		r.path, r.flags = c.path, c.flags
	case actClose:
		delete(p.handles, string(c.handle))
	case actSetstat:
		r.resize = c.attrs.flags&attrSize != 0
	}
	if c.reported() || c.action == actOpendir {
		r.op = c.operation()
	}
	p.outstanding[id] = r
	return true
}
