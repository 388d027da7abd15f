package sftp

import (
	"encoding/binary"
	"strings"
)

// swapsLinks reports whether the client with this identification sends the two
// paths of SYMLINK in the order of draft-ietf-secsh-filexfer-02, section 6.10:
// the link, then where it leads. OpenSSH has always had them the other way
// round, its server and all others follow it, and most clients send its order
// to everybody. Some send it only to a server that they know by its
// identification, and take accessd's for one of the draft's kind.
func swapsLinks(client string) bool {
	software, ok := strings.CutPrefix(client, "SSH-2.0-")
	if !ok {
		return false
	}
	for _, s := range []string{"AsyncSSH_", "ssh2js"} {
		if strings.HasPrefix(software, s) {
			return true
		}
	}
	return false
}

// swapPaths returns the packet p, whose head holds two paths, with these
// exchanged. What follows them is left out.
func swapPaths(p []byte) []byte {
	f := fields{b: p[4+1+4:]}
	first, second := f.path(), f.path()
	out := append([]byte(nil), p[:4+1+4]...)
	out = appendString(appendString(out, second), first)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out
}
