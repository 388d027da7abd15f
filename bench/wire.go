//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The addresses are from the network set aside for benchmarks (RFC 2544, RFC 6815).
const (
	wireProxy = "198.18.29.1"
	wireNode  = "198.18.29.2"
)

const (
	wireRate  = 20_000_000 / 8         // bytes a second
	wireDelay = 25 * time.Millisecond  // each way
	wireQueue = 100                    // packets waiting per flow, as a home router has it
	wireMTU   = 1500                   // bytes
	wireAhead = 500 * time.Microsecond // the precision that timers are good for
)

// wire is an emulated link between this machine's network and a namespace of its
// own: two TUN devices, and this process carries packets between them at the
// link's rate and with its delay. Flows get equal shares, as with the fair
// queueing that Linux machines and routers use by default; kernels that could do
// all this themselves are not everywhere.
type wire struct {
	netns   string
	devices []*os.File
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

// newWire lays the link. It needs root.
func newWire(ctx context.Context) (*wire, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("only root can make a network namespace and a TUN device")
	}
	w := &wire{netns: fmt.Sprintf("accessd-bench-%d", os.Getpid())}
	if err := w.lay(ctx); err != nil {
		w.close()
		return nil, fmt.Errorf("emulate a link: %w", err)
	}
	run, stop := context.WithCancel(ctx)
	w.stop = stop
	for i, from := range w.devices {
		p := &lane{to: w.devices[1-i], wake: make(chan struct{}, 1), late: make(chan packet, 4096), queues: map[uint64][][]byte{}}
		w.wg.Go(func() { p.fill(from) })
		w.wg.Go(func() { p.drain(run) })
		w.wg.Go(func() { p.deliver(run) })
	}
	return w, nil
}

func (w *wire) lay(ctx context.Context) error {
	if _, err := call(ctx, "ip", "netns", "add", w.netns); err != nil {
		return err
	}
	names := []string{fmt.Sprintf("abp%d", os.Getpid()), fmt.Sprintf("abn%d", os.Getpid())}
	for _, name := range names {
		f, err := openTUN(name)
		if err != nil {
			return err
		}
		w.devices = append(w.devices, f)
	}
	inside := []string{"ip", "-n", w.netns}
	for _, args := range [][]string{
		{"ip", "addr", "add", wireProxy, "peer", wireNode, "dev", names[0]},
		{"ip", "link", "set", names[0], "up", "mtu", fmt.Sprint(wireMTU)},
		{"ip", "link", "set", names[1], "netns", w.netns},
		append(inside, "addr", "add", wireNode, "peer", wireProxy, "dev", names[1]),
		append(inside, "link", "set", names[1], "up", "mtu", fmt.Sprint(wireMTU)),
		append(inside, "link", "set", "lo", "up"),
	} {
		if _, err := call(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// atNode goes before commands that run at the far end.
func (w *wire) atNode() []string { return []string{"ip", "netns", "exec", w.netns} }

func (w *wire) close() {
	if w.stop != nil {
		w.stop()
	}
	for _, f := range w.devices {
		f.Close()
	}
	w.wg.Wait()
	_, _ = call(context.Background(), "ip", "netns", "del", w.netns)
}

// openTUN makes a TUN device, which goes when the file is closed.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TUN device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// lane is one direction of a wire.
type lane struct {
	to   *os.File
	wake chan struct{}
	late chan packet // sent, on the way

	mu     sync.Mutex
	queues map[uint64][][]byte
	turns  []uint64 // flows with packets waiting, in the order they are served
}

type packet struct {
	data []byte
	due  time.Time
}

// fill takes packets from a device into the queue of their flow.
func (p *lane) fill(from *os.File) {
	for {
		buf := make([]byte, wireMTU)
		n, err := from.Read(buf)
		if err != nil {
			return // the device was closed
		}
		p.put(flow(buf[:n]), buf[:n])
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// flow returns what the packets of one TCP connection have in common.
func flow(b []byte) uint64 {
	if len(b) < 24 || b[0]>>4 != 4 {
		return 0
	}
	header := int(b[0]&15) * 4
	if len(b) < header+4 {
		return 0
	}
	return uint64(b[9])<<32 | uint64(binary.BigEndian.Uint32(b[header:]))
}

func (p *lane) put(flow uint64, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.queues[flow]
	if len(q) >= wireQueue {
		return // dropped: the sender will slow down
	}
	if len(q) == 0 {
		p.turns = append(p.turns, flow)
	}
	p.queues[flow] = append(q, b)
}

// take returns the next packet: each flow has one in turn.
func (p *lane) take() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.turns) == 0 {
		return nil
	}
	f := p.turns[0]
	q := p.queues[f]
	p.turns = p.turns[1:]
	if len(q) > 1 {
		p.queues[f], p.turns = q[1:], append(p.turns, f)
	} else {
		delete(p.queues, f)
	}
	return q[0]
}

// drain sends packets at the link's rate.
func (p *lane) drain(ctx context.Context) {
	free := time.Now() // when the link has sent what it was given
	for {
		b := p.take()
		if b == nil {
			select {
			case <-p.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		if now := time.Now(); free.Before(now) {
			free = now
		}
		free = free.Add(time.Duration(len(b)) * time.Second / wireRate)
		select {
		case p.late <- packet{b, free.Add(wireDelay)}:
		case <-ctx.Done():
			return
		}
		if ahead := time.Until(free); ahead > wireAhead {
			pause(ctx, ahead)
		}
	}
}

// deliver hands packets over when they have come all the way.
func (p *lane) deliver(ctx context.Context) {
	for {
		select {
		case one := <-p.late:
			if wait := time.Until(one.due); wait > 0 {
				pause(ctx, wait)
			}
			_, _ = p.to.Write(one.data) // a device that is down drops it
		case <-ctx.Done():
			return
		}
	}
}
