package sshca

import (
	"slices"

	"golang.org/x/crypto/ssh"

	"github.com/accessd/accessd/lib/names"
)

// Origin is what a certificate stands for that was issued on the strength of
// another: one for a proxy's own key, or one with the roles of an access request.
// It gives nothing. What keeps out the first keeps out the second, too, and that
// shall not depend on who is asked, and when. The zero value is of a certificate
// that stands for itself.
type Origin struct {
	Serials  []uint64         `json:"serials"`            // sorted; those before that one among them
	Roles    []names.RoleName `json:"roles,omitempty"`    // sorted; what they granted, and this does not
	Requests []string         `json:"requests,omitempty"` // the same of access requests
}

// maxOrigins bounds how many certificates one may stand for: each request that is
// taken up beside those before makes two more.
const maxOrigins = 4 * maxRequests

// Origin returns what a certificate stands for that is issued on the strength of
// id's, and that has these roles and access requests.
func (id *Identity) Origin(roles []names.RoleName, requests []string) Origin {
	return Origin{
		Serials:  union(id.For.Serials, []uint64{id.Serial}, nil),
		Roles:    union(id.For.Roles, id.Roles, roles),
		Requests: union(id.For.Requests, id.Requests, requests),
	}
}

// union returns what is in a or b and not in less, sorted.
func union[T interface{ ~string | ~uint64 }](a, b, less []T) []T {
	out := slices.DeleteFunc(slices.Concat(a, b), func(v T) bool { return slices.Contains(less, v) })
	slices.Sort(out)
	return slices.Compact(out)
}

func (o Origin) isZero() bool { return len(o.Serials)+len(o.Roles)+len(o.Requests) == 0 }

func decodeOrigin(c *ssh.Certificate) (Origin, error) {
	if _, ok := c.Extensions[extFor]; !ok {
		return Origin{}, nil
	}
	var o Origin
	if err := decode(c, extFor, &o); err != nil {
		return Origin{}, err
	}
	if len(o.Serials) == 0 || len(o.Serials) > maxOrigins || !ascends(o.Serials) {
		return Origin{}, refuse(CodeBadExtension, "%s: want a sorted list of 1 to %d certificates", extFor, maxOrigins)
	}
	if len(o.Roles) > maxRoles || !ascends(o.Roles) || len(o.Requests) > maxRequests || !ascends(o.Requests) {
		return Origin{}, refuse(CodeBadExtension, "%s: want sorted lists of at most %d roles and %d requests", extFor, maxRoles, maxRequests)
	}
	for _, r := range o.Roles {
		if _, err := names.ParseRoleName(string(r)); err != nil {
			return Origin{}, refuse(CodeBadExtension, "%s: %v", extFor, err)
		}
	}
	for _, id := range o.Requests {
		if err := names.CheckRequestID(id); err != nil {
			return Origin{}, refuse(CodeBadExtension, "%s: %v", extFor, err)
		}
	}
	return o, nil
}

// ascends reports whether list is sorted and has nothing twice.
func ascends[T interface{ ~string | ~uint64 }](list []T) bool {
	for i := 1; i < len(list); i++ {
		if list[i-1] >= list[i] {
			return false
		}
	}
	return true
}
