package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	accessdv1 "github.com/accessd/accessd/api/accessd/v1"
)

func caStatus(e *env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:   "status",
		Short: "Show how far each authority's rotation is, and who is behind",
		Args:  want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.rotation().ListAuthorities(ctx, connect.NewRequest(&accessdv1.ListAuthoritiesRequest{}))
			if err != nil {
				return err
			}
			return printAuthorities(e.stdout, f, res.Msg.GetAuthorities())
		}),
	}
	addFormat(c, &f)
	return c
}

func caRotate(e *env) *cobra.Command {
	var f format
	req := &accessdv1.RotateAuthorityRequest{}
	c := &cobra.Command{
		Use:   "rotate --type user|host|node|sshd --phase init|clients|servers|standby|rollback [--force]",
		Short: "Take an authority to the next phase of its rotation, or back",
		Long: "A rotation replaces the key of one authority. Its phases, in their order:\n" +
			"  init      there is a second key, which everybody learns to trust; the old one signs\n" +
			"  clients   those who dial get certificates of the new key (people, members)\n" +
			"  servers   those who answer do, too (proxies and nodes: the host CA)\n" +
			"  standby   the key that does not sign is gone, and what it signed is good no more\n" +
			"  rollback  from init, clients or servers: the old key signs again; then standby\n" +
			"A step that would leave somebody behind is refused with a list, unless it is forced.",
		Args: want(),
		RunE: verb(func(ctx context.Context, _ []string) error {
			res, err := e.rotation().RotateAuthority(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			ca := res.Msg.GetAuthority()
			for _, line := range whatNow(ca) {
				e.say("%s", line)
			}
			return printAuthorities(e.stdout, f, []*accessdv1.CertificateAuthority{ca})
		}),
	}
	c.Flags().StringVar(&req.Type, "type", "", "user, host, node or sshd")
	c.Flags().StringVar(&req.Phase, "phase", "", "init, clients, servers, standby or rollback")
	c.Flags().BoolVar(&req.Force, "force", false, "leave behind whoever is behind")
	_ = c.Flags().SetAnnotation("type", valuesAnnotation, []string{"user", "host", "node", "sshd"})                       // the flag exists
	_ = c.Flags().SetAnnotation("phase", valuesAnnotation, []string{"init", "clients", "servers", "standby", "rollback"}) // as does this one
	_ = c.MarkFlagRequired("type")
	_ = c.MarkFlagRequired("phase")
	addFormat(c, &f)
	return c
}

// printAuthorities prints how far rotations are and, in a table, who is behind
// below it.
func printAuthorities(w io.Writer, f format, all []*accessdv1.CertificateAuthority) error {
	err := list[*accessdv1.CertificateAuthority]{
		head: []string{"TYPE", "PHASE", "SINCE", "SIGNS", "TRUSTED ALSO", "NEXT", "BEHIND"},
		rows: all,
		row:  authorityRow,
	}.print(w, f)
	if err != nil || f != formatTable {
		return err
	}
	for _, ca := range all {
		if len(ca.GetBehind()) == 0 {
			continue
		}
		if _, err := fmt.Fprintf(w, "\nbehind for phase %s of the %s CA:\n", ca.GetGate(), ca.GetType()); err != nil {
			return err
		}
		if err := printTable(w, []string{"KIND", "NAME", "ONLINE", "UNTIL", "WHY"}, laggardRows(ca)); err != nil {
			return err
		}
	}
	return nil
}

func authorityRow(ca *accessdv1.CertificateAuthority) []string {
	since, also, behind := "", "", ""
	if ca.GetSince() != nil {
		since = localTime(ca.GetSince())
	}
	for _, k := range ca.GetKeys()[1:] {
		also = k.GetFingerprint()
	}
	if ca.GetGate() != "" {
		behind = fmt.Sprintf("%d for %s", ca.GetBehindTotal(), ca.GetGate())
	}
	return []string{ca.GetType(), ca.GetPhase(), since, ca.GetKeys()[0].GetFingerprint(), also, strings.Join(ca.GetNext(), " or "), behind}
}

func laggardRows(ca *accessdv1.CertificateAuthority) [][]string {
	var rows [][]string
	for _, l := range ca.GetBehind() {
		online, until := "", ""
		switch {
		case l.GetKind() == "user" || l.GetKind() == "auth": // nobody knows
		case l.GetOnline():
			online = "yes"
		default:
			online = "no"
		}
		if l.GetUntil() != nil {
			until = localTime(l.GetUntil())
		}
		rows = append(rows, []string{l.GetKind(), l.GetName(), online, until, l.GetWhy()})
	}
	if more := int(ca.GetBehindTotal()) - len(ca.GetBehind()); more > 0 {
		rows = append(rows, []string{"", fmt.Sprintf("and %d more", more), "", "", ""})
	}
	return rows
}

// whatNow says what a phase asks of people, who alone can do it.
func whatNow(ca *accessdv1.CertificateAuthority) []string {
	switch ca.GetType() + " " + ca.GetPhase() {
	case "host init", "host clients":
		return []string{
			"before phase servers, whoever connects with ssh needs both keys in known_hosts, and whoever joins needs a pin of the new one:",
			"  accessd ca export --type host --format known-hosts >> known_hosts",
			"  accessd ca pin",
		}
	case "sshd init":
		return []string{
			"before phase clients, every plain sshd needs both keys in the file of its TrustedUserCAKeys:",
			"  ssh NODE@PROXY ca sshd                on the node itself, where it dials home",
			"  accessd nodes setup-sshd --apply      or as it was set up at first",
		}
	case "user clients", "user servers":
		return []string{"people get certificates of the new key when they sign in the next time; standby ends the old ones"}
	case "host standby":
		return []string{"the old key may go from known_hosts, and a pin of it joins nobody any more"}
	case "sshd standby":
		return []string{"the old key may go from the files of TrustedUserCAKeys; until it does, sshd takes what it signed"}
	}
	return nil
}
