// Package reversetunnel is both ends of the tunnels through which nodes are
// reached: the [Server] in a proxy and the [Agent] in a node.
//
// # The control connection
//
// A node dials a proxy, never the reverse, and logs in by SSH with its member
// certificate; the proxy shows a certificate of the host CA. Over this control
// connection the node asks for tcpip-forward (RFC 4254, section 7.1), as stock
// "ssh -R" does, opens an accessd-api channel and calls TunnelService.Attach on
// it. From the first answer until that call ends the tunnel is up.
//
// # Data connections
//
// Each session has a connection of its own, so that no session waits for
// another's bytes. The proxy issues tickets in the Attach stream; for each, the
// agent dials the same address again, proves itself by the TLS key whose hash
// both ends told each other on the control connection, sends the ticket, and
// waits. When a client comes, the proxy writes one header that names the
// client's address; from there on the connection carries raw bytes. A few such
// connections are kept warm. In plain mode there is no TLS, and the ticket alone
// proves.
//
// A ticket is 32 random bytes, works once, for half a minute, for one node at
// one proxy. Only its hash is kept.
//
// # Channels
//
// Where no data connection comes within a quarter of a second, or dial-back is
// switched off, the proxy opens a forwarded-tcpip channel on the control
// connection; of the two, what comes first carries the session. It is the only
// type of channel an agent accepts, and an agent dials nothing but its proxies.
//
// # Stock ssh
//
// A node that has only an ssh client dials home with "ssh -N -R". The forward it
// asks for is the tunnel, up before the request is granted; each session is a
// forwarded-tcpip channel that repeats address and port as they were asked for.
// A second live connection of the same identity is refused the forward, which
// ends an ssh that was told to exit on that; a dead one gives way after a second.
//
// # Who is trusted
//
// The proxy trusts nothing a node says beyond its certificate: every message is
// bounded, as are tickets, data connections and channels. The agent trusts a
// proxy to name the client's address and with availability; sessions are SSH
// from end to end, and calls to the authority run in an SSH connection of their
// own unless the authority is the proxy itself.
package reversetunnel
