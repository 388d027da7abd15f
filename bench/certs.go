//go:build linux

package main

import (
	"context"
	"path/filepath"
	"time"

	"github.com/accessd/accessd/lib/names"
	"github.com/accessd/accessd/lib/sshca"
)

// measureCertificates measures how many certificates one core signs.
func measureCertificates(ctx context.Context, l *lab) ([]figure, error) {
	dir, err := l.folder()
	if err != nil {
		return nil, err
	}
	ca, err := newIdentity(filepath.Join(dir, "ca"))
	if err != nil {
		return nil, err
	}
	person, err := newIdentity(filepath.Join(dir, "person"))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	each, err := timeEach(ctx, pick(l, 9, 3), pick(l, 5000, 1000), func() error {
		_, err := sshca.MintUser(ca.signer, sshca.UserRequest{
			Key: person.signer.PublicKey(), User: "alice", Roles: []names.RoleName{"access", "dev"}, Logins: []names.Login{"alice", "root", "deploy"},
			Traits: map[string][]string{"team": {"blue", "green"}}, MFA: "totp", ValidAfter: now, ValidBefore: now.Add(time.Hour), Serial: 1,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return []figure{
		figure{accessd: 1e6 / each}.named("15", "certificates issued, one core", perSecond, atLeast(5000)).
			remark("by CPU time, minting alone; looking up the user and the event are not in it."),
	}, nil
}
