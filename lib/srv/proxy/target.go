package proxy

import (
	"fmt"
	"strings"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// sshPort is the port a node's name or id goes with: what stock ssh asks for
// when nobody says otherwise (RFC 4253, section 4.1).
const sshPort = 22

// target is what a person may call a node: exactly one of id, name and gateway
// is set. The zero target is no node.
type target struct {
	id      names.NodeID
	name    names.NodeName
	gateway uint32 // gateway port; the host was this machine's
	port    uint32 // the port beside an id or a name
}

// parseTarget reads the destination of a direct-tcpip channel. It reads only:
// nothing is ever resolved, so what is no node's name leads nowhere. Host names
// have no case (RFC 4343), so upper case will do.
func parseTarget(host string, port uint32) target {
	if port == 0 {
		return target{} // a node without a gateway port has that
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

// find returns the node t names. A node answers on the SSH port and on its own
// gateway port, by whatever name it is called.
func (t target) find(p *services.Cache) (n services.Node, ok bool) {
	switch {
	case t.gateway != 0:
		return p.NodeByPort(int(t.gateway))
	case t.id != "":
		n, ok = p.Node(t.id)
	case t.name != "":
		n, ok = p.NodeByName(t.name)
	}
	return n, ok && (t.port == sshPort || t.port == uint32(n.GatewayPort))
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
