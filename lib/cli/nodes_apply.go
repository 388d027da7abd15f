package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/accessd/accessd/lib/fault"
	"github.com/accessd/accessd/lib/names"
)

// maxSSHDConfig bounds sshd's configuration, in bytes.
const maxSSHDConfig = 1 << 20

// The lines around what is put into a configuration that includes no directory.
const (
	beginMark = "# begin accessd"
	endMark   = "# end accessd"
)

// applySetup writes what sshd needs below o.dir and lets sshd check it. Whatever
// goes wrong, the files are what they were.
func (e *env) applySetup(ctx context.Context, s sshdSetup, o setupOptions) error {
	if s.Certificate != "" {
		if err := ownKey(s, o.hostKey); err != nil {
			return err
		}
	}
	d, err := newSSHD(o)
	if err != nil {
		return err
	}
	defer d.root.Close() //nolint:errcheck // a directory that was only read
	files, err := d.files(ctx, s, o)
	if err != nil {
		return err
	}
	if err := d.replace(files); err != nil {
		return d.back(err)
	}
	if err := d.accepts(ctx); err != nil {
		return d.back(err)
	}
	for _, f := range files {
		if _, err := fmt.Fprintln(e.stdout, filepath.Join(o.dir, f.name)); err != nil {
			return err
		}
	}
	e.say("sshd takes the configuration; it counts from its next start on: systemctl reload ssh")
	if s.Certificate == "" {
		e.say("without a node's name there is no host certificate; proxies know the machine by its pinned keys")
	}
	return nil
}

// ownKey refuses a certificate for another key than the one in path.
func ownKey(s sshdSetup, path string) error {
	text, err := readBounded(path, maxKeyFile)
	if err != nil {
		return err
	}
	own, err := keyOn(string(text))
	if err != nil {
		return fault.New(fault.BadInput, "--host-key: %q: %w", path, err)
	}
	signed, err := keyOn(s.HostKey)
	if err != nil || !bytes.Equal(own.Marshal(), signed.Marshal()) {
		return fault.New(fault.BadInput, "the host certificate is for another machine's key than %q", path)
	}
	return nil
}

// A textFile is a file below the directory of sshd's configuration.
type textFile struct{ name, text string }

// sshdFiles is sshd's configuration, while it is changed.
type sshdFiles struct {
	root   *os.Root
	dir    string
	config string // its path
	sshd   string // the server's

	before []earlier // in the order of the changes
}

// earlier is what a file was before.
type earlier struct {
	name    string
	existed bool
	text    []byte
	mode    fs.FileMode
}

func newSSHD(o setupOptions) (*sshdFiles, error) {
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		sshd = "/usr/sbin/sshd" // not on everybody's path
	}
	if _, err := os.Stat(sshd); err != nil {
		return nil, fault.New(fault.NotFound, "there is no sshd on this machine")
	}
	root, err := os.OpenRoot(o.dir)
	if err != nil {
		return nil, fault.New(fault.BadInput, "--dir: %w", err)
	}
	return &sshdFiles{root: root, dir: o.dir, config: o.config, sshd: sshd}, nil
}

// files returns what there is to write, the configuration last.
func (d *sshdFiles) files(ctx context.Context, s sshdSetup, o setupOptions) ([]textFile, error) {
	if err := d.trustsNobody(ctx); err != nil {
		return nil, err
	}
	list := []textFile{{userCAFile, s.authorityText()}}
	certificate := s.certificatePath(o)
	if s.Certificate != "" {
		name, err := d.below(certificate)
		if err != nil {
			return nil, err
		}
		list = append(list, textFile{name, strings.TrimSpace(s.Certificate) + "\n"})
	}
	main, err := d.below(d.config)
	if err != nil {
		return nil, err
	}
	text, err := readBounded(d.config, maxSSHDConfig)
	if err != nil {
		return nil, err
	}
	lines := s.configText(d.dir, certificate)
	if includes(string(text), d.dir, dropInFile) {
		return append(list, textFile{dropInFile, "# written by accessd nodes setup-sshd\n" + lines}), nil
	}
	marked, err := insertMarked(string(text), lines)
	if err != nil {
		return nil, err
	}
	return append(list, textFile{main, marked}), nil
}

// below returns a path's name below the directory.
func (d *sshdFiles) below(path string) (string, error) {
	name, err := filepath.Rel(d.dir, path)
	if err != nil || !filepath.IsLocal(name) {
		return "", fault.New(fault.BadInput, "%q is not below %q", path, d.dir)
	}
	return name, nil
}

// trustsNobody refuses an sshd that trusts other authorities already: it reads
// one file of them, and theirs would be lost.
func (d *sshdFiles) trustsNobody(ctx context.Context) error {
	trusted, err := d.effective(ctx, "trustedusercakeys")
	if err != nil {
		return err
	}
	if own := filepath.Join(d.dir, userCAFile); trusted != "none" && trusted != own {
		return fault.New(fault.Conflict, "sshd trusts the authorities in %q already", trusted).
			WithHint("add the key that \"accessd ca export --type sshd\" prints to that file")
	}
	return nil
}

// effective returns what sshd makes of one keyword, for anybody.
func (d *sshdFiles) effective(ctx context.Context, keyword string) (string, error) {
	out, err := d.run(ctx, "-T", "-C", "user=accessd,host=localhost,addr=127.0.0.1")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == keyword {
			return v, nil
		}
	}
	return "none", nil
}

