package services

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/accessd/accessd/lib/fault"
)

const (
	// maxHostName is the longest host name a resolver takes (RFC 1035, section
	// 2.3.4), in bytes.
	maxHostName = 253
	// maxForwardPattern bounds a pattern of destinations, in bytes.
	maxForwardPattern = maxHostName + len("*.:65535-65535") + len(unixScheme)
)

// unixScheme begins a pattern of Unix sockets.
const unixScheme = "unix:"

// localHost is the name that stands for the node itself.
const localHost = "localhost"

// ForwardPattern names destinations of forwards: a host and a port, as in
// "db.example.com:5432", or the path of a Unix socket, as in
// "unix:/run/app/*.sock".
//
// The host is a name, "*.example.com" for every name below one, "*" for every
// host, an address, a network such as 10.0.0.0/8 (with IPv6 in brackets), or
// localhost, which is the loopback addresses, too. The port is a number, a range
// such as 8000-8999, or "*". In a path each part between slashes is a pattern of
// [path.Match]. The zero value matches nothing.
type ForwardPattern struct { //nolint:recvcheck // a value that only UnmarshalText changes
	text      string
	low, high uint16 // ports

	// One of these is set.
	any     bool
	name    string // in lower case
	suffix  string // with its dot, in lower case
	network netip.Prefix
	parts   []string // of a path
}

