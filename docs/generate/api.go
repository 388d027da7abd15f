package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/accessd/accessd/lib/auth"
)

const protoDir = "api/accessd/v1"

// apiPage documents the services: what each method does, from the comments of the
// .proto files, and who may call it, from the authority's own table.
func apiPage() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(header + apiHead)
	words, err := protoComments(os.DirFS(protoDir))
	if err != nil {
		return nil, err
	}
	service := ""
	for _, m := range auth.Methods() {
		name, method, _ := strings.Cut(strings.TrimPrefix(m.Procedure, "/accessd.v1."), "/")
		if name != service {
			service = name
			fmt.Fprintf(&b, "\n## %s\n%s\n\n| method | people | others | |\n|---|---|---|---|\n", name, words[name])
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", method, people(m), others(m), words[name+"/"+method])
	}
	return b.Bytes(), nil
}

const apiHead = `# Services

Everything the command line does it does through these services (Connect and gRPC, ` + "`api/accessd/v1`" + `), and so can a program. Fields
and methods of version 1 are added to, never changed or taken away; what is not known is ignored.

| where | who calls |
|---|---|
| ` + "`DATA_DIR/admin.sock`" + ` of an authority | the user it runs as, and root |
| an ` + "`accessd-api`" + ` channel (HTTP/2, cleartext inside SSH) at a proxy | a person, with a certificate |
| ` + "`https://PROXY/accessd.v1.SERVICE/METHOD`" + ` | a person's program, with an API token |
| the same channels, at a proxy or on an ` + "`accessd-authority`" + ` channel | a member, with its certificate |

` + "```go" + `
hosts, err := client.HostCA(keys) // what "accessd ca export --type host" prints
c, err := client.Dial(ctx, client.Config{Address: "proxy:3022", User: "alice", Signer: signer, HostKey: hosts})
res, err := c.Nodes().ListNodes(ctx, connect.NewRequest(&accessdv1.ListNodesRequest{}))
for update, err := range c.Watch(ctx, "node", "session") { … }
` + "```" + `

## Over HTTPS

` + "```sh" + `
TOKEN=$(ssh -p 3022 alice@proxy api-tokens add --ttl 1h --quiet)
curl -H "Authorization: Bearer $TOKEN" --json '{"filter": {"user": "bob"}}' https://proxy:3022/accessd.v1.AuditService/ListEvents
` + "```" + `

` + "```go" + `
c, err := client.DialHTTPS(client.HTTPSConfig{Address: "proxy:3022", Token: token})
` + "```" + `

"accessd login --api-token FILE" leaves a token in a file. Any client of Connect, gRPC or gRPC-Web may call; a request is at most
1 MiB, one token has at most 16 calls under way (status 429 beyond), streams among them. The answer to a wrong or missing token is
401 ` + "`unauthenticated`" + `, to what the roles do not allow 403 ` + "`permission_denied`" + `; both are in the log.

A token is the certificate that it was made with, at every call: it ends with that, is good from where that is good, is locked out
as that is, and loses what its person loses. It is weaker in two ways. Whoever has it is the person, so it makes no certificate
and no other token ("key" below); and a second factor, which is for one connection, does not come along, so what a role with
` + "`mfa: session`" + ` gives is not for tokens. The proxy sees tokens, as every end of TLS does, and can use what passes through it; the
authority has their hashes only. At most 20 of a person's are good at a time.

## Who may call what

Each call is decided by the caller's roles and is an access.decision event. Below, *people* is what a role must allow under
` + "`resources`" + `; "own" means that everybody may call for what is their own, "key" that an API token is not enough. *Others* are the admin socket (local) and the
kinds of members, each for its own data. Whoever is not named may not; a test walks every method with every kind of
identity.
`

func people(m auth.Method) string {
	switch {
	case m.Resource == "":
		return ""
	case m.Own && m.Proven:
		return "`" + m.Resource + ": " + m.Verb + "`, own; key"
	case m.Own:
		return "`" + m.Resource + ": " + m.Verb + "`, own"
	}
	return "`" + m.Resource + ": " + m.Verb + "`"
}

func others(m auth.Method) string {
	list := slices.Clone(m.Members)
	if m.Local {
		list = append([]string{"local"}, list...)
	}
	if m.Joiner {
		list = append(list, "joiners")
	}
	return strings.Join(list, ", ")
}

var (
	protoService = regexp.MustCompile(`^service (\w+)`)
	protoMethod  = regexp.MustCompile(`^\s+rpc (\w+)\(`)
)

// protoComments returns the comments in front of services ("S") and methods
// ("S/M") of the .proto files in dir.
func protoComments(dir fs.FS) (map[string]string, error) {
	files, err := fs.Glob(dir, "*.proto")
	if err != nil {
		return nil, err
	}
	words := map[string]string{}
	for _, file := range files {
		text, err := fs.ReadFile(dir, file)
		if err != nil {
			return nil, err
		}
		var service string
		var comment []string
		for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
			line := s.Text()
			if c, ok := strings.CutPrefix(strings.TrimSpace(line), "//"); ok {
				comment = append(comment, strings.TrimSpace(c))
				continue
			}
			if m := protoService.FindStringSubmatch(line); m != nil {
				service = m[1]
				words[service] = strings.Join(comment, " ")
			} else if m := protoMethod.FindStringSubmatch(line); m != nil {
				words[service+"/"+m[1]] = strings.ReplaceAll(strings.Join(comment, " "), "|", "\\|")
			}
			comment = nil
		}
	}
	return words, nil
}