// run asks sshd about its configuration.
func (d *sshdFiles) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.sshd, append(args, "-f", d.config)...) //nolint:gosec // sshd, about the file that an administrator names
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		return "", fault.New(fault.BadInput, "sshd refuses %q: %s", d.config, strings.TrimSpace(words.String()))
	}
	return out.String(), nil
}

// accepts returns an error unless sshd takes its configuration and finds in it
// what was written.
func (d *sshdFiles) accepts(ctx context.Context) error {
	if _, err := d.run(ctx, "-t"); err != nil {
		return err
	}
	trusted, err := d.effective(ctx, "trustedusercakeys")
	if own := filepath.Join(d.dir, userCAFile); err == nil && trusted != own {
		err = fault.New(fault.BadInput, "sshd reads TrustedUserCAKeys as %q, not as %q", trusted, own)
	}
	return err
}

// replace puts the files in place, each whole or not at all.
func (d *sshdFiles) replace(files []textFile) error {
	for _, f := range files {
		old := earlier{name: f.name, mode: 0o644}
		info, err := d.root.Lstat(f.name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fault.New(fault.BadInput, "look at %q: %w", f.name, err)
		case !info.Mode().IsRegular():
			return fault.New(fault.BadInput, "%q is no regular file", filepath.Join(d.dir, f.name))
		default:
			if old.text, err = d.root.ReadFile(f.name); err != nil {
				return fault.New(fault.BadInput, "read %q: %w", f.name, err)
			}
			old.existed, old.mode = true, info.Mode().Perm()
		}
		d.before = append(d.before, old)
		if err := d.write(f.name, []byte(f.text), old.mode); err != nil {
			return err
		}
	}
	return nil
}

// write puts text in place of the file name, by way of a new file beside it.
func (d *sshdFiles) write(name string, text []byte, mode fs.FileMode) error {
	temp := path.Join(path.Dir(name), ".accessd-"+names.NewSecret()[:12])
	err := d.root.MkdirAll(path.Dir(name), 0o755)
	var f *os.File
	if err == nil {
		f, err = d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	}
	if err == nil {
		_, err = f.Write(text)
		err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	}
	if err == nil {
		err = d.root.Rename(temp, name)
	}
	if err != nil {
		_ = d.root.Remove(temp) // it may not be there
		failed := fault.New(fault.BadInput, "write %q: %w", filepath.Join(d.dir, name), err)
		if errors.Is(err, fs.ErrPermission) {
			return failed.WithHint("run as root")
		}
		return failed
	}
	return nil
}

// back makes every file what it was and returns why, with what could not be
// undone.
func (d *sshdFiles) back(why error) error {
	var failed []string
	for _, old := range slices.Backward(d.before) {
		var err error
		if !old.existed {
			err = d.root.Remove(old.name)
		} else {
			err = d.write(old.name, old.text, old.mode)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, filepath.Join(d.dir, old.name))
		}
	}
	if len(failed) > 0 {
		return fault.New(fault.Internal, "%w; and these are not what they were: %s", why, strings.Join(failed, ", "))
	}
	return fault.New(fault.KindOf(why), "%w; everything is as before", why)
}

// includes reports whether an sshd_config in dir includes the file name for
// everybody, which it does not behind the first Match.
func includes(config, dir, name string) bool {
	for line := range strings.Lines(config) {
		words := configWords(line)
		if len(words) > 0 && strings.EqualFold(words[0], "match") {
			return false
		}
		if len(words) == 0 || !strings.EqualFold(words[0], "include") {
			continue
		}
		for _, pattern := range words[1:] {
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join("/etc/ssh", pattern) // sshd_config(5), Include
			}
			if ok, err := filepath.Match(pattern, filepath.Join(dir, name)); ok && err == nil {
				return true
			}
		}
	}
	return false
}

// configWords parts one line of sshd_config: keyword and arguments, by blanks or
// one "=", arguments perhaps in quotes.
func configWords(line string) []string {
	line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
	words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == '=' })
	for i, w := range words {
		words[i] = strings.Trim(w, `"`)
	}
	return words
}

// insertMarked returns config with lines between marks, in place of what was
// between them, else before the first Match, behind which they would count for
// some only.
func insertMarked(config, lines string) (string, error) {
	var out strings.Builder
	block := beginMark + "\n" + lines + endMark + "\n"
	inside, done := false, false
	for line := range strings.Lines(config) {
		line = strings.TrimSuffix(line, "\n")
		words := configWords(line)
		switch {
		case line == beginMark, line == endMark:
			if inside == (line == beginMark) {
				return "", fault.New(fault.BadInput, "sshd's configuration has %q and %q in disorder", beginMark, endMark)
			}
			inside = !inside
		case inside:
		default:
			if !done && len(words) > 0 && strings.EqualFold(words[0], "match") {
				out.WriteString(block)
				done = true
			}
			out.WriteString(line + "\n")
		}
	}
	if inside {
		return "", fault.New(fault.BadInput, "sshd's configuration has %q without %q", beginMark, endMark)
	}
	if !done {
		out.WriteString(block)
	}
	return out.String(), nil
}