// hostGrammar is what a host name in a pattern looks like. Underscores are in
// use, though no host name should have one (RFC 952).
var hostGrammar = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*$`)

// ParseForwardPattern reads a pattern, or returns a [fault.BadInput] error.
func ParseForwardPattern(s string) (ForwardPattern, error) {
	p := ForwardPattern{text: s}
	if len(s) > maxForwardPattern {
		return ForwardPattern{}, fault.New(fault.BadInput, "%q is longer than %d bytes", clip(s), maxForwardPattern)
	}
	var err error
	if rest, ok := strings.CutPrefix(s, unixScheme); ok {
		p.parts, err = parseSocket(rest)
	} else {
		err = p.parse(s)
	}
	if err != nil {
		return ForwardPattern{}, fault.New(fault.BadInput, "%q: %w", clip(s), err)
	}
	return p, nil
}

// parse reads HOST:PORT.
func (p *ForwardPattern) parse(s string) error {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return fault.New(fault.BadInput, "want HOST:PORT or unix:PATH")
	}
	host, port := s[:i], s[i+1:]
	var err error
	if p.low, p.high, err = parsePorts(port); err != nil {
		return err
	}
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		var closed bool
		if inner, closed = strings.CutSuffix(inner, "]"); !closed {
			return fault.New(fault.BadInput, "the bracket is not closed")
		}
		p.network, err = parseNetwork(inner)
		if err == nil && p.network.Addr().Is4() {
			err = fault.New(fault.BadInput, "brackets are for IPv6")
		}
		return err
	}
	if strings.ContainsAny(host, ":[]") {
		return fault.New(fault.BadInput, "IPv6 stands in brackets, such as [2001:db8::/32]:22")
	}
	return p.parseHost(strings.ToLower(host))
}

func (p *ForwardPattern) parseHost(host string) (err error) {
	last := host[strings.LastIndexByte(host, '.')+1:]
	below, isSuffix := strings.CutPrefix(host, "*.")
	switch {
	case host == wildcard:
		p.any = true
	case strings.Contains(host, "/") || last != "" && strings.Trim(last, "0123456789") == "": // no domain is a number
		p.network, err = parseNetwork(host)
	case isSuffix && hostGrammar.MatchString(below) && len(below) <= maxHostName:
		p.suffix = host[1:]
	case hostGrammar.MatchString(host) && len(host) <= maxHostName:
		p.name = host
	default:
		err = fault.New(fault.BadInput, `%q is no host: want a name, "*.example.com", "*", an address or a network`, clip(host))
	}
	return err
}

// parseNetwork reads an address or a network in its one form.
func parseNetwork(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" || addr.Is4In6() {
			return netip.Prefix{}, fault.New(fault.BadInput, "%q is no address", clip(s))
		}
		return addr.Prefix(addr.BitLen())
	}
	n, err := netip.ParsePrefix(s)
	if err != nil || n.Addr().Is4In6() {
		return netip.Prefix{}, fault.New(fault.BadInput, "%q is no network", clip(s))
	}
	if n != n.Masked() {
		return netip.Prefix{}, fault.New(fault.BadInput, "%q has host bits; the network is %s", clip(s), n.Masked())
	}
	return n, nil
}

// parsePorts reads a port, a range of them, or "*".
func parsePorts(s string) (low, high uint16, err error) {
	if s == wildcard {
		return 0, 1<<16 - 1, nil
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	port := func(s string) uint16 {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || strconv.FormatUint(n, 10) != s { // signs and zeros in front, too
			return 0
		}
		return uint16(n)
	}
	low, high = port(first), port(last)
	if low == 0 || high < low || isRange && low == high {
		return 0, 0, fault.New(fault.BadInput, `%q is no port: want a number, a range such as 8000-8999, or "*"`, clip(s))
	}
	return low, high, nil
}

// parseSocket reads the pattern of a path into its parts.
func parseSocket(s string) ([]string, error) {
	if !path.IsAbs(s) || path.Clean(s) != s || s == "/" {
		return nil, fault.New(fault.BadInput, `want an absolute path without "..", "." or double slashes`)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }) {
		return nil, fault.New(fault.BadInput, "a path has printable ASCII and neither blanks nor backslashes")
	}
	parts := strings.Split(s[1:], "/")
	for _, part := range parts {
		if _, err := path.Match(part, ""); err != nil {
			return nil, fault.New(fault.BadInput, "%q: %w", clip(part), err)
		}
	}
	return parts, nil
}

// String returns the pattern as it was read.
func (p ForwardPattern) String() string { return p.text }

// MarshalText returns the pattern as it was read.
func (p ForwardPattern) MarshalText() ([]byte, error) { return []byte(p.text), nil }

// UnmarshalText is [ParseForwardPattern].
func (p *ForwardPattern) UnmarshalText(text []byte) (err error) {
	*p, err = ParseForwardPattern(string(text))
	return err
}

// Everything reports whether p names every host and every port, however it is
// written.
func (p ForwardPattern) Everything() bool {
	return (p.any || p.network.IsValid() && p.network.Bits() == 0) && p.low <= 1 && p.high == 1<<16-1
}

// Destination is where a forward leads, as [ForwardPattern] sees it.
type Destination struct {
	host  string       // in lower case, without a dot at its end
	port  uint16       // of host
	addrs []netip.Addr // that host stands for, without zones, IPv4 as IPv4
	odd   netip.Addr   // that host is written as in a form that only some dialers take for one
	local bool         // it may be the node itself
	parts []string     // of the path of a Unix socket
}

// NewDestination returns the destination of a host, as the client wrote it, and
// a port. addr is what the host stands for where it is dialled, or zero when
// that is not known.
func NewDestination(host string, port uint16, addr netip.Addr) Destination {
	d := Destination{host: strings.ToLower(strings.TrimSuffix(host, ".")), port: port}
	d.local = d.host == localHost || strings.HasSuffix(d.host, "."+localHost) // RFC 6761, section 6.3
	literal, _ := netip.ParseAddr(host)                                       // none when it is a name
	for _, a := range [...]netip.Addr{addr, literal} {
		if a = a.WithZone("").Unmap(); a.IsValid() {
			d.addrs = append(d.addrs, a)
			d.local = d.local || a.IsLoopback()
		}
	}
	if a, ok := LiteralAddr(d.host); ok && !literal.IsValid() {
		d.odd, d.local = a, d.local || a.IsLoopback()
	}
	return d
}

// LiteralAddr returns the address that host is, if it is one: without its zone,
// IPv4 as IPv4. It takes the numbers of inet_aton(3), too, which netip does not
// and a far sshd does: 127.1 and 0x7f000001 are 127.0.0.1 there.
func LiteralAddr(host string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.WithZone("").Unmap(), true
	}
	parts := strings.Split(host, ".")
	if len(parts) > net.IPv4len {
		return netip.Addr{}, false
	}
	var addr uint32
	for i, part := range parts {
		width := 8 // bits
		if i == len(parts)-1 {
			width *= net.IPv4len - i
		}
		digits, base := number(part)
		n, err := strconv.ParseUint(digits, base, 64)
		if err != nil || n >= 1<<width {
			return netip.Addr{}, false
		}
		addr = addr<<width | uint32(n)
	}
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, addr))), true
}

// number returns the digits of s and their base as C has it.
func number(s string) (digits string, base int) {
	switch {
	case strings.HasPrefix(s, "0x"), strings.HasPrefix(s, "0X"):
		return s[2:], 16
	case len(s) > 1 && s[0] == '0':
		return s[1:], 8
	}
	return s, 10
}

// means reports whether an address that may be meant by d is as is says.
func (d Destination) means(is func(netip.Addr) bool) bool {
	return d.odd.IsValid() && is(d.odd) || slices.ContainsFunc(d.addrs, is)
}

// NewSocketDestination returns the destination of a Unix socket.
func NewSocketDestination(name string) Destination {
	return Destination{parts: strings.Split(strings.TrimPrefix(path.Clean(name), "/"), "/")}
}

// Grants reports whether p, in a rule that allows, names d. A network names only
// an address that is known: the one that is dialled when there is one.
func (p ForwardPattern) Grants(d Destination) bool {
	if len(p.parts) > 0 || len(d.parts) > 0 {
		return p.matchSocket(d)
	}
	if d.port < p.low || d.port > p.high {
		return false
	}
	switch {
	case p.network.IsValid():
		return d.every(p.network.Contains)
	case p.name == localHost:
		return d.host == localHost || d.every(netip.Addr.IsLoopback)
	}
	return p.matchName(d.host)
}

// every reports whether addresses of d are known and each is as is says.
func (d Destination) every(is func(netip.Addr) bool) bool {
	return len(d.addrs) > 0 && !slices.ContainsFunc(d.addrs, func(a netip.Addr) bool { return !is(a) })
}

// Forbids reports whether p, in a rule that denies, names d: whether the name or
// any address of d is meant.
func (p ForwardPattern) Forbids(d Destination) bool {
	if len(p.parts) > 0 || len(d.parts) > 0 {
		return p.matchSocket(d)
	}
	if d.port < p.low || d.port > p.high {
		return false
	}
	unspecified := d.means(netip.Addr.IsUnspecified) // the kernel takes it for loopback
	switch {
	case p.network.IsValid():
		return d.means(p.network.Contains) ||
			len(d.addrs) == 0 && d.local && p.forbidsLoopback() || unspecified && p.forbidsLoopback()
	case p.name == localHost:
		return d.local || unspecified
	}
	return p.matchName(d.host)
}

// forbidsLoopback reports whether p's network has what localhost stands for.
func (p ForwardPattern) forbidsLoopback() bool {
	return p.network.Contains(netip.AddrFrom4([4]byte{127, 0, 0, 1})) || p.network.Contains(netip.IPv6Loopback())
}

func (p ForwardPattern) matchName(host string) bool {
	switch {
	case p.any:
		return true
	case p.suffix != "":
		return len(host) > len(p.suffix) && strings.HasSuffix(host, p.suffix)
	}
	return p.name != "" && p.name == host
}

func (p ForwardPattern) matchSocket(d Destination) bool {
	if len(p.parts) == 0 || len(p.parts) != len(d.parts) {
		return false
	}
	for i, part := range p.parts {
		if ok, err := path.Match(part, d.parts[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// forwards returns the texts of patterns.
func forwards(patterns []ForwardPattern) []string {
	var out []string
	for _, p := range patterns {
		out = append(out, p.text)
	}
	return out
}

// checkForwards returns what is wrong with the destinations of a rule, or "".
// They are about forward:local alone, so in a rule that denies another action
// could mean either.
func checkForwards(r Rule, deny bool) string {
	const local = "forward:local"
	others := slices.ContainsFunc(r.Actions, func(a string) bool { return a != local })
	switch {
	case len(r.ForwardTo) == 0:
		return ""
	case deny && others:
		return fmt.Sprintf("forward_to is about %s; make a rule of its own of it, with that action or none", local)
	case !deny && !slices.Contains(r.Actions, local) && !slices.Contains(r.Actions, wildcard):
		return fmt.Sprintf("forward_to needs the action %s", local)
	}
	return ""
}
