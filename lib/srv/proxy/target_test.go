package proxy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/services"
)

// TestTargetSSRF is the SSRF row: only registered nodes are found, whatever a
// destination looks like.
func TestTargetSSRF(t *testing.T) {
	p := newPolicy(t)
	p.node(services.Node{ID: idN1, Name: "n1", GatewayPort: 20001})
	p.node(services.Node{ID: idN2, Name: "db.example.com"})
	for _, c := range []struct {
		host string
		port uint32
		want names.NodeID
	}{
		{"n1", 22, idN1},
		{"N1", 22, idN1},
		{"n1", 20001, idN1},
		{string(idN1), 22, idN1},
		{strings.ToUpper(string(idN1)), 22, idN1},
		{string(idN1), 20001, idN1},
		{"localhost", 20001, idN1},
		{"127.0.0.1", 20001, idN1},
		{"::1", 20001, idN1},
		{"db.example.com", 22, idN2},

		{"n1", 3022, ""},
		{"n1", 80, ""},
		{"n1", 20002, ""},
		{"n1", 0, ""},
		{"n1", 22 + 1<<16, ""},
		{"db.example.com", 0, ""},
		{"localhost", 22, ""},
		{"localhost", 20001 + 1<<16, ""},
		{"localhost", 3022, ""},
		{"127.0.0.1", 22, ""},
		{"127.0.0.2", 20001, ""},
		{"127.1", 20001, ""},
		{"0x7f000001", 20001, ""},
		{"2130706433", 20001, ""},
		{"0.0.0.0", 20001, ""},
		{"[::1]", 20001, ""},
		{"::ffff:127.0.0.1", 20001, ""},
		{"::1%lo", 20001, ""},
		{"localhost.", 20001, ""},
		{"n1.", 22, ""},
		{"n1.localhost", 22, ""},
		{"169.254.169.254", 80, ""},
		{"10.0.0.5", 22, ""},
		{"example.com", 22, ""},
		{"/var/run/docker.sock", 22, ""},
		{"../n1", 22, ""},
		{"n1 ", 22, ""},
		{"n1\x00", 22, ""},
		{"n1,db.example.com", 22, ""},
		{"*", 22, ""},
		{"n", 22, ""},
		{"", 22, ""},
		{"{" + string(idN1) + "}", 22, ""},
		{"urn:uuid:" + string(idN1), 22, ""},
		{"11111111111141118111111111111111", 22, ""},
	} {
		n, ok, _ := parseTarget(c.host, c.port).find(p.Cache, anyNode)
		if ok != (c.want != "") || ok && n.ID != c.want {
			t.Errorf("target %q port %d: found %q, %v; want %q", c.host, c.port, n.ID, ok, c.want)
		}
	}
}

// FuzzTarget holds that a destination leads to a node only if it is one of the
// node's own names.
func FuzzTarget(f *testing.F) {
	for _, host := range []string{"n1", string(idN1), "localhost", "::1", "127.0.0.1", "169.254.169.254", "\x1b]52;c;x\a", "n1\u202e"} {
		f.Add(host, uint32(22))
		f.Add(host, uint32(20001))
	}
	p := newPolicy(f)
	p.node(services.Node{ID: idN1, Name: "n1", GatewayPort: 20001})
	f.Fuzz(func(t *testing.T, host string, port uint32) {
		n, ok, _ := parseTarget(host, port).find(p.Cache, anyNode)
		if !ok {
			return
		}
		switch strings.ToLower(host) {
		case "n1", string(idN1):
			ok = port == 22 || port == 20001
		case "localhost", "127.0.0.1", "::1":
			ok = port == 20001
		default:
			ok = false
		}
		if !ok || n.ID != idN1 {
			t.Errorf("target %q port %d found node %q", host, port, n.ID)
		}
	})
}

// TestQuote is F31 for what a refusal repeats.
func TestQuote(t *testing.T) {
	for _, s := range []string{"\x1b]52;c;aGk=\a", "\u202eevil", "\u009b31m", "a\r\nb", "\xff\xfe", strings.Repeat("\x1b", 1<<16)} {
		got := quote(s)
		if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("quote(%.20q) holds a control or foreign character: %q", s, got)
		}
		if len(got) > 10*maxQuote {
			t.Errorf("quote of %d bytes has %d", len(s), len(got))
		}
	}
}

func anyNode(services.Node) bool { return true }

// TestTargetByLabels: a query means the one node that matches among those that
// may be reached; of several it names those, and no others.
func TestTargetByLabels(t *testing.T) {
	p := newPolicy(t)
	p.node(services.Node{ID: idN1, Name: "n1", Labels: names.Labels{"env": "prod", "role": "db"}})
	p.node(services.Node{ID: idN2, Name: "n2", Labels: names.Labels{"env": "prod", "role": "Web"}})
	p.node(services.Node{ID: idProxy, Name: "secret", Labels: names.Labels{"env": "prod", "role": "db"}})
	may := func(n services.Node) bool { return n.Name != "secret" }
	for _, c := range []struct {
		query string
		port  uint32
		want  names.NodeID
		err   string
	}{
		{"env=prod,role=db", 22, idN1, ""},
		{"role=db", 22, idN1, ""},
		{"role=web", 22, idN2, ""}, // ssh writes host names in lower case
		{"env=prod%role=web", 22, idN2, ""},
		{"env=prod", 22, "", "that is more than one node: n1, n2"},
		{"role=db", 80, "", ""},
		{"role=d", 22, "", ""},
		{"role=*", 22, "", ""},
		{"=", 22, "", ""},
		{"role=", 22, "", ""},
		{"=db", 22, "", ""},
		{"role=db,", 22, idN1, ""},
		{"role=db,oops", 22, "", ""},
		{"role=db,role=web", 22, "", ""},
		{strings.Repeat("role=db,", maxTerms+1), 22, "", ""},
		{"role=\x1b[2J", 22, "", ""},
	} {
		n, ok, err := parseTarget(c.query, c.port).find(p.Cache, may)
		if ok != (c.want != "") || n.ID != c.want || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("query %q port %d: node %q, %v, error %v; want node %q, error %q", c.query, c.port, n.ID, ok, err, c.want, c.err)
		}
	}
	for i := range 2 * maxListed {
		p.node(services.Node{ID: names.NodeID(fmt.Sprintf("44444444-4444-4444-8444-%012d", i)), Name: names.NodeName(fmt.Sprintf("x%d", i)), Labels: names.Labels{"many": "1"}})
	}
	if _, _, err := parseTarget("many=1", 22).find(p.Cache, may); err == nil || strings.Count(err.Error(), "x") != maxListed || !strings.HasSuffix(err.Error(), "...") {
		t.Errorf("a query that means many nodes: %v", err)
	}
}

func TestParsePlace(t *testing.T) {
	for _, c := range []struct {
		in, host string
		port     uint32
	}{
		{"n1", "n1", 22},
		{"n1:20001", "n1", 20001},
		{"localhost:20001", "localhost", 20001},
		{"n1:", "n1:", 22},
		{"n1:70000", "n1:70000", 22},
		{"addr=a:22", "addr=a:22", 22},
		{":22", ":22", 22},
		{"", "", 22},
	} {
		if host, port := parsePlace(c.in); host != c.host || port != c.port {
			t.Errorf("parsePlace(%q) = %q, %d; want %q, %d", c.in, host, port, c.host, c.port)
		}
	}
}
