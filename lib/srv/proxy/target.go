package proxy

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// sshPort is the port a node's name or id goes with: what stock ssh asks for
// when nobody says otherwise (RFC 4253, section 4.1).
const sshPort = 22

const (
	// maxTerms bounds the labels of a query.
	maxTerms = 16
	// maxListed bounds the nodes that are named when a query means several.
	maxListed = 8
)

// target is what a person may call a node: exactly one of id, name, gateway and
// labels is set. The zero target is no node.
type target struct {
	id      names.NodeID
	name    names.NodeName
	gateway uint32 // gateway port; the host was this machine's
	labels  []term // all of which a node must have
	port    uint32 // the port beside what names the node
}

// term is one label of a query. ssh gives host names in lower case, so case
// means nothing in either half.
type term struct{ key, value string }

// parseTarget reads the destination of a direct-tcpip channel. It reads only:
// nothing is ever resolved, so what is no node's name leads nowhere. Host names
// have no case (RFC 4343), so upper case will do.
func parseTarget(host string, port uint32) target {
	if port == 0 {
		return target{} // a node without a gateway port has that
	}
	if strings.Contains(host, "=") {
		return target{labels: parseQuery(host), port: port}
	}
	switch host = strings.ToLower(host); host {
	case "localhost", "127.0.0.1", "::1":
		return target{gateway: port}
	}
	if id, err := names.ParseNodeID(host); err == nil {
		return target{id: id, port: port}
	}
	if name, err := names.ParseNodeName(host); err == nil {
		return target{name: name, port: port}
	}
	return target{}
}

// parseQuery reads "key=value" or several of them, between commas or, since
// OpenSSH 10.3 takes no comma in a host name, percent signs; neither can be in a
// label. What cannot be read is no query.
func parseQuery(s string) []term {
	var terms []term
	for text := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == ',' || r == '%' }) {
		key, value, ok := strings.Cut(text, "=")
		if !ok || len(terms) == maxTerms || (names.Labels{key: value}).Check() != nil {
			return nil
		}
		terms = append(terms, term{key, value})
	}
	return terms
}

// parsePlace reads what stands for a node in an SSH user name: as parseTarget
// does, on the SSH port unless a port follows the host.
func parsePlace(s string) (host string, port uint32) {
	if i := strings.LastIndexByte(s, ':'); i > 0 && !strings.Contains(s, "=") {
		if p, err := strconv.ParseUint(s[i+1:], 10, 16); err == nil {
			return s[:i], uint32(p)
		}
	}
	return s, sshPort
}

// find returns the node t names. A node answers on the SSH port and on its own
// gateway port, by whatever name it is called. A query means the one node that
// has all its labels among those that may reports true of; when there are
// several, the error names them.
func (t target) find(p *services.Cache, may func(services.Node) bool) (n services.Node, ok bool, err error) {
	switch {
	case t.gateway != 0:
		n, ok = p.NodeByPort(int(t.gateway))
		return n, ok, nil
	case t.id != "":
		n, ok = p.Node(t.id)
	case t.name != "":
		n, ok = p.NodeByName(t.name)
	case len(t.labels) > 0 && t.port == sshPort:
		return t.query(p, may)
	}
	return n, ok && (t.port == sshPort || t.port == uint32(n.GatewayPort)), nil
}

func (t target) query(p *services.Cache, may func(services.Node) bool) (found services.Node, ok bool, err error) {
	var list []string
	for _, n := range p.Nodes() {
		if !t.matches(n.Labels) || !may(n) {
			continue
		}
		if len(list) == maxListed {
			list = append(list, "...")
			break
		}
		found, list = n, append(list, string(n.Name))
	}
	if len(list) > 1 {
		return services.Node{}, false, fault.New(fault.Conflict, "that is more than one node: %s", strings.Join(list, ", "))
	}
	return found, len(list) == 1, nil
}

// matches reports whether a node with these labels has all of t's.
func (t target) matches(labels names.Labels) bool {
	for _, want := range t.labels {
		if !want.in(labels) {
			return false
		}
	}
	return true
}

func (t term) in(labels names.Labels) bool {
	for key, value := range labels {
		if strings.EqualFold(key, t.key) && strings.EqualFold(value, t.value) {
			return true
		}
	}
	return false
}

// maxQuote bounds what is repeated of a peer's own words, in bytes.
const maxQuote = 80

// quote returns s, the peer's own words, in quotes and in ASCII, so that no
// terminal takes any of it for a command.
func quote(s string) string {
	if len(s) > maxQuote {
		s = s[:maxQuote] + "..."
	}
	return fmt.Sprintf("%+q", s)
}
